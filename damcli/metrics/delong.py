"""Intervals and tests of AUROCs after DeLong, in O(n log n), exact with ties.

What a scan contributes. With A the AUROC of m positives and n negatives, DeLong's structural components are V10, the
share of negatives that a positive beats, and V01, the share of positives that beat a negative (a tie counts one
half). Here each scan holds

    c = (V10 − A) / √(m(m−1))  if positive,   (V01 − A) / √(n(n−1))  if negative,   0 if left out,

so that Σ c² = S10/m + S01/n is DeLong's variance, and Σ c·c' his covariance of two scores of the same scans. Written
per scan, the sum also holds for two findings, where a scan may be positive in one, negative in the other and
unlabelled in a third: it is then the covariance of the AUROCs' linear terms over scans drawn at random. A mean of
AUROCs has the variance Σ (mean of c)².

Sources: DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837-845; logit scale: Pepe, The Statistical Evaluation
of Medical Tests (2003), section 5.2; bound at 0 and 1: Clopper, Pearson, Biometrika 26 (1934) 404-413.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damcli.metrics.auroc import Floats, Mask, checked


class Interval(NamedTuple):
    """A confidence interval; (nan, nan) where it is undefined."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its interval. Where it is undefined all three are nan and `why` says it in words."""

    value: float
    low: float
    high: float
    why: str = ""


