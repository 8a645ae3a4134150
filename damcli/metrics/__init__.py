"""Figures of merit with their uncertainty: NumPy only, exact with ties."""

from damcli.metrics.auroc import RocCurve, auroc, roc_curve
from damcli.metrics.delong import (
    Comparison,
    Components,
    Estimate,
    Interval,
    components,
    delong_interval,
    delong_test,
    estimate,
    mean_auroc,
)
from damcli.metrics.folds import within_folds

__all__ = [
    "Comparison",
    "Components",
    "Estimate",
    "Interval",
    "RocCurve",
    "auroc",
    "components",
    "delong_interval",
    "delong_test",
    "estimate",
    "mean_auroc",
    "roc_curve",
    "within_folds",
]
