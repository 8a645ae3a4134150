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


@pytest.mark.parametrize("broken", ["{", "[1]", '{"event": "epoch", "stage": 1}', '"epoch"'])
def test_curves_refuse_a_damaged_record_by_its_line(tmp_path: Path, broken: str) -> None:
    with pytest.raises(DataError, match="line 2 is no record of a run"):
        drawn(tmp_path, record(1, 1), broken)


def test_curves_without_an_epoch_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no epoch of this run is complete yet"):
        drawn(tmp_path, json.dumps({"event": "started"}))
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        plots.curves(tmp_path / "elsewhere" / "metrics.jsonl", tmp_path / "curves.png")


def test_drawing_needs_neither_torch_nor_a_window(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from damcli.report import plots\n"
        f"plots.roc({{'a': []}}, Path({str(tmp_path / 'a.png')!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot', 'rich', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