class Comparison(NamedTuple):
    """The difference of two AUROCs (a − b), its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Components:
    """An AUROC, the sizes of its classes, and what each scan contributes to it (see the module)."""

    auroc: float
    positives: int
    negatives: int
    contributions: NDArray[np.float64]

    @property
    def undefined(self) -> str:
        """Say why this AUROC has no uncertainty and so must not be shown; empty where it has one."""
        if not (self.positives or self.negatives):
            return "no labelled scans"
        for count, name in ((self.positives, "positive"), (self.negatives, "negative")):
            if count < 2:
                return f"only 1 {name}" if count else f"no {name}s"
        # With two of each class only equal scores give half the pairs and no variance.
        return "all scores equal" if not self.contributions.any() and 0 < self.auroc < 1 else ""


def components(targets: ArrayLike, scores: ArrayLike) -> Components:
    """Return the AUROC with each scan's contribution, (N,) float64 in the order given.

    Takes and raises what `damcli.metrics.auroc` does. With fewer than two of a class the contributions are nan.

    >>> part = components([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    >>> part.auroc, round(float((part.contributions**2).sum()), 6)
    (0.875, 0.03125)
    """
    positive, negative, values = checked(targets, scores)
    (higher, above), (lower, below) = _ascending(positive, values), _ascending(negative, values)
    m, n = len(higher), len(lower)
    contributions = np.full(len(values), 0.0 if min(m, n) > 1 else math.nan)
    if not (m and n):
        return Components(math.nan, m, n, contributions)
    first, past = np.searchsorted(below, above, "left"), np.searchsorted(below, above, "right")
    # Counts are doubled so that a tie is the integer 1, and stay integers until the mean is taken off.
    won = first + past
    # A negative at rank j lies strictly above the positives with past ≤ j, and at or above those with first ≤ j.
    lost = 2 * m - _at_most(first, n) - _at_most(past, n)
    pairs = int(won.sum())
    if min(m, n) > 1:
        contributions[higher] = (won - pairs / m) / (2 * n * math.sqrt(m * (m - 1)))
        contributions[lower] = (lost - pairs / n) / (2 * m * math.sqrt(n * (n - 1)))
    return Components(pairs / (2 * m * n), m, n, contributions)


def _ascending(mask: Mask, values: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return the indices where `mask` holds, in ascending order of `values`, and those values."""
    indices = np.flatnonzero(mask)
    chosen = values[indices]
    order = np.argsort(chosen)
    return indices[order], chosen[order]


def _at_most(positions: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return for each rank 0 … n−1 how many of the `positions` (0 … n) are at most that."""
    return np.cumsum(np.bincount(positions, minlength=n + 1))[:n]


def estimate(parts: Sequence[Components], level: float = 0.95) -> Estimate:
    """Return the mean of the AUROCs that have an uncertainty, with its interval; of one, that AUROC's own.

    All `parts` are of the same scans in the same order, each with its own targets, scores and gaps. The interval is
    normal on the logit scale, so it stays inside (0, 1). Where the figure is exactly 0 or 1 the variance is zero and
    says nothing. The bound is then taken from k disjoint pairs of a positive and a negative, which are independent
    and all ordered with probability at most AUROCᵏ: (1 − level)/2 = boundᵏ, the exact bound of k successes in k, for
    any distribution; k is the size of the smallest class. (A finding at exactly 1 among others adds no variance to
    their mean, whose interval is then a little narrow.) Scans are taken as independent. Raises `ValueError` for a
    level outside (0, 1).

    >>> estimate([components([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])])
    Estimate(value=1.0, low=0.158..., high=1.0, why='')
    >>> estimate([components([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4])]).why
    'only 1 positive'
    """
    tail = tail_of(level)
    defined = [part for part in parts if not part.undefined]
    if not defined:
        why = parts[0].undefined if len(parts) == 1 else "no finding has an AUROC"
        return Estimate(math.nan, math.nan, math.nan, why)
    value = math.fsum(part.auroc for part in defined) / len(defined)
    if value in (0.0, 1.0):
        pairs = min(min(part.positives, part.negatives) for part in defined)
        bound = tail ** (1 / pairs)
        return Estimate(value, bound, 1.0) if value else Estimate(value, 0.0, 1 - bound)
    total = defined[0].contributions.copy()
    for part in defined[1:]:
        total += part.contributions
    deviation = math.sqrt(float(total @ total)) / len(defined)
    return Estimate(value, *on_logit_scale(value, deviation, tail))


def delong_interval(targets: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Interval:
    """Return the interval of an AUROC, always inside [0, 1]; nan with fewer than two of a class or no variance.

    Takes and raises what `damcli.metrics.auroc` does; how it is made, and what it is at exactly 0 and 1: `estimate`.

    >>> low, high = delong_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.7, 0.9])
    >>> round(low, 3), round(high, 3)
    (0.261, 0.995)
    """
    _, low, high, _ = estimate([components(targets, scores)], level)
    return Interval(low, high)


def mean_auroc(targets: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean AUROC over findings with its interval, from DeLong's covariance across the findings.

    `targets` and `scores` are (N,K): the same N scans for K findings, gaps (nan) wherever they are. Findings without
    an uncertainty (a class missing or single, all scores equal) never enter the mean. Raises what `auroc` does.

    >>> mean_auroc([[0, 1], [0, 1], [1, 1], [1, 1]], [[0.1, 0], [0.4, 0], [0.4, 0], [0.8, 0]]).value
    0.875
    """
    truth, values = np.asarray(targets, dtype=np.float64), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != values.shape:
        raise ValueError(f"targets and scores must be (N,K) of one shape; got {truth.shape} and {values.shape}")
    return estimate([components(truth[:, k], values[:, k]) for k in range(truth.shape[1])], level)


def delong_test(targets: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95) -> Comparison:
    """Compare two scores of the same scans: AUROC a − AUROC b, its interval (cut to [−1, 1]) and two-sided p-value.

    Takes and raises what `auroc` does, twice. Interval and p are nan where the difference has no variance: fewer than
    two of a class, or two scores that order every pair of a positive and a negative alike.

    >>> delong_test([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [2, 1, 6, 3, 4, 5]).difference
    0.222...
    """
    tail = tail_of(level)
    a, b = components(targets, scores_a), components(targets, scores_b)
    difference = a.auroc - b.auroc
    apart = a.contributions - b.contributions
    deviation = math.sqrt(float(apart @ apart))
    if not deviation > 0:
        return Comparison(difference, math.nan, math.nan, math.nan)
    reach = quantile_of(tail) * deviation
    p = math.erfc(abs(difference) / deviation / math.sqrt(2))
    return Comparison(difference, max(-1.0, difference - reach), min(1.0, difference + reach), p)


def tail_of(level: float) -> float:
    """Return the share on either side of an interval of that level; raises `ValueError` outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, like 0.95; got {level}")
    return (1 - level) / 2


def quantile_of(tail: float) -> float:
    """Return how many standard deviations above the mean of a normal that share lies."""
    return -NormalDist().inv_cdf(tail)


def on_logit_scale(value: float, deviation: float, tail: float) -> Interval:
    """Return the normal interval on the logit scale of a share inside (0, 1) with that standard deviation."""
    centre = math.log(value / (1 - value))
    reach = quantile_of(tail) * deviation / (value * (1 - value))
    return Interval(_expit(centre - reach), _expit(centre + reach))


def _expit(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2
