"""What the vendors' loggers get: numbers by name and nothing else, offline, going on where a run was stopped."""

from __future__ import annotations

import getpass
import json
import os
import platform
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from damcli.errors import MachineError, UsageError
from damcli.training import loggers

FINDINGS = ["Edema", "Lung/Lesion [new]"]


def step(number: int, **values: object) -> dict[str, object]:
    return {"event": "step", "stage": 2, "epoch": 1, "step": number, "loss": number / 4, **values}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with what tells it from others; and no settings of the vendors' own."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(loggers, "SECONDS_PER_STEP", 0.0)
    folder = tmp_path / "secret-place" / "aucm"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "environment.json").write_text(json.dumps({"started": "2026-01-01T00:00:00"}))
    return folder


def log(name: str, run: Path, *steps: int) -> None:
    opened = loggers.open([name], run)
    for number in steps:
        assert opened.log(step(number, a=[0.5, None]), number, FINDINGS) == []
    assert opened.close() == []


def test_figures_are_named_by_stage_event_and_finding_and_hold_numbers_only() -> None:
    record = step(7, a=[0.5, None], positives=(3, 1), scan="scan0001.png", best=True)
    assert loggers.figures(record, FINDINGS) == {
        "stage2/step/loss": 1.75,
        "stage2/step/a/Edema": 0.5,
        "stage2/step/positives/Edema": 3.0,
        "stage2/step/positives/Lung_Lesion__new_": 1.0,
    }
    epoch = {"event": "epoch", "stage": 1, "epoch": 2, "loss": float("nan"), "tune_auroc": {"Edema": 0.75, "B": None}}
    assert loggers.figures(epoch, FINDINGS) == {"stage1/epoch/tune_auroc/Edema": 0.75}


class Kept:
    """A logger that keeps what it gets, or fails from a step on."""

    def __init__(self, fails_at: float = float("inf")) -> None:
        self.steps: list[int] = []
        self.fails_at = fails_at
        self.closed = False

    def log(self, figures, step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


def test_of_the_steps_of_a_second_the_first_is_logged_and_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(loggers.time, "monotonic", lambda: clock[0])
    kept = Kept()
    opened = loggers.Loggers({"kept": kept})
    for number in range(1, 41):
        opened.log(step(number), number, FINDINGS)
        clock[0] += 0.125
    opened.log({"event": "epoch", "stage": 2, "epoch": 1, "loss": 0.5}, 40, FINDINGS)
    assert kept.steps == [1, 9, 17, 25, 33, 40]


def test_a_logger_that_fails_is_left_out_and_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "SECONDS_PER_STEP", 0.0)
    good, bad = Kept(), Kept(fails_at=2)
    opened = loggers.Loggers({"mlflow": bad, "wandb": good})
    said = [opened.log(step(number), number, FINDINGS) for number in (1, 2, 3)]
    assert said[0] == said[2] == []
    assert said[1] == ["mlflow failed and is left out from here on: ConnectionError: the server is gone"]
    assert opened.close() == []
    assert (good.steps, good.closed, bad.closed) == ([1, 2, 3], True, False)


def test_no_logger_and_unknown_and_missing_ones(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loggers.open([], run).log(step(1), 1, FINDINGS) == []
    with pytest.raises(UsageError, match="choose of tensorboard, wandb, mlflow"):
        loggers.check(["tensorbored"])
    for found in (None, ModuleSpec("wandb", None)):  # not there; a folder of that name here
        monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(MachineError, match=r"pip install 'damcli\[wandb\]'") as refused:
            loggers.check(["wandb"])
        assert refused.value.exit_code == 5


def test_tensorboard_shows_a_run_that_was_killed_and_resumed_once(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", run, 1, 2, 3, 4)
    log("tensorboard", run, 3, 4, 5)  # killed after the 4th, its checkpoint after the 2nd
    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    assert shown.Tags()["scalars"] == ["stage2/step/loss", "stage2/step/a/Edema"]
    assert [(one.step, one.value) for one in shown.Scalars("stage2/step/loss")] == [(n, n / 4) for n in range(1, 6)]


@pytest.mark.slow
def test_wandb_writes_an_offline_run_that_names_nobody(run: Path) -> None:
    pytest.importorskip("wandb")
    log("wandb", run, 1, 2)
    log("wandb", run, 2, 3)
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{files[0].stem.removeprefix('run-')}.wandb"] * 2
    written = b"".join(file.read_bytes() for file in files)
    assert b"stage2/step/a/Edema" in written
    for private in ("secret-place", platform.node(), getpass.getuser(), os.getcwd()):  # noqa: PTH109
        assert len(private) < 4 or private.encode() not in written


@pytest.mark.slow
def test_mlflow_writes_a_file_and_goes_on_with_the_same_run(run: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    log("mlflow", run, 1, 2)
    log("mlflow", run, 3)
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    [found] = client.search_runs([client.get_experiment_by_name("damcli").experiment_id])
    assert (found.info.run_name, found.info.status) == ("aucm", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "stage2/step/loss")
    assert sorted((one.step, one.value) for one in history) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert found.data.metrics["stage2/step/a/Edema"] == 0.5


def test_a_logger_that_does_not_open_is_an_error_with_a_way_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked_out(run: Path) -> loggers.Logger:
        raise PermissionError("no key is set")

    monkeypatch.setattr(loggers, "check", lambda names: None)
    monkeypatch.setitem(loggers.OPENERS, "wandb", locked_out)
    with pytest.raises(MachineError, match=r"no key is set\n  where: --log wandb\n  fix: .*damcli\[wandb\]"):
        loggers.open(["wandb"], run)


def test_a_member_is_named_with_the_folder_that_it_is_part_of(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert loggers._name(Path()) == "aucm"
    (run.parent / "members.json").write_text("{}")
    assert loggers._name(Path()) == "secret-place/aucm"
