"""Pictures as PNG files, drawn by matplotlib's own canvas: the same on every machine, no window, no global state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from damcli.errors import DataError
from damcli.files import replacing
from damcli.metrics import Estimate, RocCurve
from damcli.report import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without their yellow, told apart also by readers who see fewer; after seven the dashes change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
DPI = 150
COLUMNS = 3  # panels beside one another
BINS = np.linspace(0, 1, 21)
SADDLE = {"a": "a", "b": "b", "alpha": "α"}
Values = npt.NDArray[np.floating[Any]]
Line = tuple[Sequence[float], list[float]]
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}


@dataclass(frozen=True)
class RocLine:
    """A finding's ROC curve with its AUROC, for the legend."""

    name: str
    curve: RocCurve
    auroc: Estimate


def roc(panels: Mapping[str, Sequence[RocLine]], path: Path) -> None:
    """Draw ROC curves into the PNG `path`, one panel per title side by side, AUROC and interval in the legends.

    A finding keeps its colour and dashes in every panel; one without an AUROC is named in the legend with the reason.
    """
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    style = {name: _style(number) for number, name in enumerate(names)}
    longest = max(len(lines) for lines in panels.values())
    with figure_at(path, (5.0 * len(panels), 5.6 + 0.2 * longest)) as figure:
        for number, (title, lines) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=(0, (1, 3)))
            for line in lines:
                drawn = not line.auroc.why
                axes.plot(
                    line.curve.false_positive_rate if drawn else [],
                    line.curve.true_positive_rate if drawn else [],
                    label=f"{line.name}  {tables.in_words(line.auroc)}",
                    **style[line.name],
                )
            axes.set(title=title, xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
            axes.legend(title="AUROC (95 % interval)", loc="upper center", bbox_to_anchor=(0.5, -0.14), **LEGEND)


def curves(metrics_jsonl: Path, path: Path) -> None:
    """Draw a run's course into the PNG `path`: its loss, its AUROCs on the tune part, and AUC-M's a, b and α.

    Reads the records of `metrics.jsonl` (`training.observation`) whose `event` is `epoch` or `step`; null is a gap. Of
    what was trained twice, after a resume, the last counts. Raises `DataError` if the file is missing or damaged, or no
    epoch is complete yet.
    """
    course = read_course(metrics_jsonl)
    found = saddles(course)
    rows = -(-len(found) // COLUMNS)
    with figure_at(path, (12.0, 4.2 + 2.6 * rows)) as figure:
        parts = figure.subfigures(2 if rows else 1, 1, height_ratios=[4.2, 2.6 * rows] if rows else None, squeeze=False)
        left, right = parts[0, 0].subplots(1, 2)
        _losses(left, course)
        _aurocs(right, course)
        for number, (title, lines) in enumerate(found.items(), 1):
            axes = parts[1, 0].add_subplot(rows, COLUMNS, number)
            for line, (name, (steps, values)) in enumerate(lines.items()):
                axes.plot(steps, values, label=name, **{**_style(line), "linestyle": DASHES[line % len(DASHES)]})
            axes.set_title(title, fontsize=10)
            axes.set(xlabel="step", ylabel="a, b, α")
            axes.legend(loc="best", **LEGEND)


def _losses(axes: Axes, course: Course) -> None:
    """Draw every step's loss thin and every epoch's mean bold, a colour for each stage: their losses differ."""
    for number, each in enumerate(losses(course)):
        style = _style(number)
        axes.plot(*each.steps, color=style["color"], linewidth=0.6, alpha=0.45)
        axes.plot(*each.means, label=each.name, marker="o", markersize=3.5, **style)
    axes.set(title="training loss: each step, and each epoch's mean", xlabel="epoch", ylabel="loss")
    _epoch_axis(axes, course)


def _aurocs(axes: Axes, course: Course) -> None:
    lines = aurocs(course)
    for number, (name, line) in enumerate(lines):
        mean = number > 0 and number == len(lines) - 1
        style = {"color": "0.35", "linewidth": 2.6} if mean else _style(number)
        axes.plot(*line, label=name, marker="o", markersize=3.5, **style)
    axes.set(title="AUROC on the tune part", xlabel="epoch", ylabel="AUROC", ylim=(None, 1.005))
    _epoch_axis(axes, course)


def _epoch_axis(axes: Axes, course: Course) -> None:
    """Count whole epochs, and draw a line where one stage ends and the next begins."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    stages = [stage for stage, _ in course.epochs]
    for number in range(1, len(stages)):
        if stages[number] != stages[number - 1]:
            axes.axvline(number, color="0.6", linewidth=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **LEGEND)


@dataclass(frozen=True)
class Losses:
    """A stage's loss over epochs: of every step, and every epoch's mean; both as (x, y)."""

    name: str
    steps: Line
    means: Line


def losses(course: Course) -> list[Losses]:
    """Return the loss of each stage; the steps of epoch n lie between n − 1 and n."""
    found = []
    for stage in dict.fromkeys(stage for stage, _ in course.epochs):
        epochs = [(n, key) for n, key in enumerate(course.epochs, 1) if key[0] == stage]
        steps = [(n, course.steps[key]) for n, key in epochs]
        x = [n - 1 + (k + 1) / len(each) for n, each in steps for k in range(len(each))]
        y = gaps([record["loss"] for _, each in steps for record in each])
        means = gaps([course.epochs[key]["loss"] for _, key in epochs])
        found.append(Losses(f"stage {stage}", (x, y), ([n for n, _ in epochs], means)))
    return found


def aurocs(course: Course) -> list[tuple[str, Line]]:
    """Return each finding's AUROC on the tune part over epochs, as (x, y); of several findings last their mean too."""
    epochs = list(course.epochs.values())
    findings = list(dict.fromkeys(finding for epoch in epochs for finding in epoch["tune_auroc"]))
    at = list(range(1, len(epochs) + 1))
    found: list[tuple[str, Line]] = []
    for finding in findings:
        values = gaps([epoch["tune_auroc"].get(finding) for epoch in epochs])
        undefined = " (n/a)" if all(value != value for value in values) else ""
        found.append((finding + undefined, (at, values)))
    if len(findings) > 1:
        found.append(("mean", (at, gaps([epoch["mean_tune_auroc"] for epoch in epochs]))))
    return found


def saddles(course: Course) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return a, b and α by stage and finding: the steps of the stage, and the values there."""
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for key, epoch in course.epochs.items():
        for record in course.steps[key]:
            for name in (name for name in SADDLE if name in record):
                for finding, value in zip(epoch["tune_auroc"], record[name], strict=True):
                    lines = found.setdefault(f"stage {key[0]}: {finding}", {})
                    steps, values = lines.setdefault(SADDLE[name], ([], []))
                    steps.append(record["step"])
                    values += gaps([value])
    return found


@dataclass(frozen=True)
class Course:
    """The records of a run's epochs by (stage, epoch), in order, and those of the steps of each."""

    epochs: dict[tuple[int, int], dict[str, Any]]
    steps: dict[tuple[int, int], list[dict[str, Any]]]


def read_course(metrics_jsonl: Path) -> Course:
    """Return a run's course from its `metrics.jsonl`; raises what `curves` raises."""
    try:
        lines = metrics_jsonl.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError("this run has no metrics.jsonl", where=metrics_jsonl.parent) from error
    epochs: dict[tuple[int, int], dict[str, Any]] = {}
    steps: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["event"] == "step":
                wanted = {"step", "loss", *(SADDLE.keys() & record.keys())}
                here = steps.setdefault((record["stage"], record["epoch"]), {})
                here[record["step"]] = {name: record[name] for name in wanted}
            elif record["event"] == "epoch":
                key = (record["stage"], record["epoch"])
                epochs.pop(key, None)
                epochs[key] = {name: record[name] for name in ("loss", "tune_auroc", "mean_tune_auroc")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"line {number} is no record of a run", where=metrics_jsonl) from error
    if not epochs:
        raise DataError("no epoch of this run is complete yet", where=metrics_jsonl)
    course = Course(epochs, {key: [made for _, made in sorted(steps.get(key, {}).items())] for key in epochs})
    for key, epoch in epochs.items():
        if any(
            len(made[name]) != len(epoch["tune_auroc"])
            for made in course.steps[key]
            for name in SADDLE.keys() & made.keys()
        ):
            raise DataError("its steps and epochs are of different findings", where=metrics_jsonl)
    return course


def gaps(values: Sequence[float | None]) -> list[float]:
    """Return the values with NaN, which is not drawn, where there is none."""
    return [float("nan") if value is None else value for value in values]


def histogram(panels: Mapping[str, tuple[Values, Values]], path: Path) -> None:
    """Draw how the scores of positives and of negatives are spread, a panel for each finding, into the PNG `path`.

    `panels` holds targets (n,) of 1, 0 and NaN = unknown, which is left out, and scores (n,) in [0, 1] by finding. Both
    classes have the area 1, so that few positives show as well as many negatives (the paper's Figure 4).
    """
    rows = -(-len(panels) // COLUMNS)
    with figure_at(path, (4.2 * min(COLUMNS, len(panels)), 3.2 * rows)) as figure:
        for number, (finding, (targets, scores)) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, min(COLUMNS, len(panels)), number)
            for name, value, colour, filled in (("negatives", 0, COLOURS[0], 0.45), ("positives", 1, COLOURS[1], 0.0)):
                chosen = scores[targets == value]
                label = f"{len(chosen):,} {name}" if len(chosen) else f"no {name}"
                style: dict[str, Any] = {"edgecolor": colour, "facecolor": (colour, filled), "linewidth": 1.6}
                axes.stairs(spread(chosen), BINS, fill=True, label=label, **style)
            axes.set_title(finding, fontsize=11)
            top = 1.35 * max(spread(scores[targets == value]).max() for value in (0, 1))  # room for the legend
            axes.set(xlabel="score", ylabel="density", xlim=(0, 1), ylim=(0, top or 1))
            axes.legend(loc="upper center", **LEGEND)


def spread(scores: Values) -> Values:
    """Return the density of scores (n,) in [0, 1] over the histogram's bins: of area 1, or 0 where there are none.

    >>> spread(np.array([0.01, 0.02, 0.99, 1.0]))[[0, 1, -1]].round(6).tolist()
    [10.0, 0.0, 10.0]
    """
    counts, _ = np.histogram(scores, BINS)
    return counts / max(counts.sum(), 1) / np.diff(BINS)


def _style(number: int) -> dict[str, Any]:
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes, "linewidth": 1.6}


@contextmanager
def figure_at(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure with matplotlib's default style, whatever the user has set; save it whole at the end."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context("default"):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure
        with replacing(path) as draft:
            # Without the writer's version the same picture is the same file; "tight" keeps what lies outside the axes.
            figure.savefig(draft, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
