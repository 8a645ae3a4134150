"""The drawings of an evaluation's page, as SVG: curves with bands, spread of scores, reliability, intervals, course."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from damcli.metrics import RocCurve, roc_curve
from damcli.metrics.calibration import Bin
from damcli.metrics.ranking import Ranking
from damcli.report import plots, svg

Values = npt.NDArray[np.floating[Any]]
Point = tuple[float, float]  # a share of the negatives that is called positive, and one of the positives
SQUARE, WIDE = (300, 290), (430, 280)
BINS = 20
UNIT = (0.0, 1.0)
RECALLS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
FALSE_POSITIVE_RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)


class Band(NamedTuple):
    """Where a curve's interval lies: `low` and `high` at the places of `grid`, all (G,)."""

    grid: Values
    low: Values
    high: Values


class Histogram(NamedTuple):
    """How many scores of either class lie in each bin: `edges` (B + 1,), counts (B,)."""

    edges: Values
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Curves:
    """What is drawn of a finding; bands are None where they are undefined.

    `recall` and `precision` (T,) are the ends of the steps that average precision is the area under. `reliability`
    holds bins by the name of what the scores are: "as scored", "after temperature".
    """

    roc: RocCurve
    recall: Values
    precision: Values
    histogram: Histogram
    roc_band: Band | None = None
    precision_band: Band | None = None
    reliability: Mapping[str, Sequence[Bin]] = field(default_factory=dict)

    @classmethod
    def of(cls, targets: Values, scores: Values, **others: Any) -> Curves:
        """Return the curves of scores (n,) of any scale and targets (n,), 1, 0 or NaN (left out).

        The histogram's bins go from 0 to 1 where all scores do, else over their range.

        >>> curves = Curves.of(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
        >>> curves.recall.tolist(), curves.precision.round(3).tolist()
        ([0.5, 1.0], [1.0, 0.667])
        """
        ranking = Ranking.of(targets, scores)
        true, false = ranking.counts()
        rises = np.diff(true) > 0
        recall, called = true[1:][rises] / max(true[-1], 1), (true + false)[1:][rises]
        low, high = (ranking.thresholds[-1], ranking.thresholds[0]) if len(ranking.order) else UNIT
        if low >= 0 and high <= 1:
            low, high = UNIT
        elif high - low <= 1e-9 * abs(low):  # all alike
            high = low + max(1.0, abs(low) / 1000)
        edges = np.linspace(low, high, BINS + 1)
        values = np.asarray(scores, np.float64)[ranking.order]
        counts = [np.histogram(values[chosen], edges)[0] for chosen in (ranking.positive, ~ranking.positive)]
        precision = true[1:][rises] / called
        return cls(roc_curve(targets, scores), recall, precision, Histogram(edges, *counts), **others)

    def roc_numbers(self) -> list[tuple[float, float, float | None, float | None]]:
        """Return rows of 1 − specificity, sensitivity and its interval, read off the curve between its corners."""
        fpr, tpr = self.roc.false_positive_rate, self.roc.true_positive_rate
        at = np.array(FALSE_POSITIVE_RATES)
        # Where the curve is upright its upper end is meant.
        here = np.minimum(np.searchsorted(fpr, at, "right"), len(fpr) - 1) - 1
        across = np.maximum(fpr[here + 1] - fpr[here], 1e-300)
        values = tpr[here] + (at - fpr[here]) / across * (tpr[here + 1] - tpr[here])
        return _with_band(at, values, self.roc_band)

    def precision_numbers(self) -> list[tuple[float, float, float | None, float | None]]:
        """Return rows of recall, precision and its interval: those of the first threshold that reaches the recall."""
        at = np.array(RECALLS)
        reached = np.minimum(np.searchsorted(self.recall, at - 1e-12), len(self.recall) - 1)
        return _with_band(at, self.precision[reached], self.precision_band)


def _with_band(at: Values, values: Values, band: Band | None) -> list[tuple[float, float, float | None, float | None]]:
    if band is None:
        return [(*row, None, None) for row in zip(at.tolist(), values.tolist(), strict=True)]
    low, high = (np.interp(at, band.grid, ends).tolist() for ends in (band.low, band.high))
    return list(zip(at.tolist(), values.tolist(), low, high, strict=True))


