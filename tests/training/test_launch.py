"""Device and precision: bf16 only where it pays, and the network untouched by the trial."""

import copy
import importlib.util

import pytest
import torch

from damcli.errors import MachineError
from damcli.training import launch
from damcli.training.world import World


class Timed(torch.nn.Module):
    """A network whose forward pass advances a clock, by another amount under autocast."""

    def __init__(self, clock, plain, mixed):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1)
        self.clock, self.plain, self.mixed = clock, plain, mixed

    def __deepcopy__(self, memo):
        twin = Timed(self.clock, self.plain, self.mixed)
        twin.layer = copy.deepcopy(self.layer)
        return twin

    def forward(self, images):
        self.clock.append(self.mixed if torch.is_autocast_enabled("cpu") else self.plain)
        return self.layer(images).flatten(1)


@pytest.mark.parametrize(("mixed", "expected"), [(0.70, "bf16"), (0.80, "32"), (2.0, "32")])
def test_bf16_is_taken_from_a_speedup_of_1_3_on(monkeypatch, mixed, expected):
    clock = [0.0]
    monkeypatch.setattr(launch.time, "perf_counter", lambda: sum(clock))
    network = Timed(clock, 1.0, mixed)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    choice = launch.faster_precision("cpu", network, torch.rand(2, 1, 8, 8))
    assert choice.precision == expected
    assert choice.seconds == pytest.approx({"32": 1.0, "bf16": mixed})
    assert clock[1:] == [1.0, mixed] * 3, "three interleaved steps of each"
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(weights.grad is None for weights in network.parameters())


def test_bf16_that_is_emulated_is_timed_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(launch.time, "perf_counter", lambda: sum(clock))
    assert launch.faster_precision("cpu", Timed(clock, 1.0, 9.0), torch.rand(2, 1, 8, 8)).precision == "32"
    assert clock[1:] == [1.0, 9.0]


def test_logits_are_float32_in_either_precision():
    network = torch.nn.Linear(3, 2)
    for precision in ("32", "bf16"):
        model = launch.start("cpu", precision).setup(copy.deepcopy(network))
        assert model(torch.rand(4, 3)).dtype == torch.float32


def test_auto_takes_what_is_there():
    assert launch.accelerator("cpu") == "cpu"
    assert launch.accelerator("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(MachineError, match="no usable GPU") as raised:
        launch.start("cuda", "32")
    assert raised.value.exit_code == 5


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is not None, reason="mpi4py is installed")
def test_processes_of_mpi_that_cannot_meet_are_refused():
    with pytest.raises(MachineError, match="mpi4py"):
        launch.start("cpu", "32", World(2, 1, 0, "MPI"))
