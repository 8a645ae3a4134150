"""Intervals by drawing patients with replacement, for figures and scans that no formula covers; and of shares.

Scans of one patient resemble one another, so the patient is what is drawn: all scans of a group come together, as
often as the group is drawn (Field, Welsh, J. R. Statist. Soc. B 69 (2007) 369-390; intervals: Efron, Tibshirani, An
Introduction to the Bootstrap (1993), sections 12 and 13).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damcli.metrics.delong import Estimate, Interval, on_logit_scale, quantile_of, tail_of
from damcli.metrics.ranking import Figure, Ranking, area

Groups = Sequence[str | None] | NDArray[Any]

# How many weights a step holds at a time: few enough for a core's cache, enough for NumPy's calls to be worth it.
STEP = 1 << 18
# What shares of one figure differ by through rounding alone, which must not pass for a spread.
ROUNDING = 1e-12


def weights(
    groups: Groups | None, scans: int, draws: int = 2000, seed: int = 0, chunk: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each scan is in each draw, int64 (d, N), `chunk` draws at a time.

    As many groups are drawn as there are, with replacement, and all `scans` of a group together. `groups` (N,) names
    them; a scan without a name ("" or None) is a group of its own, and so is every scan where `groups` is None. Draw
    number k depends on the seed and k only. Raises `ValueError` where the groups are not those of the scans.

    >>> next(weights(["a", "a", "b", ""], 4, draws=3)).tolist()
    [[0, 0, 2, 1], [0, 0, 1, 2], [2, 2, 0, 1]]
    """
    members, count = members_of(groups, scans)
    chunk = chunk or max(1, STEP // max(scans, 1))
    for start in range(0, draws, chunk):
        yield _drawn(members, count, seed, range(start, min(start + chunk, draws)))


def bootstrap(
    rankings: Sequence[Ranking],
    figure: Figure,
    groups: Groups | None,
    scans: int,
    draws: int = 2000,
    seed: int = 0,
) -> Iterator[NDArray[np.float64]]:
    """Yield the figure of every ranking in every draw, float64 (d, R, F), some draws at a time and in their order.

    All `rankings` are of the same `scans` and see the same draws, those of `weights`. A figure is nan in a draw that
    lacks a class. Raises what `weights` does.
    """
    members, count = members_of(groups, scans)
    chunk = max(1, STEP // max(scans, 1))

    def part(start: int) -> NDArray[np.float64]:
        drawn = _drawn(members, count, seed, range(start, min(start + chunk, draws)))
        return np.stack([figure(ranking, ranking.counts(drawn)) for ranking in rankings], axis=1)

    # NumPy lets other threads run while it sums and picks; a few of them keep the memory busy.
    with ThreadPoolExecutor(min(4, _cores())) as pool:
        yield from pool.map(part, range(0, draws, chunk))


def obstacle(targets: ArrayLike, groups: Groups | None = None) -> str:
    """Say why figures of these `targets` (N,) have no interval: fewer than two groups with a positive, or a negative.

    >>> obstacle([1, 1, 0, 0], ["a", "a", "b", "c"]), obstacle([1, 1, 0, 0])
    ('all positives in one group', '')
    """
    truth = np.asarray(targets, np.float64)
    if np.isnan(truth).all():
        return "no labelled scans"
    for kind, name in ((1, "positive"), (0, "negative")):
        scans, clusters = int((truth == kind).sum()), _clusters(truth == kind, groups)
        if clusters < 2:
            return f"no {name}s" if not scans else f"only 1 {name}" if scans == 1 else f"all {name}s in one group"
    return ""


def from_draws(
    values: ArrayLike,
    value: float,
    targets: ArrayLike | None = None,
    groups: Groups | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return a share `value` with the interval that its draws `values` (D,) give it.

    The interval is normal on the logit scale, with the draws' standard deviation, as DeLong's is: with ten positive
    patients that covers the true AUROC more often than the draws' quantiles do (`tests/metrics/test_coverage.py`).
    Draws where the figure is undefined (nan) are left out; where those are more than half there is no interval. At
    exactly 0 or 1 that scale ends. There the interval is the draws' quantiles, which reach at least to the exact bound
    of k successes in k, boundᵏ = (1 − level)/2 (see `damcli.metrics.delong.estimate`). k is the number of groups that
    hold the rarer class of `targets` (N,), or of all columns of (N,K); without targets, of all groups. A value that no
    draw leaves has no interval otherwise. What is no share, or a difference of two: `quantiles`. Raises `ValueError`
    for a value outside [0, 1] or a level outside (0, 1).

    >>> from_draws([0.4, 0.5, 0.6, 0.7, float("nan")], 0.55, level=0.5)
    Estimate(value=0.55, low=0.474..., high=0.623..., why='')
    >>> from_draws([1.0, 1.0, 1.0], 1.0, targets=[0, 1, 0, 1, 0, 1])
    Estimate(value=1.0, low=0.292..., high=1.0, why='')
    """
    tail = tail_of(level)
    value = next((end for end in (0.0, 1.0) if abs(value - end) < ROUNDING), value)
    if value < 0 or value > 1:
        raise ValueError(f"a share must be between 0 and 1; got {value}")
    drawn = np.asarray(values, np.float64)
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or 2 * len(defined) <= len(drawn):
        why = "undefined" if math.isnan(value) else f"undefined in {len(drawn) - len(defined)} of {len(drawn)} draws"
        return Estimate(math.nan, math.nan, math.nan, why)
    if value in (0.0, 1.0):
        low, high = quantiles(defined, value, level)
        if pairs := _smallest(targets, groups):
            bound = tail ** (1 / pairs)
            low, high = (min(low, bound), 1.0) if value else (0.0, max(high, 1 - bound))
    else:
        low, high = on_logit_scale(value, float(defined.std()), tail)
    if high - low < ROUNDING:
        return Estimate(math.nan, math.nan, math.nan, f"every draw gives {value:g}")
    return Estimate(value, low, high)


def quantiles(values: ArrayLike, value: float, level: float = 0.95) -> Interval:
    """Return the interval between the quantiles of the draws `values` (D,) of a figure of any scale.

    It always holds `value`, and leaves out draws where the figure is undefined (nan); of none it is (nan, nan).

    >>> quantiles([-0.2, -0.1, 0.0, 0.1], -0.25, level=0.5)
    Interval(low=-0.25, high=0.025)
    """
    drawn = np.asarray(values, np.float64)
    defined = drawn[~np.isnan(drawn)]
    tail = tail_of(level)
    if not len(defined):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(defined, [tail, 1 - tail]).tolist()
    return Interval(min(low, value), max(high, value))


def bootstrap_interval(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Groups | None = None,
    figure: Figure = area,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return a figure of one number with its interval over groups of scans; `why` where it is undefined.

    `targets` and `scores` as `damcli.metrics.auroc` takes and raises, `groups` as in `weights`, the figures of
    `damcli.metrics.ranking`.

    >>> found = bootstrap_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.7, 0.9], groups=list("abcdef"))
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.889, 0.252, 0.995)
    """
    ranking = Ranking.of(targets, scores)
    if why := obstacle(targets, groups):
        return Estimate(math.nan, math.nan, math.nan, why)
    drawn = np.concatenate(list(bootstrap([ranking], figure, groups, ranking.size, draws, seed)))
    return from_draws(drawn[:, 0, 0], float(figure(ranking, ranking.counts())[0]), targets, groups, level)


def wilson(successes: float, total: float, level: float = 0.95) -> Interval:
    """Return the score interval of a share of independent scans; (nan, nan) of none.

    Raises `ValueError` for more successes than scans, or a level outside (0, 1). Source: Wilson, J. Am. Statist.
    Assoc. 22 (1927) 209-212.

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes must be between 0 and the total; got {successes} of {total}")
    z = quantile_of(tail_of(level))
    if not total:
        return Interval(math.nan, math.nan)
    centre = (successes + z**2 / 2) / (total + z**2)
    reach = z * math.sqrt(successes * (total - successes) / total + z**2 / 4) / (total + z**2)
    # At no or only successes the bound is 0 or 1 exactly, which rounding would miss.
    return Interval(centre - reach if successes else 0.0, centre + reach if successes < total else 1.0)


def members_of(groups: Groups | None, scans: int) -> tuple[NDArray[np.intp], int]:
    """Return the number of each scan's group, (N,), and how many groups there are."""
    if groups is None:
        return np.arange(scans), scans
    if len(groups) != scans:
        raise ValueError(f"groups must name one for each of the {scans} scans; got {len(groups)}")
    numbers: dict[Any, int] = {}
    each = (row if name is None or name == "" else (name,) for row, name in enumerate(groups))
    return np.array([numbers.setdefault(name, len(numbers)) for name in each], np.intp), len(numbers)


def _drawn(members: NDArray[np.intp], count: int, seed: int, numbers: range) -> NDArray[np.int64]:
    times = np.zeros((len(numbers), count), np.int64)
    for row, number in enumerate(numbers):
        chosen = np.random.default_rng((seed, number)).integers(0, max(count, 1), count)
        times[row] = np.bincount(chosen, minlength=count)
    return np.take(times, members, axis=1)


def _clusters(held: NDArray[np.bool_], groups: Groups | None) -> int:
    members, _ = members_of(groups, len(held))
    return len(np.unique(members[held]))


def _smallest(targets: ArrayLike | None, groups: Groups | None) -> int:
    """Return how many groups hold the rarer class; without targets how many groups there are, 0 if that is unknown."""
    if targets is None:
        return 0 if groups is None else members_of(groups, len(groups))[1]
    truth = np.asarray(targets, np.float64)
    columns = truth.reshape(len(truth), -1).T
    return min(_clusters(column == kind, groups) for column in columns for kind in (0, 1))


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
