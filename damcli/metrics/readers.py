"""The ROC curve of scores beside the operating points of readers: which readers it passes above, and by how much.

A reader calls a unit positive or not, and so is one point: false positive rate and sensitivity. The scores are compared
with it at its own false positive rate, by the straight lines of their ROC curve; where the curve rises upright, at the
upper end. Both are measured on the labelled units that the reader called, and counted in whole units, so that a tie is
found exactly. A reader is beaten where the curve lies strictly above: a tie is not beaten.

NRBC, the number of readers beaten by the classifier, is the mean over findings of the number of readers beaten (Yuan,
Yan, Sonka, Yang, ICCV 2021, who say nothing of ties); readers beside ROC curves: Irvin et al., AAAI 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damcli.metrics.auroc import checked
from damcli.metrics.delong import Estimate, tail_of
from damcli.metrics.intervals import Groups, from_draws, members_of, obstacle, quantiles, weights, wilson
from damcli.metrics.ranking import Ranking

Float64 = NDArray[np.float64]
BEATEN = 4  # its place among the figures
RULE = (
    "beaten where the ROC curve, linear between its points, lies strictly above the reader's sensitivity at the "
    "reader's false positive rate; a tie is not beaten"
)


class ReaderPoint(NamedTuple):
    """A reader beside the scores, on the `units` that are labelled and called; `uncalled` ones are labelled alone.

    `model_sensitivity` is that of the scores at the reader's false positive rate, `difference` that minus the reader's
    sensitivity. Where a class is missing all is nan with the reason in `why`, and `beaten` None.
    """

    false_positive_rate: Estimate
    sensitivity: Estimate
    model_sensitivity: float
    difference: Estimate
    beaten: bool | None
    units: int
    uncalled: int

    @property
    def why(self) -> str:
        """Say why there is no comparison; empty where there is one."""
        return self.sensitivity.why if self.beaten is None else ""


class ReadersBeaten(NamedTuple):
    """Readers by finding and name; how many are beaten, None for a finding in which one has no point; and the mean.

    `nrbc` is the mean over the findings where each of the `of` readers has a point.
    """

    points: list[dict[str, ReaderPoint]]
    beaten: list[int | None]
    nrbc: Estimate
    of: int


def readers_beaten(
    targets: ArrayLike,
    scores: ArrayLike,
    readers: Mapping[str, ArrayLike],
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> ReadersBeaten:
    """Compare scores with readers, finding by finding; `targets`, `scores` and the calls of each reader are (N,K).

    Targets and calls hold 1, 0 or nan (unlabelled, not called), scores finite numbers of any scale. Intervals are from
    draws of `groups` with replacement (`damcli.metrics.intervals.weights`), in each of which reader and ROC curve are
    measured anew: between the quantiles of the draws for the differences and for NRBC. An NRBC that no draw leaves
    reaches one reader of one finding further, as far as there is one: few patients cannot prove it. The rates of a
    reader have Wilson's interval where every unit is a group of its own. A finding in which a reader has no comparison,
    as with fewer than two groups that hold a positive, or a negative, is left out of NRBC. Raises `ValueError` for
    other values or shapes.

    >>> found = readers_beaten([[0], [0], [1], [1]], [[0.1], [0.4], [0.4], [0.8]], {"r1": [[0], [0], [0], [1]]})
    >>> point = found.points[0]["r1"]
    >>> point.false_positive_rate.value, point.sensitivity.value, point.model_sensitivity, point.beaten
    (0.0, 0.5, 0.5, False)
    """
    truth, values = np.asarray(targets, np.float64), np.asarray(scores)
    calls = {name: np.asarray(each, np.float64) for name, each in readers.items()}
    if truth.ndim != 2 or any(each.shape != truth.shape for each in (values, *calls.values())):
        raise ValueError("targets, scores and the calls of each reader must be (N,K) of one shape")
    tail_of(level)
    findings = range(truth.shape[1])
    pairs = [_Pair(k, truth[:, k], values[:, k], each[:, k], groups) for k in findings for each in calls.values()]
    drawn = _drawn(pairs, groups, len(truth), draws, seed)
    single = members_of(groups, len(truth))[1] == len(truth)
    made = [_point(pair, drawn[:, at].T, single, level) for at, pair in enumerate(pairs)]
    points = [dict(zip(calls, made[k * len(calls) :], strict=False)) for k in findings]
    beaten = [_number(each) for each in points]
    counted = [at for at, pair in enumerate(pairs) if beaten[pair.finding] is not None]
    nrbc = _nrbc([each for each in beaten if each is not None], drawn[:, counted, BEATEN], len(calls), level)
    return ReadersBeaten(points, beaten, nrbc, len(calls))


class _Pair:
    """A reader and the scores of one finding, on the units that are labelled and called."""

    def __init__(
        self, finding: int, truth: Float64, scores: NDArray[Any], calls: Float64, groups: Groups | None
    ) -> None:
        positive, negative, _ = checked(truth, scores)
        called = ~np.isnan(calls)
        wrong = called & (calls != 0) & (calls != 1)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(f"calls must be 0, 1 or nan; got {calls[at]} at index {at}")
        self.finding, self.scores, self.groups = finding, scores, groups
        self.truth = np.where(called, truth, np.nan)
        self.units = int(((positive | negative) & called).sum())
        self.uncalled = int(((positive | negative) & ~called).sum())
        # Weights times these are the reader's false and true positives of each draw.
        self.calls = np.column_stack([negative & (calls == 1), positive & (calls == 1)]).astype(np.float64)
        self.why = obstacle(self.truth, groups)
        if self.uncalled and not self.units:
            self.why = "the reader called no labelled unit"

    @property
    def key(self) -> tuple[int, bytes]:
        """What the ranking depends on, mostly the same for all readers of a finding."""
        return self.finding, self.truth.tobytes()

    def clusters(self, kind: int) -> NDArray[np.intp]:
        """Return the group of each unit of a class."""
        return members_of(self.groups, len(self.truth))[0][self.truth == kind]


def _drawn(pairs: list[_Pair], groups: Groups | None, scans: int, draws: int, seed: int) -> Float64:
    """Return the figures of each pair (1 + draws, P, 5), first of the units as they are, then of each draw."""
    rankings = {pair.key: Ranking.of(pair.truth, pair.scores) for pair in pairs}
    keys = [pair.key for pair in pairs]
    found = [np.zeros((0, len(pairs), 5))]

    def measure(drawn: NDArray[np.int64]) -> None:
        counts = {key: ranking.counts(drawn) for key, ranking in rankings.items()}
        times = drawn.astype(np.float64)
        figures = [_figures(*counts[key], times @ pair.calls) for key, pair in zip(keys, pairs, strict=True)]
        found.append(np.stack(figures, axis=1))

    if pairs:
        measure(np.ones((1, scans), np.int64))
        for drawn in weights(groups, scans, draws, seed):
            measure(drawn)
    return np.concatenate(found)


def _figures(true: Float64, false: Float64, called: Float64) -> Float64:
    """Return (d, 5): the reader's rates, the scores' sensitivity, the difference, and 1 where beaten, else 0.

    `true` and `false` (d, T+1) are the counts of a ranking, `called` (d, 2) the reader's false and true positives; nan
    where a class is missing.
    """
    alarms, hits = called.T
    # The last place with no more false positives than the reader: the upper end of an upright line.
    place = (false <= alarms[:, None]).sum(axis=1, keepdims=True) - 1
    after = np.minimum(place + 1, true.shape[1] - 1)
    t0, f0, t1, f1 = (np.take_along_axis(c, at, axis=1)[:, 0] for at in (place, after) for c in (true, false))
    # In whole numbers, so that a tie is exactly 0; at the last place there is no line to go along.
    along = np.where(f1 > f0, f1 - f0, 1.0)
    reached = t0 * along + (t1 - t0) * (alarms - f0)
    ahead = reached - hits * along
    positives, negatives = true[:, -1], false[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = (
            alarms / negatives,
            hits / positives,
            reached / along / positives,
            ahead / along / positives,
            ahead > 0,
        )
    return np.where(((positives > 0) & (negatives > 0))[:, None], np.column_stack(columns), np.nan)


def _point(pair: _Pair, figures: Float64, single: bool, level: float) -> ReaderPoint:
    """Return the point from its figures (5, 1 + draws)."""
    if pair.why:
        nothing = Estimate(math.nan, math.nan, math.nan, pair.why)
        return ReaderPoint(nothing, nothing, math.nan, nothing, None, pair.units, pair.uncalled)
    rates = []
    for kind in (0, 1):
        value, clusters = float(figures[kind, 0]), pair.clusters(kind)
        called = int(pair.calls[:, kind].sum())
        interval = wilson(called, len(clusters), level)
        rates.append(
            Estimate(value, *interval) if single else from_draws(figures[kind, 1:], value, groups=clusters, level=level)
        )
    difference = _difference(float(figures[3, 0]), figures[3, 1:], pair.clusters(1), level)
    beaten = bool(figures[BEATEN, 0])
    return ReaderPoint(rates[0], rates[1], float(figures[2, 0]), difference, beaten, pair.units, pair.uncalled)


def _difference(value: float, drawn: Float64, clusters: NDArray[np.intp], level: float) -> Estimate:
    """Return the difference with its interval; `clusters` are the groups of the positives."""
    if why := _undrawn(drawn):
        return Estimate(math.nan, math.nan, math.nan, why)
    low, high = quantiles(drawn, value, level)
    if abs(value) == 1:
        # One is right and the other wrong on every positive. The share q of such positives is at least the exact bound
        # of all in all, and the difference is then at least q − (1 − q).
        least = 2 * from_draws([1.0], 1.0, groups=clusters, level=level).low - 1
        low, high = (min(low, least), high) if value > 0 else (low, max(high, -least))
    if low == high:
        return Estimate(math.nan, math.nan, math.nan, f"every draw gives {value:g}")
    return Estimate(value, low, high)


def _undrawn(drawn: Float64) -> str:
    """Say why draws give no interval: half of them or more lack a class."""
    lacking = int(np.isnan(drawn).sum())
    return f"undefined in {lacking} of {len(drawn)} draws" if 2 * lacking >= len(drawn) else ""


def _number(points: Mapping[str, ReaderPoint]) -> int | None:
    """Return how many readers of a finding are beaten; None unless all of them can be compared."""
    beaten = [point.beaten for point in points.values()]
    return None if None in beaten or not beaten else sum(map(bool, beaten))


def _nrbc(beaten: list[int], drawn: Float64, readers: int, level: float) -> Estimate:
    """Return the mean of the numbers `beaten`; `drawn` (1 + draws, findings · readers) is 1 where one is beaten."""
    if not beaten:
        return Estimate(math.nan, math.nan, math.nan, "in no finding can all readers be compared")
    value = math.fsum(beaten) / len(beaten)
    means = drawn[1:].sum(axis=1) / len(beaten)
    if why := _undrawn(means):
        return Estimate(math.nan, math.nan, math.nan, why)
    low, high = quantiles(means, value, level)
    if low == high:
        low, high = max(0.0, value - 1 / len(beaten)), min(float(readers), value + 1 / len(beaten))
    return Estimate(value, low, high)
