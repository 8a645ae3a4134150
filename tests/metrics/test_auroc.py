"""AUROC and ROC curve against scikit-learn, a pair-by-pair count, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from damcli.metrics import auroc, roc_curve

# Few distinct values, so that ties are the rule.
SCANS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-4, 4).map(float)), min_size=1, max_size=30
)


def count_pairs(targets: np.ndarray, scores: np.ndarray) -> float:
    """The definition: every positive against every negative."""
    positives, negatives = scores[targets == 1], scores[targets == 0]
    won = (positives[:, None] > negatives).astype(float) + 0.5 * (positives[:, None] == negatives)
    return float(won.mean()) if won.size else math.nan


@given(SCANS)
def test_counts_every_pair_once_and_a_tie_as_one_half(scans: list[tuple[float, float]]) -> None:
    targets, scores = np.array(scans).T
    assert auroc(targets, scores) == pytest.approx(count_pairs(targets, scores), abs=1e-15, nan_ok=True)


@given(SCANS)
def test_is_unchanged_by_a_rising_map_and_mirrored_by_flipped_labels_or_scores(
    scans: list[tuple[float, float]],
) -> None:
    targets, scores = np.array(scans).T
    value = auroc(targets, scores)
    assert auroc(targets, np.exp(scores) * 3 - 7) == pytest.approx(value, abs=0, nan_ok=True)
    assert auroc(1 - targets, scores) == pytest.approx(1 - value, abs=1e-15, nan_ok=True)
    assert auroc(targets, -scores) == pytest.approx(1 - value, abs=1e-15, nan_ok=True)


@given(SCANS, st.integers(2, 4))
def test_is_unchanged_when_every_scan_is_there_several_times(scans: list[tuple[float, float]], times: int) -> None:
    targets, scores = np.array(scans).T
    once, often = auroc(targets, scores), auroc(np.tile(targets, times), np.tile(scores, times))
    assert often == pytest.approx(once, abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distinct", [3, 200, None])
def test_agrees_with_scikit_learn_to_1e_12(distinct: int | None, dtype: type) -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random(20_000) < 0.03).astype(float)
    scores = rng.normal(size=20_000) + targets
    scores = (scores if distinct is None else np.digitize(scores, np.linspace(-3, 3, distinct))).astype(dtype)
    assert auroc(targets, scores) == pytest.approx(sklearn_metrics.roc_auc_score(targets, scores), abs=1e-12)
    curve = roc_curve(targets, scores)
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(targets, scores)
    # scikit-learn keeps some points on straight lines; ours are among its points and hold the same area.
    assert set(zip(*curve, strict=True)) <= set(zip(fpr, tpr, thresholds.astype(float), strict=True))
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(
        auroc(targets, scores), abs=1e-12
    )


@given(SCANS)
def test_curve_rises_from_corner_to_corner_with_each_threshold_where_it_says(
    scans: list[tuple[float, float]],
) -> None:
    targets, scores = np.array(scans).T
    curve = roc_curve(targets, scores)
    for false, true, threshold in zip(*curve, strict=True):
        called = scores >= threshold
        for rate, kind in ((false, 0), (true, 1)):
            of_kind = targets == kind
            expected = (called & of_kind).sum() / of_kind.sum() if of_kind.any() else math.nan
            assert rate == pytest.approx(expected, nan_ok=True)
    assert curve.thresholds[0] == math.inf
    assert (np.diff(curve.thresholds) < 0).all()
    if (targets == 1).any() and (targets == 0).any():
        assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)
        assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(
            auroc(targets, scores)
        )


@pytest.mark.parametrize("targets", [[1, 1], [0, 0], [math.nan, 1], [math.nan, math.nan], []])
def test_is_nan_where_a_class_is_missing(targets: list[float]) -> None:
    assert math.isnan(auroc(targets, [0.5] * len(targets)))


def test_missing_targets_are_left_out() -> None:
    assert auroc([0, 1, math.nan], [0.1, 0.2, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("targets", "scores", "message"),
    [
        ([0, 1, -1], [0.1, 0.2, 0.3], r"targets must be 0, 1 or nan; got -1\.0 at index 2"),
        ([0, 0.5], [0.1, 0.2], r"targets must be 0, 1 or nan; got 0\.5 at index 1"),
        ([0, 1], [0.1, math.nan], "scores must be finite; got nan at index 1"),
        ([0, math.nan], [math.inf, 0.2], "scores must be finite; got inf at index 0"),
        ([0, 1, 1], [0.1, 0.2], r"equally long; got \(3,\) and \(2,\)"),
        ([[0], [1]], [[0.1], [0.2]], r"must be \(N,\)"),
    ],
)
def test_refuses_what_would_be_a_wrong_figure(targets: list, scores: list, message: str) -> None:
    for function in (auroc, roc_curve):
        with pytest.raises(ValueError, match=message):
            function(targets, scores)
