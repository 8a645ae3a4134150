"""Calibration: scores to probabilities, fitted on scans that were kept apart, and how far scores are from being them.

Temperature and Platt scaling do not change the order of scores: sigmoid(slope · logit(score) + intercept) rises, and so
that it also rises where float64 has no room left next to 1, a millionth of the score itself is mixed in (`OWN`). So
float32 scores, which networks give, and means of some, stay apart; float64 scores within 10⁻¹⁰ of 1 may not. Isotonic
regression is a staircase with slopes: it makes ties, which `ties_made` counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from damcli.config import Strict
from damcli.metrics.auroc import Mask, checked
from damcli.metrics.delong import Estimate
from damcli.metrics.intervals import Groups, from_draws, members_of, weights, wilson

Method = Literal["temperature", "platt", "isotonic"]
Floats = NDArray[np.float64]

# The share of the score itself in a calibrated one. Neighbouring float32 scores stay 6e-14 apart, far above rounding.
OWN = 1e-6
# Half way from float32's last numbers to 0 and 1: a score that was rounded to those is taken as sure as that, and not
# as infinitely sure.
SUREST = 2.0**-150, 1 - 2.0**-25


class Calibration(Strict):
    """A rising function from scores to probabilities.

    Temperature (slope 1 / T, intercept 0) and Platt scaling hold a slope and an intercept on the scale of logits,
    isotonic regression knots, between which it is straight and beyond which it is level.
    """

    method: Method
    slope: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    intercept: float = Field(default=0.0, allow_inf_nan=False)
    knots_x: tuple[float, ...] = ()
    knots_y: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Calibration:
        x, y = np.array(self.knots_x), np.array(self.knots_y)
        if self.method != "isotonic":
            if len(x) or len(y):
                raise ValueError(f"{self.method} has no knots")
        elif len(x) != len(y) or len(x) < 2:
            raise ValueError("isotonic has two knots or more, each of an x and a y")
        elif not (np.isfinite([x, y]).all() and min(x[0], y[0]) >= 0 and max(x[-1], y[-1]) <= 1):
            raise ValueError("the knots lie between 0 and 1")
        elif not ((np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and y[0] < y[-1]):
            raise ValueError("the knots rise")
        if self.intercept and self.method != "platt":
            raise ValueError(f"{self.method} has no intercept")
        return self

    def apply(self, scores: ArrayLike) -> Floats:
        """Return the probabilities of `scores`, of any shape, in [0, 1]; nan stays nan. Raises `ValueError` outside.

        >>> Calibration(method="temperature", slope=2.0).apply([0.0, 0.2, 0.5, 1.0]).round(4).tolist()
        [0.0, 0.0588, 0.5, 1.0]
        """
        p = np.asarray(scores, np.float64)
        if (p < 0).any() or (p > 1).any():
            raise ValueError("scores to calibrate must be in [0, 1]")
        if self.method == "isotonic":
            return np.asarray(np.interp(p, self.knots_x, self.knots_y))
        with np.errstate(over="ignore"):
            q = 1 / (1 + np.exp(-(self.slope * _logit(p) + self.intercept)))
        return q + OWN * (p - q)


def calibrated(
    calibration: Mapping[str, Calibration], findings: Sequence[str], scores: NDArray[np.floating[Any]]
) -> Floats:
    """Return `scores` (N, K), columns in the order of `findings`, as float64, calibrated where the finding is.

    >>> calibrated({"Edema": Calibration(method="temperature", slope=2)}, ["Mass", "Edema"], np.array([[0.2, 0.2]]))
    array([[0.2       , 0.0588...]])
    """
    columns = np.array(scores, np.float64)
    for k, finding in enumerate(findings):
        if finding in calibration:
            columns[:, k] = calibration[finding].apply(columns[:, k])
    return columns


def fit(targets: ArrayLike, scores: ArrayLike, method: Method) -> Calibration:
    """Return the calibration of `scores` (N,) in [0, 1] that fits `targets` (N,), 1, 0 or nan (left out), best.

    Temperature and Platt scaling have the least cross-entropy, isotonic regression the least squared error of all
    rising functions. The first two take Platt's targets (m + 1)/(m + 2) and 1/(n + 2) of m positives and n negatives,
    so that classes that do not overlap give a finite slope. Raises `ValueError` where a class is missing, where all
    scores are equal, where the fit would turn the ranking round or make all scores equal, and what
    `damcli.metrics.auroc` raises. Sources: Guo, Pleiss, Sun, Weinberger, ICML 2017, eq. 9; Platt, Advances in Large
    Margin Classifiers (1999), section 2; Zadrozny, Elkan, KDD 2002, section 3.

    >>> fit([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "isotonic").knots_y
    (0.0, 0.0, 0.5, 0.5, 1.0, 1.0)
    """
    numbers, p = _known(targets, scores)
    truth = numbers == 1
    if truth.all() or not truth.any():
        raise ValueError("no labelled scans" if not len(p) else "no negatives" if truth.any() else "no positives")
    if method == "isotonic":
        return _isotonic(truth, p)
    logits = _logit(p)
    if logits.min() == logits.max():
        raise ValueError("all scores equal")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    soft = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Scores may lie far off, and close together: in units of their spread the steps are well-conditioned.
    centre = logits.mean() if method == "platt" else 0.0
    spread = math.sqrt(float(((logits - centre) ** 2).mean()))
    columns = [(logits - centre) / spread, np.ones_like(logits)]
    found = _logistic(np.stack(columns[: 2 if method == "platt" else 1], axis=1), soft)
    slope = float(found[0] / spread)
    if not slope > 0:
        raise ValueError("the fit would turn the ranking round, or level it")
    intercept = float(found[1] - slope * centre) if method == "platt" else 0.0
    return Calibration(method=method, slope=slope, intercept=intercept)


def _logit(p: Floats) -> Floats:
    near = np.clip(p, *SUREST)
    return np.asarray(np.log(near) - np.log1p(-near))


def _logistic(columns: Floats, soft: Floats) -> Floats:
    """Return the coefficients (P,) of the least cross-entropy of sigmoid(`columns` (N, P) @ coefficients) to `soft`.

    It is convex, and without bound in every direction because the targets are inside (0, 1): Newton's steps, each
    halved until the cross-entropy falls, lead to the one minimum.
    """
    at = np.zeros(columns.shape[1])
    loss = _cross_entropy(columns @ at, soft)
    for _ in range(200):
        q = 1 / (1 + np.exp(-np.clip(columns @ at, -700, 700)))
        gradient = columns.T @ (q - soft)
        curvature = (columns * (q * (1 - q))[:, None]).T @ columns
        step = np.linalg.solve(curvature, gradient)
        # Near the minimum all that differs is rounding.
        while (after := _cross_entropy(columns @ (at - step), soft)) > loss * (1 + 1e-12):
            step /= 2
        moved, at, loss = np.abs(step).max(), at - step, after
        # The error is squared with each step, so this one was the last that matters.
        if moved <= 1e-9 * (1 + np.abs(at).max()):
            return at
    raise AssertionError("Newton's method has not come to an end")


def _cross_entropy(logits: Floats, soft: Floats) -> float:
    return float((np.logaddexp(0, logits) - soft * logits).sum())


def _isotonic(truth: Mask, p: Floats) -> Calibration:
    """Pool adjacent violators, equal scores from the start (Ayer et al., Ann. Math. Statist. 26 (1955) 641-647)."""
    x, place = np.unique(p, return_inverse=True)
    sums, counts = np.bincount(place, truth), np.bincount(place)
    blocks: list[tuple[float, int, int]] = []  # positives, scans, distinct scores
    for hits, scans in zip(sums.tolist(), counts.tolist(), strict=True):
        block = (hits, scans, 1)
        # Whole numbers multiplied: equal shares are pooled, and no rounding decides.
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    if len(blocks) < 2:
        raise ValueError("no rising function fits better than a level one, which would make all scores equal")
    ends = np.cumsum([block[2] for block in blocks])
    shares = [block[0] / block[1] for block in blocks]
    knots = [
        (float(x[row]), share)
        for share, end, block in zip(shares, ends, blocks, strict=True)
        for row in sorted({end - block[2], end - 1})
    ]
    return Calibration(method="isotonic", knots_x=tuple(k[0] for k in knots), knots_y=tuple(k[1] for k in knots))


def ties_made(scores: ArrayLike, calibrated: ArrayLike) -> int:
    """Return how many of the scans share their calibrated score with one that had another score before.

    >>> ties_made([0.1, 0.2, 0.3, 0.3], [0.0, 0.0, 0.5, 0.5])
    2
    """
    before, after = np.asarray(scores, np.float64), np.asarray(calibrated, np.float64)
    order = np.lexsort((before, after))
    before, after = before[order], after[order]
    starts = np.flatnonzero(np.append(True, after[1:] != after[:-1])[: len(after)])
    ends = np.append(starts[1:], len(after))
    return int((ends - starts)[before[starts] != before[ends - 1]].sum()) if len(after) else 0


class Bin(NamedTuple):
    """Scans of like score: their mean score, the share that is positive with Wilson's interval, and how many."""

    score: float
    observed: float
    low: float
    high: float
    n: int


class Errors(NamedTuple):
    """How far scores are from being probabilities."""

    brier: Estimate
    expected_calibration_error: Estimate


def brier(targets: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean of (score − target)², nan without labelled scans.

    Raises what `damcli.metrics.auroc` does, and `ValueError` for scores outside [0, 1]. Source: Brier, Monthly Weather
    Review 78 (1950) 1-3, for two classes and the probability of one.

    >>> round(brier([0, 1, float("nan")], [0.2, 0.6, 0.9]), 12)
    0.1
    """
    truth, p = _known(targets, scores)
    return float(((p - truth) ** 2).mean()) if len(p) else math.nan


def expected_calibration_error(targets: ArrayLike, scores: ArrayLike, bins: int = 10) -> float:
    """Return the mean over scans of |mean score − share of positives| of their bin; nan without labelled scans.

    Bins are those of `reliability`. Also of scores that are true probabilities it is above 0, by chance: up to about
    0.4 · √(bins / scans). Raises what `brier` does. Source: Naeini, Cooper, Hauskrecht, AAAI
    2015, with bins of equal mass.

    >>> round(expected_calibration_error([0, 1, 1, 1], [0.2, 0.4, 0.7, 0.9], bins=2), 12)
    0.2
    """
    truth, p = _known(targets, scores)
    if not len(p):
        return math.nan
    return float(np.abs(np.bincount(_bins(p, bins), p - truth)).sum() / len(p))


def reliability(targets: ArrayLike, scores: ArrayLike, bins: int = 10, level: float = 0.95) -> list[Bin]:
    """Return the bins of a reliability diagram by rising score; those without a scan are left out.

    They are of equal mass, as far as ties allow: equal scores stay together, in the bin where their middle lies.
    Raises what `brier` does, and `ValueError` for fewer than one bin.

    >>> [(bin.n, round(bin.score, 3), bin.observed) for bin in reliability([0, 1, 1, 1], [0.2, 0.4, 0.7, 0.9], bins=2)]
    [(2, 0.3, 0.5), (2, 0.8, 1.0)]
    """
    truth, p = _known(targets, scores)
    found, place = np.unique(_bins(p, bins), return_inverse=True)
    counts = np.bincount(place, minlength=len(found))
    means, hits = (np.bincount(place, values, minlength=len(found)) for values in (p, truth))
    return [
        Bin(total / n, successes / n, *wilson(successes, n, level), n)
        for total, successes, n in zip(means.tolist(), hits.tolist(), counts.tolist(), strict=True)
    ]


def measure(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    bins: int = 10,
) -> Errors:
    """Return Brier score and expected calibration error with intervals from the bootstrap over groups of scans.

    Groups and draws are those of `damcli.metrics.intervals`; the bins stay those of the scans at hand. The interval of
    the calibration error is about what chance adds to it as well (`expected_calibration_error`). Undefined with fewer
    than two groups of labelled scans. Raises what `brier` does.

    >>> found = measure([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    >>> round(found.brier.value, 4), found.brier.low < 0.1675 < found.brier.high
    (0.1675, True)
    """
    truth, p = _known(targets, scores)
    members, count = members_of(groups, np.size(scores))
    own = members[~np.isnan(np.asarray(targets, np.float64))]
    if len(np.unique(own)) < 2:
        why = "no labelled scans" if not len(p) else "only 1 labelled scan" if len(p) == 1 else "all scans in one group"
        undefined = Estimate(math.nan, math.nan, math.nan, why)
        return Errors(undefined, undefined)
    # Of each scan: that it is one, its squared error, and by how much its score is too high, in the column of its bin.
    parts = np.zeros((len(p), 2 + bins))
    parts[:, 0], parts[:, 1] = 1, (p - truth) ** 2
    parts[np.arange(len(p)), 2 + _bins(p, bins)] = p - truth
    by_group = np.zeros((count, 2 + bins))
    np.add.at(by_group, own, parts)
    # To draw the groups by themselves is to draw their scans with them.
    sums = np.concatenate([times @ by_group for times in weights(None, count, draws, seed)])
    with np.errstate(invalid="ignore"):
        squares, gaps = sums[:, 1] / sums[:, 0], np.abs(sums[:, 2:]).sum(axis=1) / sums[:, 0]
    return Errors(
        from_draws(squares, brier(targets, scores), groups=own, level=level),
        from_draws(gaps, expected_calibration_error(targets, scores, bins), groups=own, level=level),
    )


def _known(targets: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the targets and scores of the labelled scans."""
    positive, negative, values = checked(targets, scores)
    known = positive | negative
    truth, p = positive[known].astype(np.float64), values[known].astype(np.float64)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("scores must be in [0, 1] to be taken as probabilities")
    return truth, p


def _bins(p: Floats, bins: int) -> NDArray[np.intp]:
    """Return the bin of each score, 0 … bins − 1: where the middle of its rank and its equals' lies, in integers."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (bins * (2 * ends - counts) // (2 * max(len(p), 1)))[place]
