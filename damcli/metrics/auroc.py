"""The area under the ROC curve and the curve itself, exact with ties, in O(n log n)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]


class RocCurve(NamedTuple):
    """The corners of a ROC curve, from (0, 0) to (1, 1); `thresholds` fall from +inf."""

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def auroc(targets: ArrayLike, scores: ArrayLike) -> float:
    """Return the probability that a positive outscores a negative, a tie counting one half; nan if one is missing.

    `targets` (N,) holds 1, 0 or nan (left out), `scores` (N,) finite numbers of any scale. The two classes are
    sorted apart and each positive is looked up among the negatives, so the count of pairs is an exact integer.
    Raises `ValueError` for other values or shapes. Source: Bamber, J. Math. Psychol. 12 (1975) 387-415.

    >>> auroc([0, 0, 1, 1, float("nan")], [0.1, 0.4, 0.4, 0.8, 0.9])
    0.875
    """
    positive, negative, values = checked(targets, scores)
    positives, negatives = np.sort(values[positive]), np.sort(values[negative])
    if not (len(positives) and len(negatives)):
        return float("nan")
    # Python's integers, because the products of large class sizes may leave 64 bits.
    twice = int(np.searchsorted(negatives, positives, "left").sum())
    twice += int(np.searchsorted(negatives, positives, "right").sum())
    return twice / (2 * len(positives) * len(negatives))


def auroc_shifts(targets: ArrayLike, before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return how far the AUROC of each column moves from scores (N, K) to others, (K,); nan where a class is missing.

    `targets` (N, K) are as `auroc` takes them, which also says what is raised.

    >>> auroc_shifts([[0, 1], [1, 1]], [[0.1, 0.2], [0.9, 0.3]], [[0.9, 0.2], [0.1, 0.3]])
    array([ 1., nan])
    """
    columns = zip(*(np.asarray(values).T for values in (targets, before, after)), strict=True)
    return np.array([abs(auroc(truth, one) - auroc(truth, other)) for truth, one, other in columns])


def roc_curve(targets: ArrayLike, scores: ArrayLike) -> RocCurve:
    """Return the ROC curve: a scan counts as called positive where its score ≥ the threshold.

    Takes what `auroc` takes. Points on a straight line between two others are left out, so the area under the
    corners is still the AUROC. Where a class is missing its rate is nan at every point.

    >>> curve = roc_curve([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist(), curve.thresholds.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0], [inf, 0.8, 0.4, 0.1])
    """
    positive, negative, values = checked(targets, scores)
    kept = positive | negative
    values, positive = values[kept], positive[kept]
    order = np.argsort(-values)
    values = values[order]
    hits = np.cumsum(positive[order])
    last_of_tie = np.flatnonzero(np.append(values[1:] != values[:-1], True))[: len(values)]
    true = np.concatenate([[0], hits[last_of_tie]])
    false = np.concatenate([[0], last_of_tie + 1]) - true
    thresholds = np.concatenate([[np.inf], values[last_of_tie].astype(np.float64)])
    if len(true) > 2:
        # A corner is where the direction changes: compared as a cross product of integers, so exactly.
        turns = np.diff(true)[1:] * np.diff(false)[:-1] != np.diff(true)[:-1] * np.diff(false)[1:]
        corner = np.concatenate([[True], turns, [True]])
        true, false, thresholds = true[corner], false[corner], thresholds[corner]
    with np.errstate(invalid="ignore"):
        return RocCurve(false / false[-1], true / true[-1], thresholds)


def checked(targets: ArrayLike, scores: ArrayLike) -> tuple[Mask, Mask, Floats]:
    """Return (positive, negative) masks and the scores as a float array, all (N,); raises `ValueError`.

    >>> checked([1, 0, 2], [0.1, 0.2, 0.3])
    Traceback (most recent call last):
    ...
    ValueError: targets must be 0, 1 or nan; got 2.0 at index 2
    """
    # A column of a table is made one piece first: what follows reads it many times over.
    truth, values = np.asarray(targets, np.float64, order="C"), np.asarray(scores, order="C")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"targets and scores must be (N,) and equally long; got {truth.shape} and {values.shape}")
    positive, negative = truth == 1, truth == 0
    known = positive | negative | np.isnan(truth)
    if not known.all():
        at = int(np.argmin(known))
        raise ValueError(f"targets must be 0, 1 or nan; got {truth[at]} at index {at}")
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite))
        raise ValueError(f"scores must be finite; got {values[at]} at index {at}")
    return positive, negative, values
