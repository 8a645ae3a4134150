"""AUROCs of subgroups of the scans, and the largest gap between two of them.

Groups hold different scans, but a patient may be in several, as by view. So what a scan contributes to an AUROC (see
`damcli.metrics.delong`) is summed by patient, in each group, and patients are what is independent: the variance of an
AUROC is the sum of the squares, the covariance of two groups' that of the products (Obuchowski, Biometrics 53 (1997)
567-578; for the factor of his cross term, I/(I − 1), stands the geometric mean of the two classes' factors, which is
nearly the same and never gives a negative variance). With one scan per patient it is DeLong's.
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
from damcli.metrics.delong import Components, Estimate, components, estimate, quantile_of, tail_of
from damcli.metrics.intervals import Groups, members_of

# With fewer patients of a class than this an interval is a rough one.
SMALL = 10


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
    pairs, and p times the pairs. The interval is normal. An AUROC of exactly 0 or 1 has no variance of its own: it
    gets the one that its exact bound stands for. Raises `ValueError` too where a scan's group is none of `names`.

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
    if contributions.any() and not _varies(float(summed @ summed), float(contributions @ contributions)):
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
    difference = high.clustered.auroc - low.clustered.auroc
    tail = tail_of(level) / pairs
    separate = sum(_deviation(part.clustered, tail) ** 2 for part in (high, low))
    _, one, other = np.intersect1d(high.patients, low.patients, assume_unique=True, return_indices=True)
    shared = float(high.clustered.contributions[one] @ low.clustered.contributions[other])
    if not _varies(separate - 2 * shared, separate):
        why = "the difference has no variance"
        return Gap((high.name, low.name), Estimate(math.nan, math.nan, math.nan, why), math.nan)
    deviation = math.sqrt(separate - 2 * shared)
    reach = quantile_of(tail) * deviation
    found = Estimate(difference, max(-1.0, difference - reach), min(1.0, difference + reach))
    p = min(1.0, pairs * math.erfc(difference / deviation / math.sqrt(2)))
    return Gap((high.name, low.name), found, p)


def _varies(variance: float, of: float) -> bool:
    """Return whether a variance is more than what rounding leaves of terms that cancel."""
    return variance > 1e-12 * of


def _deviation(part: Components, tail: float) -> float:
    """Return the standard deviation of an AUROC; at exactly 0 or 1 the one with which its bound is reached."""
    if part.auroc in (0.0, 1.0):
        value, low, high, _ = estimate([part], 1 - 2 * tail)
        return max(value - low, high - value) / quantile_of(tail)
    return math.sqrt(float(part.contributions @ part.contributions))
