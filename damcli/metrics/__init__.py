"""Figures of merit with their uncertainty: NumPy only, exact with ties."""

from damcli.metrics.auroc import RocCurve, auroc, auroc_shifts, roc_curve
from damcli.metrics.calibration import brier, expected_calibration_error, reliability
from damcli.metrics.comparing import compare, compare_means, holm
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
from damcli.metrics.figures import average_precision, partial_auroc, sensitivity_at_specificity
from damcli.metrics.folds import within_folds
from damcli.metrics.intervals import bootstrap_interval, wilson
from damcli.metrics.ranking import Ranking

__all__ = [
    "Comparison",
    "Components",
    "Estimate",
    "Interval",
    "Ranking",
    "RocCurve",
    "auroc",
    "auroc_shifts",
    "average_precision",
    "bootstrap_interval",
    "brier",
    "compare",
    "compare_means",
    "components",
    "delong_interval",
    "delong_test",
    "estimate",
    "expected_calibration_error",
    "holm",
    "mean_auroc",
    "partial_auroc",
    "reliability",
    "roc_curve",
    "sensitivity_at_specificity",
    "wilson",
    "within_folds",
]
