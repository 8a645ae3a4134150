"""Killed in the middle: Ray's workers, decoders, actors and whole nodes cost time, and no scan is lost or doubled."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damcli.bundle.pipeline import Pipeline
from damcli.bundle.runtime import Model
from damcli.cluster import decoding
from damcli.cluster.decoding import decode
from damcli.cluster.scoring import Scoring
from damcli.cluster.session import session
from damcli.data import inputs, workers
from damcli.data.images import Contract

pytestmark = pytest.mark.distributed
CONTRACT = Contract(size=32, channels=1)
SCANS = 240


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Pictures that take their time, some of which are none or broken."""
    folder = tmp_path_factory.mktemp("scans")
    for n in range(SCANS):
        path = folder / f"{n:03}.png"
        if n % 50 == 7:
            path.write_bytes((folder / "000.png").read_bytes()[:5000])
        elif n % 50 == 9:
            path.write_text("none\n")
        elif n < 12:
            Image.fromarray(np.random.default_rng(n).integers(0, 256, (900, 1100), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(folder / f"{(n % 6):03}.png")
    return folder


@pytest.fixture
def nodes(cluster, monkeypatch):
    """Two nodes of a CPU and a GPU that is not there, and groups so small that there are many."""
    monkeypatch.setattr(decoding, "SCANS", 6)
    cluster.add("--num-gpus=1")
    cluster.add("--num-gpus=1")
    return cluster


def kill(nodes, *words):
    """Kill the processes of the nodes that have one of these words in their command line; return how many."""
    killed = 0
    for pid in [pid for number in range(2) for pid in nodes.of(number)]:
        with suppress(OSError):
            if any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in words):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def struck(results, strikes):
    """Return the results; `strikes` are what is done when so many of them are there. The first of them hits."""
    got, first = [], min(strikes)
    for result in results:
        got.append(result)
        if len(got) in strikes:
            while not strikes[len(got)]() and len(got) == first:
                time.sleep(0.02)  # no process is at work just now: the next one is
    assert len(got) > max(strikes)
    return got


def decoded(scans):
    return [scan if scan.pixels is None else scan._replace(pixels=scan.pixels.tobytes()) for scan in scans]


def flat(lots):
    return [
        (one.name, row._replace(scores=None), None if row.scores is None else row.scores.tobytes())
        for lot in lots
        for one, row in zip(lot.inputs, lot.rows, strict=True)
    ]


@pytest.mark.slow
def test_killed_workers_and_decoders_and_the_raylet_of_a_node_lose_no_scan_and_double_none(nodes, scans):
    paths = sorted(scans.iterdir())
    expected = decoded(workers.decode(paths, CONTRACT, workers=2))
    assert [scan.status for scan in expected].count("ok") == SCANS - 10
    with session(nodes.address) as connected:
        strikes = {
            1: lambda: kill(nodes, b"ray::Map"),
            40: lambda: kill(nodes, b"damcli.data.decoding"),
            90: lambda: kill(nodes, b"ray::Map", b"damcli.data.decoding"),
            130: lambda: os.kill(nodes.raylet(1), signal.SIGKILL),
        }
        assert decoded(struck(decode(connected, paths, CONTRACT), strikes)) == expected


# Decoded and scored by actors; decoded by tasks and scored by actors of GPUs.
@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=pytest.mark.slow)])
def test_killed_actors_and_a_killed_node_lose_no_scan_and_double_none(nodes, scans, model_file, device):
    given = inputs.given([str(scans)])
    local = Pipeline(Model.open(model_file, "cpu", threads=1), workers=2, batch=2)
    expected = flat(local.rows(given.find()))
    with session(nodes.address) as connected:
        scoring = Scoring(connected, model_file, device, batch=2)
        assert scoring.by_gpu == (device == "auto")
        strikes = {3: lambda: kill(nodes, b"ray::MapWorker"), 30: lambda: nodes.kill(1)}
        got = flat(struck(scoring.rows(given.find()), strikes))
    assert [name for name, *_ in got] == [f"{n:03}.png" for n in range(SCANS)]
    assert got == expected