def roc(
    curves: Curves,
    title: str,
    description: str,
    name: str,
    points: Sequence[Point] = (),
    readers: Iterable[Point] = (),
) -> str:
    """Draw a ROC curve with its band, the operating points as diamonds and the readers as rings."""
    axes = svg.Axes(SQUARE, UNIT, UNIT, ("1 − specificity", "sensitivity"))
    axes.line(np.array(UNIT), np.array(UNIT), "reference")
    if curves.roc_band:
        axes.band(*curves.roc_band)
    axes.line(curves.roc.false_positive_rate, curves.roc.true_positive_rate)
    for across, up in readers:
        axes.marks([across], [up], "ring", READER)
    for number, (across, up) in enumerate(points):
        axes.marks([across], [up], "diamond", point_number(number))
    return axes.text(title, description, name)


READER = 6


def point_number(number: int) -> int:
    """Return the line number, and so the colour, of an operating point: not that of the curve or of the readers."""
    return 1 + number % (READER - 1)


def precision_recall(curves: Curves, prevalence: float, title: str, description: str, name: str) -> str:
    """Draw precision over recall in the steps that average precision adds up, its band, and chance: the prevalence."""
    axes = svg.Axes(SQUARE, UNIT, UNIT, ("recall (sensitivity)", "precision (PPV)"))
    axes.line(np.array(UNIT), np.full(2, prevalence), "reference")
    if curves.precision_band:
        axes.band(*curves.precision_band)
    starts = np.concatenate([[0.0], curves.recall[:-1]])
    axes.line(np.stack([starts, curves.recall], axis=1).ravel(), np.repeat(curves.precision, 2))
    return axes.text(title, description, name)


def histogram(curves: Curves, title: str, description: str, name: str) -> str:
    """Draw how each class is spread over the scores, both of the same area (the paper's Figure 4)."""
    edges, *classes = curves.histogram
    shares = [counts / max(counts.sum(), 1) for counts in classes]
    top = max(share.max() for share in shares) or 1.0
    axes = svg.Axes(SQUARE, (edges[0], edges[-1]), (0.0, 1.05 * top), ("score", "share of the class"), percent=True)
    for share, kind, number in ((shares[1], "filled", 0), (shares[0], "outline", 1)):
        if share.any():
            axes.stairs(edges, share, kind, number)
    return axes.text(title, description, name)


def reliability(bins: Mapping[str, Sequence[Bin]], title: str, description: str, name: str) -> str:
    """Draw the share of positives over the mean score of each bin, with intervals; on the diagonal scores are true."""
    axes = svg.Axes(SQUARE, UNIT, UNIT, ("mean score", "share that is positive"))
    axes.line(np.array(UNIT), np.array(UNIT), "reference")
    for number, each in enumerate(bins.values()):
        score, observed, low, high, _ = np.array(each, np.float64).reshape(-1, 5).T
        # The last is what is used, and has the page's first colour.
        look = len(bins) - 1 - number
        axes.whiskers(score, low, high, look)
        axes.line(score, observed, "thin", look)
        axes.marks(score, observed, "dot", look)
    return axes.text(title, description, name)


