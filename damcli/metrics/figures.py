"""Figures of one score, as plain numbers: the average precision, a part of the ROC curve, a point on it."""

from __future__ import annotations

from numpy.typing import ArrayLike

from damcli.metrics import ranking as _ranking


def average_precision(targets: ArrayLike, scores: ArrayLike) -> float:
    """Return the average precision, step by step over the thresholds; nan where a class is missing.

    Takes and raises what `damcli.metrics.auroc` does. With its interval: `bootstrap_interval`.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 3)
    0.833
    """
    return _one(targets, scores, _ranking.average_precision)


def partial_auroc(targets: ArrayLike, scores: ArrayLike, max_false_positive_rate: float = 0.1) -> float:
    """Return the area up to a false positive rate, standardised (0.5 is chance, 1 perfect); nan if a class is missing.

    Takes and raises what `damcli.metrics.auroc` does, and `ValueError` for a rate outside (0, 1]. Source: McClish,
    Medical Decision Making 9 (1989) 190-195.

    >>> round(partial_auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.5), 3)
    0.667
    """
    return _one(targets, scores, _ranking.partial_area(max_false_positive_rate))


def sensitivity_at_specificity(targets: ArrayLike, scores: ArrayLike, specificity: float) -> float:
    """Return the largest sensitivity of a threshold with at least that specificity; nan where a class is missing.

    Takes and raises what `damcli.metrics.auroc` does, and `ValueError` for a specificity outside [0, 1].

    >>> sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.9)
    0.5
    """
    return _one(targets, scores, _ranking.sensitivity_at(specificity))


def _one(targets: ArrayLike, scores: ArrayLike, figure: _ranking.Figure) -> float:
    ranking = _ranking.Ranking.of(targets, scores)
    return float(figure(ranking, ranking.counts())[0])
