"""Pictures as PNG files, drawn by matplotlib's own canvas: the same on every machine, no window, no global state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Draw a run's training loss and its AUROCs on the tune part, epoch by epoch, into the PNG `path`.

    Reads the records of `metrics.jsonl` whose `event` is `epoch`: `stage`, `epoch`, `loss`, `tune_auroc` (by finding,
    null where undefined) and `mean_tune_auroc`. Of an epoch that was trained twice, after a resume, the last counts.
    Raises `DataError` if the file is missing or damaged, or no epoch is complete yet.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = _epochs(metrics_jsonl)
    stages = list(dict.fromkeys(epoch["stage"] for epoch in epochs))
    findings = list(dict.fromkeys(finding for epoch in epochs for finding in epoch["tune_auroc"]))
    with figure_at(path, (12.0, 4.2)) as figure:
        losses, aurocs = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        for number, stage in enumerate(stages):
            shown = [None if epoch["stage"] != stage else epoch["loss"] for epoch in epochs]
            _line(losses, shown, f"stage {stage}", **_style(number))
        for number, finding in enumerate(findings):
            _line(aurocs, [epoch["tune_auroc"].get(finding) for epoch in epochs], finding, **_style(number))
        _line(aurocs, [epoch["mean_tune_auroc"] for epoch in epochs], "mean", color="0.35", linewidth=2.6)
        losses.set(title="training loss", xlabel="epoch", ylabel="loss")
        aurocs.set(title="AUROC on the tune part", xlabel="epoch", ylabel="AUROC", ylim=(None, 1.005))
        for axes in (losses, aurocs):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number in range(1, len(epochs)):
                if epochs[number]["stage"] != epochs[number - 1]["stage"]:
                    axes.axvline(number + 0.5, color="0.6", linewidth=0.8)
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **LEGEND)


def _epochs(metrics_jsonl: Path) -> list[dict[str, Any]]:
    try:
        lines = metrics_jsonl.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError("this run has no metrics.jsonl", where=metrics_jsonl.parent) from error
    epochs: dict[tuple[int, int], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["event"] == "epoch":
                key = (record["stage"], record["epoch"])
                epochs.pop(key, None)
                epochs[key] = {name: record[name] for name in ("stage", "loss", "tune_auroc", "mean_tune_auroc")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"line {number} is no record of a run", where=metrics_jsonl) from error
    if not epochs:
        raise DataError("no epoch of this run is complete yet", where=metrics_jsonl)
    return list(epochs.values())


def _line(axes: Axes, values: Sequence[float | None], label: str, **style: Any) -> None:
    """Draw values by epoch, counted from 1, with a gap where there is none."""
    gaps = [float("nan") if value is None else value for value in values]
    axes.plot(range(1, len(values) + 1), gaps, label=label, marker="o", markersize=3.5, **style)


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