@dataclass(frozen=True)
class Scale:
    """The common axis of the intervals in a table; `reference` is chance, or no difference."""

    low: float
    high: float
    reference: float

    WIDTH, MARGIN = 160, 14

    @classmethod
    def of(cls, figures: Iterable[Mapping[str, Any]], signed: bool = False) -> Scale:
        """Return an axis that holds all figures and their intervals: from 0.5, or lower, to 1; `signed`: around 0.

        >>> Scale.of([{"value": 0.8, "low": 0.43, "high": 0.9}])
        Scale(low=0.4, high=1.0, reference=0.5)
        >>> Scale.of([{"value": 0.02, "low": -0.013, "high": 0.05}], signed=True)
        Scale(low=-0.05, high=0.05, reference=0.0)
        """
        known = [each[key] for each in figures for key in ("low", "value", "high") if each[key] is not None]
        if signed:
            most = max([0.01, *map(abs, known)])
            step = next(
                step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, math.inf) if step >= most - 1e-9 or step == 1.0
            )
            return cls(-step, step, 0.0)
        return cls(min([0.5, *(math.floor(value * 10 + 1e-9) / 10 for value in known)]), 1.0, 0.5)

    def _at(self, value: float) -> float:
        return self.MARGIN + (value - self.low) / (self.high - self.low) * (self.WIDTH - 2 * self.MARGIN)

    def ruler(self) -> str:
        """Draw the axis itself, for the head of the column; what it says the column's texts say too."""
        numbers = [self.low, (self.low + self.high) / 2, self.high]
        texts = "".join(
            f'<text x="{self._at(value):.1f}" y="13" text-anchor="middle">{svg.tick(round(value, 3))}</text>'
            f'<path class="grid" d="M{self._at(value):.1f} 17v5"/>'
            for value in numbers
        )
        return f'<svg aria-hidden="true" viewBox="0 0 {self.WIDTH} 22" width="{self.WIDTH}" height="22">{texts}</svg>'

    def interval(self, figure: Mapping[str, Any], title: str, name: str) -> str:
        """Draw a figure and its interval, for a cell of the column; nothing where it is undefined."""
        if figure["value"] is None:
            return ""
        low, value, high = (figure[key] for key in ("low", "value", "high"))
        parts = [f'<path class="reference" d="M{self._at(self.reference):.1f} 0v22"/>']
        if low is not None and high is not None:
            parts.append(f'<path class="whisker c0" d="M{self._at(low):.1f} 11H{self._at(high):.1f}"/>')
        parts.append(svg.mark(self._at(value), 11, "dot", 0))
        text = f"{value:.3f}" + (f", {low:.3f} to {high:.3f}" if low is not None else "")
        text += f", on an axis from {self.low:g} to {self.high:g}"
        return svg.document(self.WIDTH, 22, "".join(parts), title, text, name)


class Panel(NamedTuple):
    """A drawing of several lines, and their names in the order of their looks."""

    title: str
    drawing: str
    lines: list[str]


def training(course: plots.Course, name: str) -> list[Panel]:
    """Draw a run's course: its loss by stage, its AUROCs on the tune part, and AUC-M's a, b and α."""
    epochs = len(course.epochs)
    losses = plots.losses(course)
    axes = _course_axes((0, epochs), [y for each in losses for y in (*each.steps[1], *each.means[1])], "epoch", "loss")
    for number, each in enumerate(losses):
        axes.line(*_arrays(each.steps), "faint", number)
        axes.line(*_arrays(each.means), "line", number)
    title = "Training loss: each step (faint) and each epoch’s mean"
    panels = [Panel(title, axes.text(title, _course_text(course), f"{name}-loss"), [each.name for each in losses])]
    aurocs = plots.aurocs(course)
    axes = _course_axes((0, epochs), [y for _, (_, y) in aurocs], "epoch", "AUROC")
    for number, (_, values) in enumerate(aurocs):
        axes.line(*_arrays(values), "line", number)
    title = "AUROC on the tune part"
    panels.append(Panel(title, axes.text(title, _course_text(course), f"{name}-auroc"), [each for each, _ in aurocs]))
    for number, (title, lines) in enumerate(plots.saddles(course).items()):
        steps = [step for at, _ in lines.values() for step in at]
        ends = (min(steps), max(max(steps), min(steps) + 1))
        axes = _course_axes(ends, [value for _, values in lines.values() for value in values], "step", "a, b, α")
        for line, at in enumerate(lines.values()):
            axes.line(*_arrays(at), "line", line)
        panels.append(Panel(title, axes.text(title, "Values of each step.", f"{name}-saddle-{number}"), list(lines)))
    return panels


def _course_axes(x: tuple[float, float], y: Iterable[Any], across: str, up: str) -> svg.Axes:
    known = np.concatenate([np.zeros(0), *map(np.ravel, y)])
    known = known[np.isfinite(known)]
    low, high = (known.min(), known.max()) if len(known) else UNIT
    room = 0.04 * (high - low) or 0.5
    return svg.Axes(WIDE, x, (low - room, high + room), (across, up), whole=True)


def _course_text(course: plots.Course) -> str:
    return f"{len(course.epochs)} epochs; the numbers are in the table below."


def _arrays(line: tuple[Sequence[float], Sequence[float]]) -> tuple[Values, Values]:
    return np.array(line[0], np.float64), np.array(line[1], np.float64)
