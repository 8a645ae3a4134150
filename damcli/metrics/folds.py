"""The AUROC of scores that several networks gave, each to its own fold of the scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from damcli.metrics.delong import Components, Estimate, components, estimate


def within_folds(
    targets: ArrayLike, scores: ArrayLike, folds: ArrayLike, level: float = 0.95
) -> tuple[Estimate, dict[int, Components]]:
    """Return the mean of the folds' own AUROCs with its interval, and each fold's components.

    `targets` and `scores` as in `damcli.metrics.auroc`, `folds` (N,) integers. Only scans of one fold are compared with
    one another, so networks need not put their scores on one scale, as the pooled AUROC asks of them. A fold without
    two scans of either class has no part in the mean. The folds hold different scans: their variances add. Raises what
    `auroc` does.

    >>> truth, scores = [0, 0, 1, 1] * 2, [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.7, 0.9]
    >>> mean, each = within_folds(truth, scores, [0] * 4 + [1] * 4)
    >>> mean.value, {fold: part.auroc for fold, part in each.items()}
    (0.875, {0: 1.0, 1: 0.75})
    """
    truth, numbers = np.asarray(targets, np.float64), np.asarray(folds)
    each = {
        int(fold): components(np.where(numbers == fold, truth, np.nan), scores) for fold in np.unique(numbers).tolist()
    }
    return estimate(list(each.values()), level), each
