"""AUROCs of subgroups of the scans, and the largest gap between two of them.

Groups hold different scans, but a patient may be in several, as by view. So what a scan contributes to an AUROC (see
`damcli.metrics.delong`) is summed by patient, in each group, and patients are what is independent: the variance of an
AUROC is the sum of the squares, the covariance of two groups' that of the products (Obuchowski, Biometrics 53 (1997)
567-578; for the factor of his cross term, I/(I − 1), stands the geometric mean of the two classes' factors, which is
nearly the same and never gives a negative variance). With one scan per patient it is DeLong's.

The interval of a difference is put together from those of the two AUROCs (Zou, Donner, Statist. Med. 27 (2008) 1693-
1702), which are on the logit scale, or exact at 0 and 1. A normal one is far too short where a group is small: it found
a gap between five positives and a hundred of the same population in 14 of 100 samples, and this one in 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from damcli.metrics.auroc import checked
from damcli.metrics.delong import Components, Estimate, Interval, components, estimate, on_logit_scale, tail_of
from damcli.metrics.intervals import Groups, members_of

# With fewer patients of a class than this an interval is a rough one.
SMALL = 10
# p is looked for by halving between these two, on the logarithmic scale, to the digits of a float.
SMALLEST = 1e-300
HALVINGS = 60


class Group(NamedTuple):
    """A subgroup: its scans, those of each class, and its AUROC; `small`: fewer than 10 patients of a class."""

    name: str
    scans: int
    positives: int
    negatives: int
    auroc: Estimate
    small: bool


class Gap(NamedTuple):
    """The largest difference of two groups' AUROCs, the higher first, corrected for having looked at all pairs."""

    groups: tuple[str, str] | None
    difference: Estimate
    p: float

    @property
    def why(self) -> str:
        """Say why there is none; empty where there is one."""
        return self.difference.why


class Subgroups(NamedTuple):
    """The groups in order, and the largest gap among the `pairs` of groups that both have an AUROC."""

    groups: list[Group]
    largest_gap: Gap
    pairs: int


def by_group(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str],
    names: Sequence[str] | None = None,
    patients: Groups | None = None,
    level: float = 0.95,
) -> Subgroups:
    """Return the AUROC of each of the `groups` (N,), and the largest gap; in the order of `names`, sorted without.

    `targets` and `scores` as `damcli.metrics.auroc` takes and raises; `patients` (N,) as the groups of
    `damcli.metrics.intervals.weights`. A group without two patients of each class has no AUROC, as in `estimate`. The
    gap's interval and p-value are Bonferroni's over all pairs of groups that have one: at the level 1 − (1 − level) /
    pairs, and p times the pairs, where p is 1 − the level at which the interval would just hold 0. Raises `ValueError`
    too where a scan's group is none of `names`.

    >>> found = by_group([0, 1, 0, 1, 0, 1, 0, 1], [1, 2, 3, 4, 2, 4, 3, 1], list("ffffmmmm"))
    >>> [(group.name, group.auroc.value) for group in found.groups], found.largest_gap.groups
    ([('f', 0.75), ('m', 0.5)], ('f', 'm'))
    """
    tail_of(level)
    checked(targets, scores)
    truth, values = np.asarray(targets, np.float64), np.asarray(scores)
    ordered = list(dict.fromkeys(names)) if names is not None else sorted(set(groups))
    place = {name: at for at, name in enumerate(ordered)}
    if len(groups) != len(truth) or not place.keys() >= set(groups):
        raise ValueError("groups must name one of `names` for each scan")
    group_of = np.array([place[name] for name in groups], np.int64)
    members, _ = members_of(patients, len(truth))
    order = np.argsort(group_of, kind="stable")
    found, parts = [], []
    ends = np.cumsum(np.bincount(group_of, minlength=len(place)))
    for name, rows in zip(ordered, np.split(order, ends[:-1]), strict=True):
        group, part = _group(name, truth[rows], values[rows], members[rows], level)
        found.append(group)
        if part is not None:
            parts.append(part)
    pairs = math.comb(len(parts), 2)
    return Subgroups(found, _largest(parts, pairs, level), pairs)


@dataclass(frozen=True)
class _Part:
    """A group's AUROC and what each of its patients contributes: `patients` (P,) ascending, `summed` (P,)."""

    name: str
    clustered: Components
    patients: NDArray[np.intp]


