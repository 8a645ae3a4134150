"""`--tta N` from the command line: `evaluate` and `export` score the same fixed views, or say why there are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from damcli.bundle.runtime import Model
from damcli.cli import main
from damcli.data import augment
from damcli.data.store import Dataset
from damcli.errors import UsageError
from damcli.recipes import Augmentation, Recipe, Stage
from damcli.training import scoring
from damcli.training.checkpoint import load_network, read_run

STRENGTHS = Augmentation(rotate=20, shear=5, flip=True, holes=2, brightness=0.2)
STILL = Augmentation(rotate=0, translate=0, scale=0, holes=2, brightness=0.2)
VIEWS = 4


def train(toy: Path, folder: Path, strengths: Augmentation) -> Path:
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=1, lr=1e-3)
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", augment=strengths, stage2=stage)
    for _ in train(recipe, Dataset.open(toy), folder, device="cpu"):
        pass
    return folder


@pytest.fixture(scope="module")
def run(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy, tmp_path_factory.mktemp("views") / "moved", STRENGTHS)


@pytest.fixture(scope="module")
def still(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(toy, tmp_path_factory.mktemp("views") / "still", STILL)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def damcli(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert (end.value.code or 0) == code


def scores(file: Path, dataset: Dataset) -> np.ndarray:
    return pl.read_parquet(file).select(dataset.info.findings).to_numpy()


def test_evaluate_and_export_give_the_mean_over_the_same_views(
    run: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damcli("evaluate", run, toy, "--tta", VIEWS)
    remark = f"test-time augmentation: a score is the mean over {VIEWS} views of a scan"
    shown = capsys.readouterr()
    assert remark in shown.out
    assert shown.err.endswith(f"next: damcli export {run} --tta {VIEWS}\n")
    folder = run / f"evaluation-valid-tta{VIEWS}"
    assert remark in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["notes"]
    assert not (run / "evaluation-valid").exists(), "the figures without views keep their place"

    # Brute force: each scan alone, through each map in turn.
    dataset = Dataset.open(toy)
    rows = dataset.rows("valid")
    network, info = load_network(run)
    maps = scoring.views(info.recipe, VIEWS, run)
    assert len(maps) == VIEWS - 1
    expected = []
    for scan in network.as_input(torch.from_numpy(dataset.read(rows))):
        views = [scan[None], *(augment.move(scan[None], view[None]) for view in maps)]
        with torch.no_grad():
            expected.append(np.mean([network(view).sigmoid().numpy()[0] for view in views], axis=0))
    got = scores(folder / "scores-valid.parquet", dataset)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    damcli("evaluate", run, toy, "-o", "plain")
    assert np.abs(scores(Path("plain", "scores-valid.parquet"), dataset) - got).max() > 1e-3

    damcli("export", run, "--tta", VIEWS, "-o", "views.onnx")
    assert remark in capsys.readouterr().err
    model = Model.open(Path("views.onnx"), "cpu")
    assert [member.views for member in model.info.members] == [VIEWS]
    np.testing.assert_allclose(model.score(dataset.read(rows)), got, atol=1e-5)
    damcli("evaluate", "views.onnx", toy, "-o", "model")
    assert remark in capsys.readouterr().out
    np.testing.assert_allclose(scores(Path("model", "scores-valid.parquet"), dataset), got, atol=1e-5)


def test_views_depend_on_the_seed_and_their_number_alone(run: Path) -> None:
    recipe = read_run(run).recipe
    ten = scoring.views(recipe, 10, run)
    assert ten.shape == (9, 2, 3)
    assert torch.equal(scoring.views(recipe, 4, run), ten[:3])
    assert len(ten.flatten(1).unique(dim=0)) == 9
    assert not torch.equal(scoring.views(recipe.model_copy(update={"seed": 1}), 10, run), ten)


def test_where_all_views_would_be_the_scan_they_are_refused(
    still: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("evaluate", still, toy), ("export", still, "-o", "still.onnx")):
        damcli(*command, "--tta", 3, code=2)
        streams = capsys.readouterr()
        assert "the 3 views would all be the same: the run was trained without moving its scans" in streams.err
        assert streams.out == ""
    assert not list(Path().iterdir())
    assert not list(still.glob("evaluation*"))
    # Of flips alone a draw may hold none: then they are one and the same as well.
    flips = STILL.model_copy(update={"flip": True})
    recipes = [read_run(still).recipe.model_copy(update={"augment": flips, "seed": seed}) for seed in range(20)]
    refused = 0
    for recipe in recipes:
        try:
            assert scoring.views(recipe, 2, still)[0, 0, 0] == -1
        except UsageError:
            refused += 1
    assert 3 < refused < 17


def test_what_is_no_run_has_no_views_of_its_own(run: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.onnx").touch()
    Path("s.csv").touch()
    for subject, words in (
        ("m.onnx", ("a model's views are fixed when it is exported", "damcli export RUN --tta 30")),
        ("s.csv", ("scores are made already", "name the run they are from")),
    ):
        damcli("evaluate", subject, toy, "--tta", 30, code=2)
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    damcli("evaluate", run, toy, "--tta", 1, code=2)
    assert "--tta" in capsys.readouterr().err
