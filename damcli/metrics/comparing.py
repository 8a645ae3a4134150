"""Two scores of the same scans compared, with patients drawn together where they have several scans."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from damcli.metrics.delong import Comparison, components, quantile_of, tail_of
from damcli.metrics.intervals import Groups, bootstrap, members_of, obstacle, quantiles
from damcli.metrics.ranking import Ranking, area


def compare(
    targets: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare the AUROCs of two scores of the same scans, all (N,): a − b, its interval and two-sided p-value.

    Where no two scans share one of the `groups` it is DeLong's test (`delong_test`). Else groups are drawn as in
    `damcli.metrics.intervals.weights`, the same for both scores: the interval lies between the quantiles of the draws'
    differences, and p is that of a normal difference with their standard deviation. Interval and p are nan where there
    is no variance or a class is not held by two groups. Takes and raises what `damcli.metrics.auroc` does.

    >>> found = compare([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [2, 1, 6, 3, 4, 5], groups=list("aabbcc"))
    >>> round(found.difference, 3), found.low <= found.difference <= found.high
    (0.222, True)
    """
    truth, a, b = (np.asarray(each)[..., None] for each in (targets, scores_a, scores_b))
    return compare_means(truth, a, b, groups, draws, seed, level)


def compare_means(
    targets: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare the mean AUROCs over findings of two scores of the same scans, all (N,K), as `compare` does for one.

    The mean is over the findings whose AUROC has an uncertainty with both scores; draws in which one of those lacks a
    class are left out; where those are half of all there is no interval. All is nan where there is no such finding.

    >>> truth = [[0, 1], [0, 1], [1, 0], [1, 0]]
    >>> compare_means(truth, [[1, 4], [2, 2], [3, 3], [4, 1]], [[1, 4], [3, 3], [2, 2], [4, 1]]).difference
    0.0
    """
    tail = tail_of(level)
    truth, a, b = np.asarray(targets, np.float64), np.asarray(scores_a), np.asarray(scores_b)
    if truth.ndim != 2 or not truth.shape == a.shape == b.shape:
        raise ValueError(f"targets and both scores must be of one shape; got {truth.shape}, {a.shape} and {b.shape}")
    parts = [[components(truth[:, k], scores[:, k]) for scores in (a, b)] for k in range(truth.shape[1])]
    kept = [k for k, pair in enumerate(parts) if not any(part.undefined for part in pair)]
    kept = [k for k in kept if not obstacle(truth[:, k], groups)]
    if not kept:
        return Comparison(math.nan, math.nan, math.nan, math.nan)
    difference = math.fsum(parts[k][0].auroc - parts[k][1].auroc for k in kept) / len(kept)
    if groups is None or members_of(groups, len(truth))[1] == len(truth):
        apart = np.mean([parts[k][0].contributions - parts[k][1].contributions for k in kept], axis=0)
        deviation = math.sqrt(float(apart @ apart))
        reach = quantile_of(tail) * deviation
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    else:
        rankings = [Ranking.of(truth[:, k], scores[:, k]) for scores in (a, b) for k in kept]
        drawn = np.concatenate(list(bootstrap(rankings, area, groups, len(truth), draws, seed)))[..., 0]
        apart = (drawn[:, : len(kept)] - drawn[:, len(kept) :]).mean(axis=1)
        if 2 * np.isnan(apart).sum() >= len(apart):
            return Comparison(difference, math.nan, math.nan, math.nan)
        deviation = float(np.nanstd(apart))
        low, high = quantiles(apart, difference, level)
    if not deviation > 0:
        return Comparison(difference, math.nan, math.nan, math.nan)
    return Comparison(difference, low, high, math.erfc(abs(difference) / deviation / math.sqrt(2)))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number: the smallest by all, the next by one fewer, never falling, ≤ 1.

    nan stays nan and does not count. Source: Holm, Scand. J. Statist. 6 (1979) 65-70.

    >>> holm([0.01, 0.04, float("nan"), 0.03])
    [0.03, 0.06, nan, 0.06]
    """
    given = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = [math.nan] * len(p), 0.0
    for before, (value, place) in enumerate(given):
        highest = max(highest, min(1.0, value * (len(given) - before)))
        adjusted[place] = highest
    return adjusted