def _group(
    name: str, truth: NDArray[np.float64], scores: NDArray[np.generic], members: NDArray[np.intp], level: float
) -> tuple[Group, _Part | None]:
    part = components(truth, scores)
    sides = [(kind, np.unique(members[truth == kind]).size) for kind in (1, 0)]
    fewest = min(count for _, count in sides)
    why = part.undefined
    for (_, count), word in zip(sides, ("positives", "negatives"), strict=True):
        why = why or (f"all {word} are of one patient" if count == 1 else "")
    if why:
        nothing = Estimate(math.nan, math.nan, math.nan, why)
        return Group(name, len(truth), part.positives, part.negatives, nothing, fewest < SMALL), None
    contributions = part.contributions.copy()
    for (kind, count), scans in zip(sides, (part.positives, part.negatives), strict=True):
        # From n/(n − 1) of scans to that of patients; exactly 1 where each has one.
        contributions[truth == kind] *= math.sqrt(count * (scans - 1) / (scans * (count - 1)))
    known = ~np.isnan(truth)
    patients, inverse = np.unique(members[known], return_inverse=True)
    summed = np.bincount(inverse, contributions[known], len(patients)).astype(np.float64)
    clustered = Components(part.auroc, sides[0][1], sides[1][1], summed)
    if contributions.any() and not _varies(_squares(summed), _squares(contributions)):
        nothing = Estimate(math.nan, math.nan, math.nan, "no variance between patients")
        return Group(name, len(truth), part.positives, part.negatives, nothing, fewest < SMALL), None
    group = Group(name, len(truth), part.positives, part.negatives, estimate([clustered], level), fewest < SMALL)
    return group, None if group.auroc.why else _Part(name, clustered, patients)


def _largest(parts: list[_Part], pairs: int, level: float) -> Gap:
    if not pairs:
        why = "only one group has an AUROC" if parts else "no group has an AUROC"
        return Gap(None, Estimate(math.nan, math.nan, math.nan, why), math.nan)
    high, low = max(
        (sorted(pair, key=lambda part: -part.clustered.auroc) for pair in combinations(parts, 2)),
        key=lambda pair: pair[0].clustered.auroc - pair[1].clustered.auroc,
    )
    a, b = high.clustered, low.clustered
    _, one, other = np.intersect1d(high.patients, low.patients, assume_unique=True, return_indices=True)
    shared = float(a.contributions[one] @ b.contributions[other])
    spread = math.sqrt(_squares(a.contributions) * _squares(b.contributions))
    if spread and not _varies(_squares(a.contributions) + _squares(b.contributions) - 2 * shared, spread):
        why = "the difference has no variance"
        return Gap((high.name, low.name), Estimate(math.nan, math.nan, math.nan, why), math.nan)
    correlation = shared / spread if spread else 0.0
    found = _difference(a, b, correlation, tail_of(level) / pairs)
    # The share on either side at which the interval would just reach 0: p is twice that.
    never, always = math.log(SMALLEST), math.log(0.5)
    for _ in range(HALVINGS):
        middle = (never + always) / 2
        if _difference(a, b, correlation, math.exp(middle)).low > 0:
            always = middle
        else:
            never = middle
    return Gap((high.name, low.name), found, min(1.0, 2 * pairs * math.exp(always)))


def _difference(a: Components, b: Components, correlation: float, tail: float) -> Estimate:
    """Return a − b with its interval from those of the two (Zou, Donner, equations 7 and 8)."""
    (low_a, high_a), (low_b, high_b) = _interval(a, tail), _interval(b, tail)
    difference = a.auroc - b.auroc
    down = _together(a.auroc - low_a, high_b - b.auroc, correlation)
    up = _together(high_a - a.auroc, b.auroc - low_b, correlation)
    return Estimate(difference, max(-1.0, difference - down), min(1.0, difference + up))


def _together(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))


def _interval(part: Components, tail: float) -> Interval:
    """Return what `estimate` does, for a share on either side that may be too small for a level."""
    if part.auroc in (0.0, 1.0):
        bound = tail ** (1 / min(part.positives, part.negatives))
        return Interval(bound, 1.0) if part.auroc else Interval(0.0, 1 - bound)
    return on_logit_scale(part.auroc, math.sqrt(_squares(part.contributions)), tail)


def _squares(values: NDArray[np.float64]) -> float:
    return float(values @ values)


def _varies(variance: float, of: float) -> bool:
    """Return whether a variance is more than what rounding leaves of terms that cancel."""
    return variance > 1e-12 * of
