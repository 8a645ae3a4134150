"""`damcli train`: settings with their origins, what `--loss` means, refusals, and a run that survives SIGKILL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from damcli.commands import train
from damcli.data.store import Dataset
from damcli.errors import UsageError
from damcli.training import checkpoint, folder, loop

QUICK = ("--recipe", "demo", "--precision", "32", "--device", "cpu", "--set", "batch_size=16")
SHORT = ("--set", "stage1.epochs=1", "--set", "stage2.epochs=1")


def values(resolved):
    return {key: (value, origin) for key, value, origin in resolved.lines()}


def damcli(*arguments):
    """Start damcli as a user does, with one thread so that its figures can be compared with this process's."""
    command = [sys.executable, "-m", "damcli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_settings_come_in_layers_and_each_names_its_origin(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("batch_size = 8\nseed = 1\nbackbone = 'a'\n[stage2]\nlr = 0.01\nmargin = 0.3\n")
    (tmp_path / "own.toml").write_text("extends = 'demo'\n[stage1]\nlr = 0.004\n[stage2]\nlr = 0.2\n")
    monkeypatch.setenv("DAMCLI_SEED", "2")
    monkeypatch.setenv("DAMCLI_STAGE2__LR", "0.02")
    own = str(tmp_path / "own.toml")
    found = values(train.resolve(own, None, tmp_path / "mine.toml", ["stage2.lr=0.03"], backbone="b", seed=None))
    assert found["stage1.lr"] == (0.004, "recipe own")
    assert found["batch_size"] == (8, "mine.toml")
    assert found["stage2.margin"] == (0.3, "mine.toml")
    assert found["seed"] == (2, "environment")
    assert found["stage2.lr"] == (0.03, "--set stage2.lr")
    assert found["backbone"] == ("b", "--backbone")
    assert found["tune_fraction"] == (0.15, "default")


def test_loss_names_the_second_stage_or_makes_one_stage_of_the_same_length():
    recipe = ["stage1.epochs=3", "stage1.lr=0.004", "stage2.epochs=2"]
    plain = train.resolve("demo", None, None, recipe).value
    square = values(train.resolve("demo", "aucs", None, recipe))
    assert square["stage2.loss"] == ("aucs", "--loss")
    assert square["stage1.epochs"] == (3, "--set stage1.epochs")
    for loss in ("ce", "focal"):
        resolved = train.resolve("demo", loss, None, recipe)
        [(number, stage)] = resolved.value.stages()
        assert (number, stage.loss, stage.epochs, stage.sampler) == (1, loss, 5, "uniform")
        assert (stage.optimizer, stage.lr) == (plain.stage1.optimizer, 0.004)
        assert resolved.origins["stage1.epochs"] == "--loss"


def test_a_second_stage_that_is_not_there_cannot_have_a_loss():
    with pytest.raises(UsageError, match="no epochs"):
        train.resolve("demo", "aucm", None, ["stage2.epochs=0"])


def test_show_config_names_every_origin(run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_here("train", "--recipe", "demo", "--seed", "7", "--show-config", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["seed"] == {"value": 7, "origin": "--seed"}
    assert shown["stage2.loss"] == {"value": "aucm", "origin": "recipe demo"}
    assert shown["tune_fraction"]["origin"] == "default"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent"], 3, "no dataset"),
        ([], 2, "no dataset under data/"),
        (["--loss", "hinge"], 2, "choose aucm"),
        (["--recipe", "nosuch"], 2, "choose one of"),
        (["--set", "stage2.lrr=1"], 2, "did you mean stage2.lr?"),
        (["--set", "stage2.gamma=500"], 2, "gamma multiplies"),
        (["--device", "tpu"], 2, "choose auto, cpu or cuda"),
        (["--resume", "absent"], 3, "no run"),
        (["--resume", "absent", "--seed", "3"], 2, "keeps its settings"),
        (["--resume", "absent", "--recipe", "demo"], 2, "keeps its settings"),
        (["--resume", "absent", "--checkpoint-every", "3 steps"], 2, "--checkpoint-every cannot be given"),
        (["--checkpoint-every", "soon"], 2, "setting checkpoint_every: takes a time or steps"),
        (["--set", "stage2.findings=Edema"], 2, "should be a list"),
        (["--metadata-weight", "0.3"], 2, "--metadata-weight is for --metadata"),
        (["--allow-leaks"], 2, "--allow-leaks is for --metadata"),
        (["{toy}", "--log", "nosuch", "--dry-run"], 2, "no logger 'nosuch'"),
        (["{toy}", "--weights", "absent.safetensors"], 2, "no such file of weights"),
        (["{toy}", "--backbone", "densenet12"], 2, "did you mean densenet121"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(run_here, tmp_path, monkeypatch, toy, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    got, out, err = run_here("train", *(argument.format(toy=toy) for argument in arguments))
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_checks_and_writes_nothing(run_here, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_here("train", toy, *QUICK, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert [stage["loss"] for stage in plan["stages"]] == ["ce", "aucm"]
    assert plan["train_scans"] + plan["tune_scans"] == len(Dataset.open(toy).rows("train"))
    assert {row["finding"] for row in plan["findings"]} == {"Edema", "Fracture"}
    assert list(tmp_path.iterdir()) == []


def test_without_paths_it_takes_the_newest_dataset_and_names_a_run(run_here, make_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_toy(tmp_path / "data" / "toy", scans=90)
    code, out, err = run_here("train", *QUICK, *SHORT, "--json")
    assert code == 0, err
    result = json.loads(out)
    run = Path(result["run"])
    assert run.parent == Path("runs")
    assert run.name.endswith("-demo")
    assert set(result["tune_auroc"]) == {"Edema", "Fracture"}
    assert "newest under data/" in err
    assert f"next: damcli evaluate {run}" in err.splitlines()[-1]
    assert {"config.toml", "run.json", "environment.json", "metrics.jsonl", "tune.parquet", "curves.png"} <= {
        file.name for file in run.iterdir()
    }
    assert folder.read_run(run).facts.recipe_name == "demo"


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    recipe = train.resolve("demo", None, None, [word for word in (*QUICK, *SHORT) if "=" in word], precision="32").value
    list(loop.train(recipe, Dataset.open(toy), run, device="cpu"))
    return run


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_process_that_is_stopped_anywhere_is_resumed_to_the_same_bits(
    run_here, toy, unbroken, tmp_path, number, code
):
    run = tmp_path / "run"
    often = () if number != signal.SIGKILL else ("--set", "checkpoint_every=1 step")
    process = damcli("train", toy, *QUICK, *SHORT, *often, "-o", run)
    deadline = time.monotonic() + 100
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline, "the run did not get anywhere"
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # a signal may also come after the last step
        assert process.returncode == code, err
        if number != signal.SIGKILL:
            assert err.splitlines()[-1] == f"next: damcli train --resume {run}"
        assert run_here("train", "--resume", run, "--device", "cpu", "-q")[0] == 0
    for name in ("last", "best"):
        weights = checkpoint.load_weights(unbroken, name)
        assert all(torch.equal(value, weights[key]) for key, value in checkpoint.load_weights(run, name).items())
    assert (run / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    scores = [pl.read_parquet(each / "scores-tune.parquet") for each in (run, unbroken)]
    assert scores[0].equals(scores[1])


def test_resuming_without_the_dataset_says_how_to_name_it(run_here, unbroken, toy, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    moved.symlink_to(unbroken)  # links are followed: the dataset still lies where the run's own place says
    assert run_here("train", "--resume", moved, "--show-config", "-q")[0] == 0
    moved.unlink()
    shutil.copytree(unbroken, moved)
    code, _, err = run_here("train", "--resume", moved)
    assert code == 3
    assert f"damcli train DATASET --resume {moved}" in err
    assert run_here("train", toy, "--resume", moved, "-q", "--device", "cpu")[0] == 0
