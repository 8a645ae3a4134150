"""Pictures: whole PNG files that depend on the figures alone, and say no more than the figures hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from damcli.errors import DataError
from damcli.metrics import components, estimate, roc_curve
from damcli.report import plots


def line(name: str, targets: list[float], scores: list[float]) -> plots.RocLine:
    return plots.RocLine(name, roc_curve(targets, scores), estimate([components(targets, scores)]))


EDEMA = line("Edema", [0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6])
FRACTURE = line("Fracture", [0, 0, 0, 0, 0, 0], [1, 2, 4, 3, 5, 6])


def share(picture: Path, colour: str) -> float:
    """The share of pixels that have a colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB"), int)
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return float((np.abs(pixels - wanted).sum(axis=2) < 12).mean())


def test_roc_is_the_same_file_whatever_matplotlib_is_set_to(tmp_path: Path) -> None:
    plots.roc({"CE": [EDEMA], "AUC-M": [EDEMA]}, tmp_path / "a.png")
    with matplotlib.rc_context({"lines.linewidth": 9, "figure.dpi": 30, "axes.facecolor": "black"}):
        plots.roc({"CE": [EDEMA], "AUC-M": [EDEMA]}, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_panels_lie_side_by_side(tmp_path: Path) -> None:
    plots.roc({"CE": [EDEMA]}, tmp_path / "one.png")
    plots.roc({"CE": [EDEMA], "AUC-M": [EDEMA]}, tmp_path / "two.png")
    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert 1.7 < two.width / one.width < 2.3
    assert abs(two.height - one.height) < 20


def test_a_finding_without_auroc_is_in_the_legend_only(tmp_path: Path) -> None:
    plots.roc({"CE": [EDEMA, FRACTURE]}, tmp_path / "roc.png")
    first, second = plots.COLOURS[:2]
    assert share(tmp_path / "roc.png", first) > 3 * share(tmp_path / "roc.png", second) > 0


def test_a_finding_keeps_its_colour_where_a_panel_lacks_another(tmp_path: Path) -> None:
    plots.roc({"first": [EDEMA, FRACTURE], "second": [FRACTURE]}, tmp_path / "both.png")
    plots.roc({"first": [FRACTURE]}, tmp_path / "alone.png")
    assert share(tmp_path / "alone.png", plots.COLOURS[0]) > 0
    assert share(tmp_path / "both.png", plots.COLOURS[1]) > 0


def record(stage: int, epoch: int, **changes: object) -> str:
    values = {"loss": 1 / (stage + epoch), "tune_auroc": {"Edema": 0.5 + epoch / 10}, "mean_tune_auroc": 0.6}
    return json.dumps({"event": "epoch", "stage": stage, "epoch": epoch, **values, **changes})


def drawn(folder: Path, *lines: str) -> bytes:
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
    plots.curves(folder / "metrics.jsonl", folder / "curves.png")
    return (folder / "curves.png").read_bytes()


def test_curves_take_the_last_of_an_epoch_trained_twice_and_skip_other_events(tmp_path: Path) -> None:
    plain = drawn(tmp_path, record(1, 1), record(1, 2), record(2, 1))
    started = json.dumps({"event": "started"})
    again = drawn(tmp_path, started, record(1, 1), record(1, 2, loss=9), record(1, 2), started, record(2, 1))
    assert again == plain
    assert drawn(tmp_path, record(1, 1), record(1, 2, loss=9), record(2, 1)) != plain


def test_curves_leave_a_gap_where_an_auroc_is_undefined(tmp_path: Path) -> None:
    assert drawn(
        tmp_path,
        record(1, 1, tune_auroc={"Edema": None}, mean_tune_auroc=None),
        record(1, 2, tune_auroc={"Edema": None}, mean_tune_auroc=None),
    )


def step(number: int, **values: object) -> str:
    return json.dumps({"event": "step", "stage": 2, "epoch": 1, "step": number, "loss": 0.5 / number, **values})


def test_curves_show_a_b_and_alpha_of_every_finding_where_the_loss_has_them(tmp_path: Path) -> None:
    epoch = record(2, 1, tune_auroc={"Edema": 0.8, "Fracture": None})
    for name, saddle in ("plain", {}), ("saddle", {"a": [0.9, 0.8], "b": [0.2, None], "alpha": [0.0, 0.1]}):
        drawn(tmp_path, *(step(number, **saddle) for number in range(1, 9)), epoch)
        (tmp_path / "curves.png").rename(tmp_path / f"{name}.png")
    heights = [Image.open(tmp_path / f"{name}.png").height for name in ("plain", "saddle")]
    assert heights[1] > heights[0] + 200
    alpha = plots.COLOURS[2]
    assert share(tmp_path / "saddle.png", alpha) > share(tmp_path / "plain.png", alpha) == 0


def test_curves_take_a_step_that_was_made_twice_once(tmp_path: Path) -> None:
    once = drawn(tmp_path, step(1), step(2), step(3), record(2, 1))
    assert drawn(tmp_path, step(1), step(2), step(3, loss=7), step(2), step(3), record(2, 1)) == once


def test_curves_refuse_a_step_with_other_findings_than_its_epoch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different findings"):
        drawn(tmp_path, step(1, a=[0.1, 0.2, 0.3]), record(2, 1))


@pytest.mark.parametrize("broken", ["{", "[1]", '{"event": "epoch", "stage": 1}', '"epoch"'])
def test_curves_refuse_a_damaged_record_by_its_line(tmp_path: Path, broken: str) -> None:
    with pytest.raises(DataError, match="line 2 is no record of a run"):
        drawn(tmp_path, record(1, 1), broken)


def test_curves_without_an_epoch_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no epoch of this run is complete yet"):
        drawn(tmp_path, json.dumps({"event": "started"}))
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        plots.curves(tmp_path / "elsewhere" / "metrics.jsonl", tmp_path / "curves.png")


def test_the_histogram_is_numpys_and_both_classes_have_the_same_area(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for scores in (rng.random(1000), rng.beta(1, 9, 37), np.array([0.0, 1.0, 0.025, 0.5])):
        expected, _ = np.histogram(scores, bins=20, range=(0, 1), density=True)
        np.testing.assert_allclose(plots.spread(scores), expected)
    assert not plots.spread(np.array([])).any()


def test_the_histogram_leaves_out_unknown_targets_and_draws_few_positives_as_large_as_many_negatives(
    tmp_path: Path,
) -> None:
    scores = np.concatenate([np.full(990, 0.21), np.full(10, 0.71), np.full(500, 0.51)])
    targets = np.concatenate([np.zeros(990), np.ones(10), np.full(500, np.nan)])
    plots.histogram({"Edema": (targets, scores)}, tmp_path / "with.png")
    known = targets == targets
    plots.histogram({"Edema": (targets[known], scores[known])}, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()
    assert share(tmp_path / "with.png", plots.COLOURS[0]) > 0
    assert share(tmp_path / "with.png", plots.COLOURS[1]) > 0


def test_the_histogram_of_one_class_and_of_many_findings(tmp_path: Path) -> None:
    one = (np.zeros(5), np.linspace(0, 1, 5))
    plots.histogram({"Fracture": one}, tmp_path / "one.png")
    plots.histogram({f"finding {k}": one for k in range(7)}, tmp_path / "seven.png")
    small, large = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "seven.png")
    assert 2.6 < large.width / small.width < 3.4
    assert 2.6 < large.height / small.height < 3.4


def test_drawing_needs_neither_torch_nor_a_window(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from damcli.report import plots\n"
        f"plots.roc({{'a': []}}, Path({str(tmp_path / 'a.png')!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot', 'rich', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
