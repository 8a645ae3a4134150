"""Scans sorted once by their score, and figures of that ranking for any number of weightings of its scans.

A draw of the bootstrap only changes how often each scan counts, never the order of the scores. So the sort is done
once, a draw is two running sums, and every figure is read off those for all draws at a time. One rule holds
throughout: a scan is called positive where its score is at least the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damcli.metrics.auroc import Mask, checked

Float64 = NDArray[np.float64]


class Counts(NamedTuple):
    """The weight of positives and of negatives called positive, both float64 (..., T+1).

    Place 0 calls no scan, place t those with a score of at least the ranking's threshold t−1; so the last place holds
    the whole classes. The leading axes are those of the weights.
    """

    true: Float64
    false: Float64


@dataclass(frozen=True, eq=False)
class Ranking:
    """The scans of known target by falling score.

    `order` (n,) are their rows among all `size` scans, `positive` (n,) whether they are, in that order. Of each of the
    T distinct scores, `ends` (T,) is the place in `order` of the last scan, and `thresholds` (T,) the score, falling.
    """

    order: NDArray[np.intp]
    positive: Mask
    ends: NDArray[np.intp]
    thresholds: Float64
    size: int

    @classmethod
    def of(cls, targets: ArrayLike, scores: ArrayLike) -> Ranking:
        """Return the ranking of `targets` and `scores`, both (N,), as `damcli.metrics.auroc` takes and raises.

        >>> Ranking.of([0, 0, 1, float("nan"), 1], [0.1, 0.4, 0.4, 0.5, 0.8]).thresholds.tolist()
        [0.8, 0.4, 0.1]
        """
        positive, negative, values = checked(targets, scores)
        known = np.flatnonzero(positive | negative)
        order = known[np.argsort(-values[known])]
        falling = values[order]
        ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(order)])
        return cls(order, positive[order], ends, falling[ends].astype(np.float64), len(values))

    def counts(self, weights: ArrayLike | None = None) -> Counts:
        """Return the counts at every threshold, each scan counting as often as `weights` (..., N) say; None: once.

        The weights are integers of 0 or more, of a sum below 2³¹. Raises `ValueError` for fractions or other scans.

        >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        >>> ranking.counts().true.tolist(), ranking.counts([2, 0, 1, 1]).false.tolist()
        ([0.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 2.0])
        """
        drawn = np.ones(self.size, np.int64) if weights is None else np.asarray(weights)
        if drawn.dtype.kind not in "iu" or drawn.shape[-1:] != (self.size,):
            raise ValueError(f"weights must be integers (..., {self.size}); got {drawn.dtype} {drawn.shape}")
        # Positives in the upper half of a word, negatives in the lower: the running sum is slow, and one does for both.
        sums = np.take(drawn, self.order, axis=-1) * np.where(self.positive, 1 << 32, 1)
        np.cumsum(sums, axis=-1, out=sums)
        if len(self.ends) < len(self.order):
            sums = np.take(sums, self.ends, axis=-1)
        counts = np.zeros((2, *sums.shape[:-1], len(self.ends) + 1))
        counts[0, ..., 1:] = sums >> 32
        counts[1, ..., 1:] = sums & ((1 << 32) - 1)
        return Counts(*counts)


# What a figure is: (..., F) float64 from a ranking and its counts, nan where a class it needs has no weight.
Figure = Callable[[Ranking, Counts], Float64]


def area(ranking: Ranking, counts: Counts) -> Float64:
    """Return the AUROC (..., 1): the area under the ROC curve by trapezoids, so that a tie counts one half.

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    >>> area(ranking, ranking.counts([[1, 1, 1, 1], [1, 1, 3, 1]])).tolist()
    [[0.875], [0.8125]]
    """
    true, false = counts
    return _ratio(_trapezoids(true, false), true[..., -1:] * false[..., -1:])


def average_precision(ranking: Ranking, counts: Counts) -> Float64:
    """Return the average precision (..., 1): Σ (recallₜ − recallₜ₋₁) · precisionₜ over the thresholds.

    Nothing is interpolated: the rule of scikit-learn, since straight lines between the points of a precision-recall
    curve lie too high (Davis, Goadrich, ICML 2006, 233-240).

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> round(float(average_precision(ranking, ranking.counts())[0]), 3)
    0.833
    """
    true, false = counts
    called = true + false
    called[called == 0] = 1.0  # none of them true: the precision there has no part in the sum
    steps = np.einsum("...t,...t->...", np.diff(true), (true / called)[..., 1:])[..., None]
    return _ratio(steps, np.where(false[..., -1:] > 0, true[..., -1:], 0.0))


def partial_area(max_false_positive_rate: float = 0.1) -> Figure:
    """Return the figure (..., 1): the area up to that false positive rate, so that 0.5 is chance and 1 perfect.

    Raises `ValueError` for a rate outside (0, 1]. Source: McClish, Medical Decision Making 9 (1989) 190-195.

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> round(float(partial_area(0.5)(ranking, ranking.counts())[0]), 3)
    0.667
    """
    limit = _share(max_false_positive_rate, "max_false_positive_rate")
    if not limit:
        raise ValueError("max_false_positive_rate must be above 0")

    def figure(ranking: Ranking, counts: Counts) -> Float64:
        true, false = counts
        positives, negatives = true[..., -1:], false[..., -1:]
        cut = limit * negatives
        # Only what comes before the cut of any draw is looked at, and the one place behind it.
        places = min(int(np.count_nonzero(false <= cut, axis=-1).max(initial=0)) + 1, true.shape[-1])
        edge = positives * roc_on(np.array([limit]))(ranking, counts)
        inside = false[..., :places] <= cut
        height = np.where(inside, true[..., :places], edge)
        share = _ratio(_trapezoids(height, np.where(inside, false[..., :places], cut)), positives * negatives)
        chance = limit**2 / 2
        return (1 + (share - chance) / (limit - chance)) / 2

    return figure


def sensitivity_at(specificity: float) -> Figure:
    """Return the figure (..., 1): the largest sensitivity of a threshold that has at least that specificity.

    Nothing is interpolated: the threshold exists, or is one that calls no scan (sensitivity 0). Raises `ValueError`
    for a specificity outside [0, 1].

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> sensitivity_at(0.9)(ranking, ranking.counts()), sensitivity_at(0.5)(ranking, ranking.counts())
    (array([0.5]), array([1.]))
    """
    wanted = _share(specificity, "specificity")

    def figure(ranking: Ranking, counts: Counts) -> Float64:
        true, false = counts
        negatives = false[..., -1:]
        # A rounded quotient of whole numbers equals the decimal it stands for; 1 − specificity need not.
        enough = _ratio(negatives - false, negatives) >= wanted
        last = np.maximum(np.count_nonzero(enough, axis=-1, keepdims=True) - 1, 0)
        reached = _ratio(np.take_along_axis(true, last, axis=-1), true[..., -1:])
        return np.where(negatives > 0, reached, np.nan)

    return figure


def roc_on(grid: ArrayLike) -> Figure:
    """Return the figure (..., G): the sensitivity at the false positive rates of `grid` (G,), on the straight lines.

    Where the curve rises upright it is the upper end.

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    >>> roc_on([0, 0.25, 1])(ranking, ranking.counts()).tolist()
    [0.5, 0.75, 1.0]
    """
    at = np.asarray(grid, np.float64)

    def figure(ranking: Ranking, counts: Counts) -> Float64:
        return _by_draw(counts, len(at), lambda true, false: np.interp(at, false / false[-1], true / true[-1]))

    return figure


def precision_on(grid: ArrayLike) -> Figure:
    """Return the figure (..., G): the precision at the recalls of `grid` (G,).

    It is that of the highest threshold that calls a scan and reaches the recall, as steps, like `average_precision`.

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> precision_on([0, 0.5, 0.75])(ranking, ranking.counts()).round(3).tolist()
    [1.0, 1.0, 0.667]
    """
    at = np.asarray(grid, np.float64)

    def reached(true: Float64, false: Float64) -> Float64:
        called = true + false
        places = np.maximum(np.searchsorted(true / true[-1], at), np.searchsorted(called, 0, "right"))
        return true[places] / called[places]

    return lambda ranking, counts: _by_draw(counts, len(at), reached)


def at_thresholds(thresholds: ArrayLike) -> Figure:
    """Return the figure (..., 2·L): the sensitivities at the `thresholds` (L,), then their specificities.

    >>> ranking = Ranking.of([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    >>> at_thresholds([0.5, 0.4])(ranking, ranking.counts()).tolist()
    [0.5, 1.0, 1.0, 0.5]
    """
    at = np.asarray(thresholds, np.float64)

    def figure(ranking: Ranking, counts: Counts) -> Float64:
        places = np.searchsorted(-ranking.thresholds, -at, "right")
        true, false = counts
        negatives = false[..., -1:]
        sensitivity = _ratio(true[..., places], true[..., -1:])
        return np.concatenate([sensitivity, _ratio(negatives - false[..., places], negatives)], axis=-1)

    return figure


def _trapezoids(height: Float64, along: Float64) -> Float64:
    """Return (..., 1): the area under `height` over `along`."""
    return np.einsum("...t,...t->...", np.diff(along), height[..., 1:] + height[..., :-1])[..., None] / 2


def _by_draw(counts: Counts, values: int, read: Callable[[Float64, Float64], Float64]) -> Float64:
    """Return (..., `values`): what `read` makes of each draw's true and false counts; nan without a class."""
    true, false = counts
    found = np.full((*true.shape[:-1], values), np.nan)
    for draw in np.ndindex(true.shape[:-1]):
        if true[draw][-1] > 0 and false[draw][-1] > 0:
            found[draw] = read(true[draw], false[draw])
    return found


def _ratio(above: Float64, below: Float64) -> Float64:
    """Return above / below, and nan where nothing is below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _share(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1; got {value}")
    return value
