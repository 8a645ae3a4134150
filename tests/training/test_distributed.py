"""Two processes train as one does, and a run of theirs that is stopped goes on as if it had not been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch

from damcli import cli, console
from damcli.errors import UsageError
from damcli.training import checkpoint, world

pytestmark = pytest.mark.distributed

# Without batch normalisation, whose statistics are those of a process's own part.
RECIPE = """
backbone = "test_convnext"
batch_size = 16
precision = "32"
checkpoint_every = "1 step"
[stage1]
epochs = 1
lr = 2e-3
[stage2]
loss = "aucm"
optimizer = "pesg"
epochs = 2
lr = 0.1
sampler = "balanced"
decay_epochs = [1]
"""


def start(arguments, where, launcher=()):
    """Start damcli as a user does, or as a launcher with its variables, in a session of its own."""
    command = [sys.executable, "-m", "damcli", "train", *arguments, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(launcher)}
    return subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(arguments, where):
    process = start(arguments, where)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


def steps(run):
    """How many steps the metrics of a run have, those of both stages."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return sum(json.loads(line)["event"] == "step" for line in lines)


def stop_at(process, run, step, number):
    """Send a signal to the leading process alone once the run has made `step` steps; return its exit code."""
    deadline = time.monotonic() + 120
    while steps(run) < step:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "no step was made"
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def everything(run):
    state = {
        f"{which}/{name}": (run / "checkpoints" / which / f"{name}.safetensors").read_bytes()
        for which in ("last", "best")
        for name in ("model", "training")
    }
    return state | {name: (run / name).read_bytes() for name in ("metrics.jsonl", "scores-tune.parquet")}


@pytest.fixture(scope="module")
def place(make_toy, tmp_path_factory):
    """A folder with a dataset, a recipe and `two`: the run of two processes that Slurm started, and counts in all."""
    folder = tmp_path_factory.mktemp("distributed")
    make_toy(folder / "data", scans=96)
    (folder / "tiny.toml").write_text(RECIPE)
    shared = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    arguments = ["data", "--recipe", "tiny.toml", "-o", "two"]
    tasks = [start(arguments, folder, {"SLURM_PROCID": n, "SLURM_LOCALID": n, **shared}) for n in "01"]
    for task in tasks:
        _, err = task.communicate(timeout=200)
        assert task.returncode == 0, err.decode()
    return folder


@pytest.fixture
def alone(place, run_here, monkeypatch):
    """Returns `alone(*arguments)`: what one process, this one, says while it trains to its end."""

    def train(*arguments):
        monkeypatch.chdir(place)
        code, out, err = run_here("train", *arguments, "--device", "cpu")
        assert code == 0, err
        return out, err

    return train


def test_two_processes_end_with_the_weights_and_scores_of_one(place, alone):
    out, _ = alone("data", "--recipe", "tiny.toml", "-o", "one")
    assert out.count("one\n") == 1
    one, two = (checkpoint.load_weights(place / name, "last") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(weights, two[name], rtol=1e-3, atol=1e-4)
    one, two = (pl.read_parquet(place / name / "scores-tune.parquet") for name in ("one", "two"))
    assert one["path"].to_list() == two["path"].to_list(), "each scan once, in the order of the dataset"
    assert np.allclose(one[:, 1:].to_numpy(), two[:, 1:].to_numpy(), atol=1e-3)
    lines = [[json.loads(line) for line in (place / run / "metrics.jsonl").open()] for run in ("one", "two")]
    records = [[line for line in found if line["event"] == "step"] for found in lines]
    for single, double in zip(*records, strict=True):
        assert single["positives"] == double["positives"], "what is shown is the global batch"
        for key in ("loss", "losses", "positive_scores", "logit_gradients", "gradient_norm"):
            assert single[key] == pytest.approx(double[key], rel=2e-2, abs=2e-3)


def test_stopped_and_killed_in_either_stage_it_ends_with_the_same_bits(place):
    """The bits of `two`, which another launcher started."""
    arguments, run = ["data", "--recipe", "tiny.toml", "-o", "broken", "--devices", "2"], place / "broken"
    assert stop_at(start(arguments, place), run, 2, signal.SIGTERM) == 143
    resume = ["--resume", "broken", "--devices", "2"]
    # Of stage 1 there are four steps: the second epoch of stage 2 has begun.
    process = start(resume, place)
    assert stop_at(process, run, 12, signal.SIGKILL) == -signal.SIGKILL
    _, said = finish(resume, place)
    assert "in 2 processes" in said
    assert "goes on with" not in said
    assert everything(run) == everything(place / "two")


def test_another_number_of_processes_goes_on_with_a_warning(place, alone):
    arguments, run = ["data", "--recipe", "tiny.toml", "-o", "fewer", "--devices", "2"], place / "fewer"
    assert stop_at(start(arguments, place), run, 6, signal.SIGINT) == 130
    _, said = alone("--resume", "fewer")
    assert "the run was made with processes 2 so far and goes on with 1" in said
    assert checkpoint.latest(run).progress.stage == 2
    weights = checkpoint.load_weights(run, "last")
    for name, expected in checkpoint.load_weights(place / "two", "last").items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("follows", "together", "code"), [(0, True, 143), (1, False, 143), (1, True, 0)])
def test_a_process_that_follows_hides_its_end_only_once_the_run_has_started(monkeypatch, follows, together, code):
    """Else the leading one, which waits for it, would wait for ever: Fabric ends it after a code that is not 0."""
    monkeypatch.setattr(console, "state", console.State(follows=follows, together=together))
    monkeypatch.setattr(cli, "_run", lambda arguments: sys.exit(143))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code


def test_a_loss_that_is_not_finite_ends_all_processes_and_is_reported_once(place):
    arguments = ["data", "--recipe", "tiny.toml", "-o", "nan", "--devices", "2", "--set", "stage1.optimizer=sgd"]
    process = start([*arguments, "--set", "stage1.lr=1e30"], place)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 3, err.decode()
    report = json.loads((place / "nan" / "nonfinite.json").read_text())
    assert len(report["scans"]) in (15, 16), "the scans of both processes"
    assert "error: the" in err.decode()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, world.World(1, 1, 0, None)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, world.World(1, 1, 1, None)),
        (
            {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "train"},
            world.World(4, 2, 5, "Slurm"),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5"}, world.World(4, 2, 5, "Slurm")),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, world.World(1, 1, 0, None)),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            world.World(2, 1, 1, "MPI"),
        ),
    ],
)
def test_launchers_are_recognised(environment, expected):
    assert world.detect(environment=environment) == expected


def test_machines_that_do_not_know_of_one_another_are_refused_and_not_waited_for():
    with pytest.raises(UsageError, match="several machines"):
        world.detect(devices=2, nodes=2, environment={})
    known = {"MASTER_ADDR": "first", "NODE_RANK": "1"}
    assert world.detect(devices=2, nodes=2, environment=known) == world.World(2, 2, 2, None)


def test_other_numbers_than_the_launcher_started_are_refused():
    with pytest.raises(UsageError, match="torchrun started 2 processes"):
        world.detect(devices=4, environment={"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "0"})
