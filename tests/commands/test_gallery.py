"""The gallery: which scans are shown, that they are the dataset's own pixels, and that nothing says whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.commands.evaluate import evaluate, gallery
from damcli.data.overlays import picture
from damcli.data.scores import ScanTable
from damcli.data.store import Dataset
from damcli.errors import UsageError
from damcli.report.evaluation import Evaluation

SEEN = "heat maps (Grad-CAM) show where the network saw the finding, each on a scale of its own"


@pytest.fixture(scope="session")
def scans(make_toy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans that are large enough for a feature map of 2 × 2; read them only."""
    return make_toy(tmp_path_factory.mktemp("gallery") / "dataset", scans=120, size=64)


@pytest.fixture(scope="session")
def run(scans: Path) -> Path:
    """A run of one short epoch; read it only."""
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=1, lr=1e-3)
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", stage2=stage)
    for _ in train(recipe, Dataset.open(scans), scans.parent / "ce", device="cpu"):
        pass
    return scans.parent / "ce"


@pytest.fixture(scope="session")
def scored(run: Path, scans: Path) -> Evaluation:
    return evaluate(run, scans, "valid", "cpu")


def read(png: bytes) -> npt.NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


columns = st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 5)), min_size=1, max_size=12)


@given(columns, st.integers(1, 4))
def test_the_surest_are_picked(column: list[tuple[float, int]], number: int) -> None:
    truth, scores = np.array([[label] for label, _ in column]), np.array([[score / 8] for _, score in column])
    picks = gallery.pick(truth, scores, ["Edema"], number)
    assert picks == gallery.pick(truth, scores * 0.5 + 1, ["Edema"], number)
    right = [row for _, kind, row in picks if kind == "right"]
    wrong = [row for _, kind, row in picks if kind == "wrong"]
    positives = [row for row, (label, _) in enumerate(column) if label == 1]
    negatives = [row for row, (label, _) in enumerate(column) if label == 0]
    usual = np.median([column[row][1] for row in negatives]) if negatives else np.inf
    above = [row for row in positives if column[row][1] > usual]
    assert right == sorted(above, key=lambda row: (-column[row][1], row))[:number]
    missed = [row for row in positives if any(column[row][1] <= column[other][1] for other in negatives)]
    missed = sorted(set(missed) - set(right), key=lambda row: (column[row][1], row))
    alarms = [row for row in negatives if any(column[row][1] >= column[other][1] for other in positives)]
    alarms = sorted(alarms, key=lambda row: (-column[row][1], row))
    assert len(wrong) == min(number, len(missed) + len(alarms))
    shown = [row for row in wrong if row in missed], [row for row in wrong if row in alarms]
    assert shown == (missed[: len(shown[0])], alarms[: len(shown[1])])
    assert abs(len(shown[0]) - len(shown[1])) <= 1 or min(len(missed), len(alarms)) == min(map(len, shown))
    assert not set(right) & set(wrong)


def test_a_run_has_its_scans_with_heat_maps(scored: Evaluation, scans: Path) -> None:
    import torch

    from damcli.deepauc.heatmaps import heat
    from damcli.training.checkpoint import load_network

    items, notes = gallery.gallery(scored, "cpu", number=3)
    assert notes == (SEEN,)
    dataset = Dataset.open(scans)
    network, info = load_network(scored.subject)
    rows = dict(zip(dataset.manifest["id"], range(len(dataset.manifest)), strict=True))
    picks = gallery.pick(scored.truth.values, scored.scores, scored.truth.findings, 3)
    assert [(item.finding, item.kind) for item in items] == [(pick.finding, pick.kind) for pick in picks]
    assert {item.finding for item in items} == {"Edema", "Fracture"}
    for item, pick in zip(items, picks, strict=True):
        column = scored.truth.findings.index(item.finding)
        assert item.score == scored.scores[pick.row, column]
        assert item.truth == scored.truth.values[pick.row, column]
        image = dataset.read(np.array([rows[scored.truth.ids[pick.row]]]))
        np.testing.assert_array_equal(read(item.scan), image[0])
        expected = heat(network, network.as_input(torch.from_numpy(image)), info.findings.index(item.finding))
        assert item.heat == picture(image[0], expected[0].numpy())
    everything = b"".join(item.scan + (item.heat or b"") for item in items)
    assert not any(word.encode() in everything for word in ("scan0", "patient", "study", "absent"))
    again, _ = gallery.gallery(scored, "cpu", number=3)
    assert again == items


def test_what_the_heat_map_does_not_show_is_said(scored: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    from damcli.training import metadata

    _, notes = gallery.gallery(replace(scored, views=10), "cpu", number=1)
    assert notes == (SEEN, "heat maps are of the unmoved scan; the scores are the mean over 10 views")
    monkeypatch.setattr(metadata, "load", lambda *_: True)
    _, notes = gallery.gallery(scored, "cpu", number=1)
    assert notes[1] == "heat maps are of the network of images alone; the scores are mixed with those of the metadata"


def test_scores_alone_show_their_scans_and_say_why_there_is_no_heat(scored: Evaluation, scans: Path) -> None:
    expected, _ = gallery.gallery(scored, "cpu")
    for kind, why in gallery.NO_NETWORK.items():
        items, notes = gallery.gallery(replace(scored, kind=kind), "cpu")
        assert notes == (f"the gallery has no heat maps: {why}",)
        assert items == [replace(item, heat=None) for item in expected]


def test_a_table_of_labels_has_nothing_to_show(tmp_path: Path) -> None:
    pl.DataFrame({"path": ["a", "b"], "Edema": [0, 1]}).write_csv(tmp_path / "labels.csv")
    pl.DataFrame({"path": ["a", "b"], "Edema": [0.1, 0.9]}).write_csv(tmp_path / "scores.csv")
    found = evaluate(tmp_path / "scores.csv", tmp_path / "labels.csv")
    assert found.truth.ids == ScanTable.read(tmp_path / "labels.csv").ids
    with pytest.raises(UsageError, match="a table of labels has no images to show"):
        gallery.gallery(found)


def test_images_too_small_for_a_map_are_shown_without(
    run: Path, make_toy: Callable[..., Path], tmp_path: Path, scored: Evaluation
) -> None:
    small = make_toy(tmp_path / "small", scans=120, size=32)
    shown = replace(scored, truth=replace(scored.truth, path=small))
    items, notes = gallery.gallery(shown, "cpu")
    assert notes[0].startswith(
        "the gallery has no heat maps: of images of 32 pixels the last feature map of test_resnet"
    )
    assert all(item.heat is None for item in items)
