"""Figures of a ranking against scikit-learn with sample weights, against their definitions, and under what must not
change them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from damcli.metrics import auroc, partial_auroc, ranking, sensitivity_at_specificity
from damcli.metrics import average_precision as plain_average_precision
from damcli.metrics.ranking import Figure, Ranking

# Few distinct scores, so that ties are the rule; each scan with the number of times a draw holds it.
SCANS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-4, 4).map(float), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)
GRID = np.linspace(0, 1, 9)
FIGURES: dict[str, Figure] = {
    "area": ranking.area,
    "average precision": ranking.average_precision,
    "partial area": ranking.partial_area(0.3),
    "sensitivity": ranking.sensitivity_at(0.75),
    "roc": ranking.roc_on(GRID),
    "precision": ranking.precision_on(GRID),
    "thresholds": ranking.at_thresholds([-1.5, 0, 2]),
}


def columns(scans: list[tuple[float, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets, scores, times = np.array(scans).T
    return targets, scores, times.astype(np.int64)


def both_classes(targets: np.ndarray) -> bool:
    return bool((targets == 1).any() and (targets == 0).any())


def points(targets: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, float]]:
    """(sensitivity, specificity, precision) at every threshold from above all scores down, by counting."""
    found = []
    for threshold in [math.inf, *sorted(set(scores[~np.isnan(targets)]), reverse=True)]:
        called = scores >= threshold
        true, false = (called & (targets == 1)).sum(), (called & (targets == 0)).sum()
        positives, negatives = (targets == 1).sum(), (targets == 0).sum()
        precision = true / (true + false) if true + false else math.nan
        found.append((true / positives, (negatives - false) / negatives, precision))
    return found


@given(SCANS)
def test_weighted_figures_are_those_of_scikit_learn(scans: list[tuple[float, float, int]]) -> None:
    targets, scores, times = columns(scans)
    held = ~np.isnan(targets) & (times > 0)
    ranked = Ranking.of(targets, scores)
    counts = ranked.counts(times)
    rates = (0.1, 0.3, 1.0)
    mine = [ranking.area(ranked, counts), ranking.average_precision(ranked, counts)]
    mine += [ranking.partial_area(rate)(ranked, counts) for rate in rates]
    if not both_classes(targets[held]):
        assert np.isnan(mine).all()
        return
    given_to_them = {"y_true": targets[held], "y_score": scores[held], "sample_weight": times[held]}
    theirs = [sklearn_metrics.roc_auc_score(**given_to_them), sklearn_metrics.average_precision_score(**given_to_them)]
    theirs += [sklearn_metrics.roc_auc_score(**given_to_them, max_fpr=rate) for rate in rates]
    assert np.ravel(mine) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_plain_figures_are_those_of_scikit_learn(kind: type) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random(3000) < 0.2).astype(float)
    scores = rng.normal(targets).astype(kind)
    assert partial_auroc(targets, scores) == pytest.approx(
        sklearn_metrics.roc_auc_score(targets, scores, max_fpr=0.1), abs=1e-12
    )
    assert plain_average_precision(targets, scores) == pytest.approx(
        sklearn_metrics.average_precision_score(targets, scores), abs=1e-12
    )
    false, true, _ = sklearn_metrics.roc_curve(targets, scores, drop_intermediate=False)
    negatives = (targets == 0).sum()
    assert sensitivity_at_specificity(targets, scores, 0.9) == true[(1 - false) >= 0.9 - 0.1 / negatives].max()


@given(SCANS)
def test_a_weight_is_a_scan_repeated(scans: list[tuple[float, float, int]]) -> None:
    targets, scores, times = columns(scans)
    once, repeated = Ranking.of(targets, scores), Ranking.of(np.repeat(targets, times), np.repeat(scores, times))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in FIGURES.items():
            found = figure(once, once.counts(times))
            assert found == pytest.approx(figure(repeated, repeated.counts()), abs=1e-12, nan_ok=True), name
            many = figure(once, once.counts(np.stack([[times, 0 * times], [np.ones_like(times), times]])))
            assert many.shape == (2, 2, len(found))
            assert np.array_equal(many[0, 0], found, equal_nan=True)
            assert np.array_equal(many[1, 1], found, equal_nan=True)
            assert np.array_equal(many[1, 0], figure(once, once.counts()), equal_nan=True)
            assert np.isnan(many[0, 1]).all()


@given(SCANS)
def test_figures_see_the_order_alone_and_the_area_mirrors_with_the_labels(
    scans: list[tuple[float, float, int]],
) -> None:
    targets, scores, times = columns(scans)
    one, other = Ranking.of(targets, scores), Ranking.of(targets, np.exp(scores) * 3 - 7)
    for name in ("area", "average precision", "partial area", "sensitivity", "roc", "precision"):
        figure = FIGURES[name]
        same = figure(one, one.counts(times)), figure(other, other.counts(times))
        assert np.array_equal(*same, equal_nan=True), name
    flipped = Ranking.of(1 - targets, scores)
    value = ranking.area(one, one.counts(times))
    assert ranking.area(flipped, flipped.counts(times)) == pytest.approx(1 - value, abs=1e-15, nan_ok=True)
    assert ranking.area(one, one.counts())[0] == pytest.approx(auroc(targets, scores), abs=0, nan_ok=True)


@given(SCANS, st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.9, 1.0]))
def test_points_of_the_curves_are_those_of_existing_thresholds(
    scans: list[tuple[float, float, int]], asked: float
) -> None:
    targets, scores, _ = columns(scans)
    ranked = Ranking.of(targets, scores)
    if not both_classes(targets):
        assert math.isnan(sensitivity_at_specificity(targets, scores, asked))
        return
    every = points(targets, scores)
    assert sensitivity_at_specificity(targets, scores, asked) == max(s for s, spec, _ in every if spec >= asked)
    precision = next(p for s, _, p in every[1:] if s >= asked)
    assert ranking.precision_on([asked])(ranked, ranked.counts()) == pytest.approx([precision])
    # Where the curve rises upright, its upper end; rates as quotients of counts, since 1 − 0.8 is not 0.2.
    negatives = (targets == 0).sum()
    highest = {round((1 - spec) * negatives) / negatives: s for s, spec, _ in every}
    for rate, sensitivity in highest.items():
        assert ranking.roc_on([rate])(ranked, ranked.counts()) == pytest.approx([sensitivity])


@given(SCANS, st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_fixed_thresholds_call_what_reaches_them(
    scans: list[tuple[float, float, int]], thresholds: list[float]
) -> None:
    targets, scores, _ = columns(scans)
    ranked = Ranking.of(targets, scores)
    found = ranking.at_thresholds(thresholds)(ranked, ranked.counts())
    with np.errstate(invalid="ignore"):
        sensitivity = [
            np.divide((scores[targets == 1] >= t).sum(), (targets == 1).sum(), dtype=float) for t in thresholds
        ]
        specificity = [
            np.divide((scores[targets == 0] < t).sum(), (targets == 0).sum(), dtype=float) for t in thresholds
        ]
    assert found == pytest.approx(sensitivity + specificity, nan_ok=True)


@pytest.mark.parametrize("negatives", [10, 20, 30, 70, 100, 1000])
def test_a_specificity_that_is_met_exactly_is_met(negatives: int) -> None:
    """1 − 0.9 is not a tenth in binary; the scan that makes the specificity 0.9 exactly must still be allowed."""
    allowed = negatives // 10
    targets = np.repeat([0.0, 1.0, 0.0], [allowed, 4, negatives - allowed])
    scores = -np.arange(len(targets), dtype=float)
    assert sensitivity_at_specificity(targets, scores, 0.9) == 1
    scores[allowed + 4] = 1.0  # one more negative above the positives
    assert sensitivity_at_specificity(targets, scores, 0.9) == 0


def test_one_positive_has_its_rank_for_every_figure() -> None:
    targets, scores = [0, 0, 1, 0, 0], [5, 4, 3, 2, 1]
    assert plain_average_precision(targets, scores) == pytest.approx(1 / 3)
    assert sensitivity_at_specificity(targets, scores, 0.5) == 1
    assert sensitivity_at_specificity(targets, scores, 0.51) == 0
    assert partial_auroc(targets, scores, 1.0) == auroc(targets, scores) == 0.5


def test_chance_is_one_half_and_perfection_one() -> None:
    targets = [0, 0, 1, 1]
    assert [partial_auroc(targets, [7, 7, 7, 7], rate) for rate in (0.1, 0.5, 1.0)] == pytest.approx([0.5] * 3)
    assert [partial_auroc(targets, [1, 2, 3, 4], rate) for rate in (0.1, 0.5, 1.0)] == pytest.approx([1.0] * 3)
    assert plain_average_precision(targets, [7, 7, 7, 7]) == 0.5


@pytest.mark.parametrize("targets", [[1, 1], [0, 0], [math.nan, math.nan], []])
def test_figures_are_nan_where_a_class_is_missing(targets: list[float]) -> None:
    scores = [0.5] * len(targets)
    assert math.isnan(plain_average_precision(targets, scores))
    assert math.isnan(partial_auroc(targets, scores))
    assert math.isnan(sensitivity_at_specificity(targets, scores, 0.9))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_refuses_rates_that_are_none(value: float) -> None:
    with pytest.raises(ValueError, match="max_false_positive_rate must be between 0 and 1"):
        partial_auroc([0, 1], [1, 2], value)
    with pytest.raises(ValueError, match="specificity must be between 0 and 1"):
        sensitivity_at_specificity([0, 1], [1, 2], value)


def test_refuses_an_area_of_no_width_and_targets_that_are_none() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ranking.partial_area(0)
    with pytest.raises(ValueError, match="targets must be 0, 1 or nan"):
        Ranking.of([0, -1], [1, 2])


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1, 1, 1], [1], [True, True]])
def test_refuses_weights_that_would_be_cut_or_are_of_other_scans(weights: list) -> None:
    with pytest.raises(ValueError, match=r"weights must be integers \(\.\.\., 2\)"):
        Ranking.of([0, 1], [1, 2]).counts(weights)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint32])
def test_small_integers_do_not_overflow(kind: type) -> None:
    targets = np.arange(1000) % 2
    ranking = Ranking.of(targets, np.arange(1000))
    counts = ranking.counts(np.full(1000, 200 if kind is np.uint8 else 300, kind))
    assert (counts.true[-1], counts.false[-1]) == ((100_000,) * 2 if kind is np.uint8 else (150_000,) * 2)
