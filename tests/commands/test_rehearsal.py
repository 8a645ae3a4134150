"""`damcli train --dry-run`: the plan's figures, after a batch of each stage was trained on; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from damcli.cli import main
from damcli.commands import train
from damcli.commands.train import rehearsal
from damcli.data.store import Dataset
from damcli.errors import DataError
from damcli.training import plan

SETTINGS = ["batch_size=16", "stage1.epochs=3", "stage2.epochs=2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_figures_are_the_plans_and_nothing_is_written(toy: Path, tmp_path: Path) -> None:
    settings = train.resolve("demo", None, None, SETTINGS, precision="32")
    found = rehearsal.check(settings, toy, Path("runs/a"), "cpu")
    assert list(tmp_path.iterdir()) == []

    dataset = Dataset.open(toy)
    planned = plan.make(settings.value, dataset)
    assert (found["train_scans"], found["tune_scans"]) == (len(planned.train), len(planned.tune))
    stages = found["stages"]
    assert [(one["stage"], one["loss"], one["epochs"], one["steps_per_epoch"]) for one in stages] == [
        (1, "ce", 3, -(-len(planned.train) // 16)),
        (2, "aucm", 2, len(planned.stages[1].sampler)),
    ]
    assert all(one["seconds_per_step"] > 0 for one in stages)
    steps = sum(one["epochs"] * one["steps_per_epoch"] * one["seconds_per_step"] for one in stages)
    scoring = 6 * len(planned.tune) / found["scored_per_second"]  # after each of 5 epochs, and the best once more
    assert found["estimated_seconds"] == pytest.approx(steps + scoring)

    for k, row in enumerate(found["findings"]):
        truth = dataset.truth(planned.tune)[:, k]
        assert (row["tune_positives"], row["tune_negatives"]) == ((truth == 1).sum(), (truth == 0).sum())
        assert row["train_positives"] == np.sum(dataset.targets(planned.train)[:, k] >= 0.5)
    assert found["parameters"] > 100_000
    assert (found["device"], found["precision"]) == ("cpu", "32")
    assert found["peak_memory_of"] == "rise of the process's resident memory"


def test_with_json_it_is_one_document_and_as_text_it_says_the_estimate(toy: Path, tmp_path: Path, capsys) -> None:
    words = ["train", str(toy), "--recipe", "demo", "--precision", "32", "--device", "cpu", "--dry-run"]
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert not ended.value.code
        out = capsys.readouterr().out
        if more:
            assert json.loads(out)["stages"][1]["optimizer"] == "pesg"
        else:
            assert "Plan (nothing was written)" in out
            assert "estimated time" in out
            assert "MiB (rise of the process's resident memory)" in out
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_breaks_at_once_is_found_before_the_run(toy: Path, tmp_path: Path) -> None:
    settings = train.resolve("demo", None, None, [*SETTINGS, "stage1.optimizer=sgd", "stage1.lr=1e30"], precision="32")
    with pytest.raises(DataError, match="stage 1, epoch 1") as refused:
        rehearsal.check(settings, toy, Path("runs/a"), "cpu")
    assert "lower learning rate" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_it_is_the_leading_ones_part(toy: Path) -> None:
    settings = train.resolve("demo", None, None, SETTINGS, precision="32")
    one, two = (rehearsal.check(settings, toy, Path("runs/a"), "cpu", processes=many) for many in (1, 2))
    steps = [[stage["steps_per_epoch"] for stage in found["stages"]] for found in (one, two)]
    assert steps[0] == steps[1]


def test_precision_auto_says_what_it_chose_and_why(toy: Path) -> None:
    settings = train.resolve("demo", None, None, [*SETTINGS, "precision=auto"])
    found = rehearsal.check(settings, toy, Path("runs/a"), "cpu")
    assert found["precision"].startswith(("32 (measured: ", "bf16 (measured: "))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_on_a_gpu_it_is_the_gpus_memory(toy: Path, precision: str) -> None:
    settings = train.resolve("demo", None, None, SETTINGS, precision=precision)
    found = rehearsal.check(settings, toy, Path("runs/a"), "cuda")
    assert found["peak_memory_of"] == "GPU memory allocated"
    assert found["peak_memory_bytes"] > 2 * 4 * found["parameters"]  # weights and gradients at least
