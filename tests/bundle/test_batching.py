"""The batch that is found: bounded by memory on a CPU, the fastest that fits on a GPU."""

import dataclasses
import math

import numpy as np
import pytest

from damcli.bundle import batching
from damcli.bundle.batching import available_memory, best_batch
from damcli.bundle.engines import OutOfMemory
from damcli.bundle.providers import CUDA, TENSORRT
from damcli.bundle.runtime import Model


@pytest.fixture
def device(model_file, monkeypatch):
    """Returns `make(provider, seconds, most)`: a model on a device where n scans take seconds(n), and `most` fit."""
    clock = [0.0]
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock[0])

    def make(provider, seconds, most):
        class Device:
            def __init__(self):
                self.tried = []

            def run(self, inputs, outputs):
                scans = len(inputs["images"])
                self.tried.append(scans)
                if scans > most:
                    raise OutOfMemory("out of memory")
                clock[0] += seconds(scans)
                return [np.zeros((scans, 2), np.float32)]

        return dataclasses.replace(Model.open(model_file, "cpu"), provider=provider, engines=(Device(),))

    return make


@pytest.mark.parametrize(
    ("seconds", "most", "best"),
    [
        (lambda n: 1, 10**6, 256),
        (lambda n: 1, 200, 128),
        (lambda n: 1, 64, 64),
        (lambda n: 1, 5, 4),
        (lambda n: 1, 1, 1),
        (lambda n: n, 10**6, 16),
        (lambda n: 100 + n, 10**6, 256),
        (lambda n: max(n, 64), 10**6, 64),
    ],
)
def test_on_a_gpu_the_batch_doubles_while_that_is_faster_and_fits(device, seconds, most, best):
    assert best_batch(device(CUDA, seconds, most), 1) == best


def test_where_not_even_one_scan_fits_that_is_raised(device):
    for provider in (CUDA, TENSORRT):
        with pytest.raises(OutOfMemory):
            best_batch(device(provider, lambda n: 1, 0), 1)


def test_tensorrt_builds_for_one_batch_only(device):
    model = device(TENSORRT, lambda n: 1, 10**6)
    assert best_batch(model, 1) == 32
    assert model.engines[0].tried == [32]


def test_on_a_cpu_memory_bounds_the_batch(model_file, monkeypatch):
    model = Model.open(model_file, "cpu", threads=1)
    assert best_batch(model, 1) == 8
    monkeypatch.setattr(batching, "available_memory", lambda: 0)
    assert best_batch(model, 1) == 1


@pytest.mark.skipif(math.isinf(available_memory()), reason="this system does not tell its memory")
def test_what_a_scan_takes_is_measured(device, model_file, monkeypatch):
    # 40 MB a scan: of 640 MB half may be taken, by two streams four scans each.
    kept = []

    class Hungry:
        def run(self, inputs, outputs):
            kept.append(np.ones((len(inputs["images"]), 40_000_000), np.uint8))
            return [np.zeros((len(inputs["images"]), 2), np.float32)]

    model = dataclasses.replace(Model.open(model_file, "cpu"), engines=(Hungry(),))
    monkeypatch.setattr(batching, "available_memory", lambda: 700_000_000)
    assert best_batch(model, 2) == 4


def test_memory_is_that_of_the_machine_or_of_the_control_group(tmp_path):
    assert available_memory(tmp_path) == math.inf
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  100 kB\nMemAvailable:   50 kB\nHugePages_Total:  0\n")
    assert available_memory(tmp_path) == 50 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("30000\n")
    (group / "memory.stat").write_text("anon 9\nactive_file 4000\ninactive_file 6000\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 50 * 1024
    (group / "memory.max").write_text("40000\n")
    assert available_memory(tmp_path) == 20000
    (group / "memory.max").write_text("15000\n")
    assert available_memory(tmp_path) == 0
