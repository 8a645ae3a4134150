"""`damcli info runs`: best first within dataset and split, members below their folder, what is not finished said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from damcli.cli import main
from damcli.commands import leaderboard
from damcli.data.store import Dataset
from damcli.files import write_json
from damcli.recipes import Recipe, Stage
from damcli.training import group, loop


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one short epoch on `toy`; copy it only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", stage2=Stage(epochs=1))
    for _ in loop.train(recipe, Dataset.open(toy), folder, device="cpu"):
        pass
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def copy(trained: Path, to: str, done: bool = True) -> Path:
    shutil.copytree(trained, to)
    # Its dataset is named relative to it, and it has moved.
    facts = json.loads(Path(to, "run.json").read_text())
    write_json(Path(to, "run.json"), {**facts, "dataset": str((trained / facts["dataset"]).resolve())})
    if not done:
        Path(to, "scores-tune.parquet").unlink()
    return Path(to)


def evaluated(run: Path, split: str, auroc: float | None, used: bool = False, dataset: str = "data/chexpert") -> None:
    low, high = (None, None) if auroc is None else (auroc - 0.05, auroc + 0.03)
    mean = {"value": auroc, "low": low, "high": high, "why": "no positives" if auroc is None else None}
    folder = run / f"evaluation-{split}"
    folder.mkdir()
    document = {"mean": {"auroc": mean}, "truth": {"path": dataset, "split": split}, "selection": {"used": used}}
    write_json(folder / "metrics.json", document)


def test_runs_are_sorted_by_dataset_split_and_auroc(trained: Path) -> None:
    figures = {"worse": 0.71, "best": 0.93, "undefined": None, "middle": 0.8}
    for name, auroc in figures.items():
        evaluated(copy(trained, f"runs/{name}"), "valid", auroc)
    evaluated(Path("runs/worse"), "test", 0.99)
    evaluated(Path("runs/best"), "train", 1.0, used=True)
    evaluated(copy(trained, "runs/other"), "valid", 0.5, dataset="data/another")
    copy(trained, "runs/new")
    found = leaderboard.rows(Path("runs"))
    assert [(row["dataset"], row["split"], Path(row["run"]).name) for row in found] == [
        ("another", "valid", "other"),
        ("chexpert", "test", "worse"),
        ("chexpert", "train", "best"),
        ("chexpert", "valid", "best"),
        ("chexpert", "valid", "middle"),
        ("chexpert", "valid", "worse"),
        ("chexpert", "valid", "undefined"),
        ("dataset", "tune", "new"),
    ]
    assert found[3]["low"] == pytest.approx(0.88)
    assert [found[2]["remark"], found[3]["remark"], found[6]["remark"]] == ["used for selection", "", "no positives"]
    assert found[7]["remark"] == "not evaluated yet: damcli evaluate runs/new"
    assert 0 <= found[7]["auroc"] <= 1
    assert found[7]["low"] is None


def test_a_run_that_is_not_finished_says_how_far_it_is(trained: Path) -> None:
    copy(trained, "runs/half", done=False)
    early = copy(trained, "runs/early", done=False)
    shutil.rmtree(early / "checkpoints")
    broken = copy(trained, "runs/broken", done=False)
    (broken / "checkpoints/last/state.json").write_text('{"progress": 3}')
    said = {Path(row["run"]).name: row["remark"] for row in leaderboard.rows(Path("runs"))}
    assert said == {
        "half": "not finished, stage 2 after 1 epochs and 0 steps: damcli train --resume runs/half",
        "early": "not finished, before its first checkpoint: damcli train --resume runs/early",
        "broken": "the last checkpoint is damaged",
    }


def test_members_lie_under_their_folder(trained: Path, toy: Path, capsys) -> None:
    copy(trained, "runs/alone")
    recipe = Recipe(backbone="test_resnet", precision="32", stage2=Stage(epochs=1))
    folds = [group.Member(folder=f"fold-{k}", fold=k) for k in range(4)]
    made = group.describe(Path("runs/folds"), "folds", folds, recipe, Dataset.open(toy))
    group.create(made)
    for k, auroc in enumerate((0.6, 0.9)):
        evaluated(copy(trained, f"runs/folds/fold-{k}"), "valid", auroc, dataset=str(toy))
        made.note(folds[k], status="done")
    copy(trained, "runs/folds/fold-2", done=False)
    evaluated(Path("runs/folds"), "valid", 0.85, dataset=str(toy))

    with pytest.raises(SystemExit) as ended:
        main(["info", "runs", "--json"])
    assert not ended.value.code
    alone, folder = json.loads(capsys.readouterr().out)["runs"]
    assert "members" not in alone
    assert (folder["run"], folder["kind"], folder["auroc"]) == ("runs/folds", "folds", 0.85)
    assert folder["remark"] == "2 of 4 trained: damcli train --resume runs/folds"
    members = {Path(row["run"]).name: row for row in folder["members"]}
    assert [members["fold-0"]["auroc"], members["fold-1"]["auroc"]] == [0.6, 0.9]
    assert members["fold-2"]["remark"].startswith("not finished, stage 2 after 1 epochs")
    assert members["fold-3"] == {"run": "runs/folds/fold-3", "remark": "not begun"}

    with pytest.raises(SystemExit):
        main(["info", "runs"])
    lines = capsys.readouterr().out.splitlines()
    [below] = [number for number, line in enumerate(lines) if line.startswith(" runs/folds")]
    order = ["fold-2", "fold-1", "fold-0", "fold-3"]  # on tune, on valid, without a figure
    assert [line.split()[0] for line in lines[below + 1 : below + 5]] == order
    assert all(line.startswith("   fold-") for line in lines[below + 1 : below + 5])
    assert lines[below].split()[5:7] == ["0.850", "0.800–0.880"]


def test_a_damaged_run_and_no_runs_are_said(trained: Path, capsys) -> None:
    copy(trained, "runs/good")
    Path("runs/bad").mkdir()
    Path("runs/bad/config.toml").write_text("backbone = 3")
    rows = {Path(row["run"]).name: row for row in leaderboard.rows(Path("runs"))}
    assert "missing" in rows["bad"]["remark"]
    assert rows["good"]["auroc"] is not None
    with pytest.raises(SystemExit):
        main(["info", "runs", "elsewhere"])
    assert "there are no runs under elsewhere" in capsys.readouterr().err
