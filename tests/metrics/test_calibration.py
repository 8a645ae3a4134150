"""Calibration against scikit-learn, its ranking score by score in float32, its errors against sums over bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from damcli.metrics import auroc, wilson
from damcli.metrics.calibration import (
    SUREST,
    Calibration,
    brier,
    calibrated,
    expected_calibration_error,
    fit,
    measure,
    reliability,
    ties_made,
)
from damcli.metrics.intervals import from_draws, weights

SCANS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(0, 12).map(lambda k: k / 12)), min_size=1, max_size=40
)


def scans(number: int, seed: int, spread: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets, some of them unknown, and scores of which sigmoid(logit / spread − shift) is the true probability."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, number)
    targets = (rng.random(number) < 1 / (1 + np.exp(-logits))).astype(float)
    targets[rng.random(number) < 0.1] = np.nan
    return targets, 1 / (1 + np.exp(-spread * (logits + shift)))


def soft(targets: np.ndarray) -> np.ndarray:
    m, n = (targets == 1).sum(), (targets == 0).sum()
    return np.where(targets == 1, (m + 1) / (m + 2), 1 / (n + 2))


@pytest.mark.parametrize(("spread", "shift"), [(1, 0), (4, 0.5), (0.2, -1), (3, 2)])
@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scaling_is_scikit_learns_logistic_regression_on_platts_targets(
    method: str, spread: float, shift: float
) -> None:
    targets, scores = scans(400, 1, spread, shift)
    found = fit(targets, scores, method)
    known = ~np.isnan(targets)
    near = scores[known].clip(*SUREST)
    logits, wanted = np.log(near / (1 - near)), soft(targets[known])
    # A target between 0 and 1 is a scan of either class, weighted.
    reference = LogisticRegression(C=np.inf, fit_intercept=method == "platt", tol=1e-12, max_iter=10_000)
    reference.fit(
        np.concatenate([logits, logits])[:, None],
        np.repeat([1, 0], len(logits)),
        sample_weight=np.concatenate([wanted, 1 - wanted]),
    )
    assert found.slope == pytest.approx(reference.coef_[0, 0], rel=1e-5)
    assert found.intercept == pytest.approx(reference.intercept_[0] if method == "platt" else 0, abs=1e-5)
    # At the minimum the derivatives are zero, much more exactly than the reference goes.
    gap = 1 / (1 + np.exp(-(found.slope * logits + found.intercept))) - wanted
    assert abs(gap @ logits) < 1e-9
    assert method == "temperature" or abs(gap.sum()) < 1e-9


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize(
    "scores", [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 1.0], [0.4999998, 0.4999999, 0.5000001, 0.51]]
)
def test_classes_that_do_not_overlap_give_a_finite_slope(method: str, scores: list[float]) -> None:
    found = fit([0, 0, 1, 1], scores, method)
    assert 0 < found.slope < math.inf
    # Two scans of each class: Platt's targets are 1/4 and 3/4, and sums of probabilities are those of the targets.
    probabilities = found.apply(scores)
    assert method == "temperature" or probabilities.sum() == pytest.approx(2, abs=1e-5)
    assert 0.1 < probabilities[0] <= probabilities[1] < probabilities[2] <= probabilities[3] < 0.9


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_the_right_scaling_is_found_of_scores_that_are_crowded(method: str) -> None:
    """Platt: logits of 13 ± 0.5, where a step of float32 is a fortieth of what is left to 1."""
    rng = np.random.default_rng(5)
    offset = 0 if method == "temperature" else -13
    true = rng.normal(0, 2, 20_000)
    targets = rng.random(20_000) < 1 / (1 + np.exp(-true))
    for scores in (1 / (1 + np.exp(-(true / 4 - offset))), 1 / (1 + np.exp(-(true / 4 - offset))).astype(np.float32)):
        found = fit(targets, scores, method)
        assert found.slope == pytest.approx(4, rel=0.06)
        assert found.intercept == pytest.approx(4 * offset, rel=0.06)
        assert brier(targets, found.apply(scores)) == pytest.approx(brier(targets, 1 / (1 + np.exp(-true))), abs=2e-3)


@given(SCANS)
def test_isotonic_regression_is_scikit_learns(scans: list[tuple[float, float]]) -> None:
    targets, scores = np.array(scans).T
    known = ~np.isnan(targets)
    if not ((targets == 1).any() and (targets == 0).any()):
        with pytest.raises(ValueError, match="no positives|no negatives|no labelled scans"):
            fit(targets, scores, "isotonic")
        return
    reference = IsotonicRegression(out_of_bounds="clip").fit(scores[known], targets[known])
    everywhere = np.linspace(0, 1, 97)
    expected = reference.predict(everywhere)
    if np.ptp(expected) < 1e-12:
        with pytest.raises(ValueError, match="no rising function fits better than a level one"):
            fit(targets, scores, "isotonic")
        return
    found = fit(targets, scores, "isotonic")
    np.testing.assert_allclose(found.apply(everywhere), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.knots_x, reference.X_thresholds_, rtol=0, atol=0)
    np.testing.assert_allclose(found.knots_y, reference.y_thresholds_, rtol=0, atol=1e-14)
    # Not by rounding: shares that are equal are one stretch.
    assert all(b == a or b - a > 1e-4 for a, b in zip(found.knots_y, found.knots_y[1:], strict=False))


def test_isotonic_regression_of_many_scans_is_scikit_learns() -> None:
    targets, scores = scans(20_000, 2, 3)
    known = ~np.isnan(targets)
    reference = IsotonicRegression(out_of_bounds="clip").fit(scores[known], targets[known])
    found = fit(targets, scores, "isotonic").apply(scores)
    np.testing.assert_allclose(found, reference.predict(scores), rtol=0, atol=1e-12)


SCALINGS = [(slope, intercept) for slope in (0.1, 0.3, 1, 3, 60) for intercept in (-20, 0, 5)]


@pytest.mark.parametrize(("slope", "intercept"), [*SCALINGS, (3, 20), (60, 20)])
def test_no_two_neighbouring_float32_scores_become_equal(slope: float, intercept: float) -> None:
    """The sigmoid itself has no room for them: at a slope of 3 it is 1 in float64 from a score of 0.999995 on."""
    calibration = Calibration(method="platt", slope=slope, intercept=intercept)
    rng = np.random.default_rng(0)
    top = np.float32(1).view(np.int32)
    places = [0, 1 << 10, np.float32(1e-30).view(np.int32), top // 2, np.float32(0.5).view(np.int32), top - 20_000]
    for start in [*places, *rng.integers(0, top - 20_000, 20).tolist()]:
        scores = np.arange(start, start + 20_001, dtype=np.int32).view(np.float32)
        probabilities = calibration.apply(scores)
        assert (np.diff(probabilities) > 0).all()
        assert probabilities[0] >= 0
        assert probabilities[-1] <= 1


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize(("spread", "shift"), [(1, 0), (8, 0), (1, 16), (1, -40), (0.05, 0)])
def test_the_auroc_of_crowded_float32_scores_does_not_change(method: str, spread: float, shift: float) -> None:
    """Sigmoids of logits around `shift`: about 16 they are the last numbers before 1, of which many are equal."""
    rng = np.random.default_rng(6)
    targets = rng.integers(0, 2, 3000).astype(float)
    logits = (rng.normal(0, 1, 3000) + targets) * spread + shift
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    try:
        found = fit(targets, scores, method)
    except ValueError as error:
        assert method == "temperature" and "turn the ranking round" in str(error)  # noqa: PT017, PT018
        found = Calibration(method="temperature", slope=4)
    assert auroc(targets, found.apply(scores)) == pytest.approx(auroc(targets, scores), abs=1e-9)
    assert ties_made(scores, found.apply(scores)) == 0


def test_what_is_mixed_in_against_ties_changes_a_probability_by_a_millionth_at_most() -> None:
    p = np.linspace(0, 1, 1001)
    calibration = Calibration(method="platt", slope=2.5, intercept=-1)
    with np.errstate(divide="ignore"):
        exact = 1 / (1 + np.exp(-(2.5 * np.log(p / (1 - p)) - 1)))
    assert np.abs(calibration.apply(p) - exact).max() <= 1e-6
    same = Calibration(method="temperature")
    np.testing.assert_allclose(same.apply(p)[1:-1], p[1:-1], rtol=0, atol=1e-15)
    # Float32 rounds to 1 what is beyond 1 − 2⁻²⁵, so no more can be known of it.
    assert same.apply(1.0) == pytest.approx(1 - 2**-25, abs=1e-12)
    assert same.apply(np.array([[0, 1], [math.nan, 0.5]])).shape == (2, 2)
    assert np.isnan(same.apply(math.nan))


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_what_cannot_be_fitted_says_why(method: str) -> None:
    for targets, scores, why in [
        ([1, 1, math.nan], [0.1, 0.2, 0.3], "no negatives"),
        ([0, 0], [0.1, 0.2], "no positives"),
        ([math.nan], [0.1], "no labelled scans"),
        ([0, 1, 0, 1], [0.3] * 4, "all scores equal|make all scores equal"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "turn the ranking round|make all scores equal"),
        ([0, 1], [-0.1, 0.5], r"scores must be in \[0, 1\]"),
        ([0, 1], [0.5, 1.5], r"scores must be in \[0, 1\]"),
        ([0, 1], [0.5, math.nan], "scores must be finite"),
        ([0, 2], [0.5, 0.6], "targets must be 0, 1 or nan"),
    ]:
        with pytest.raises(ValueError, match=why):
            fit(targets, scores, method)
    with pytest.raises(ValueError, match=r"scores to calibrate must be in \[0, 1\]"):
        fit([0, 1, 0, 1], [0.1, 0.4, 0.3, 0.9], method).apply([1.1])


KNOTS = {"method": "isotonic", "knots_x": (0.1, 0.5), "knots_y": (0.0, 1.0)}


@pytest.mark.parametrize(
    "change",
    [
        {"method": "platt"},
        {"method": "beta"},
        {"knots_x": (0.1,)},
        {"knots_x": (0.1,), "knots_y": (0.5,)},
        {"knots_x": (0.5, 0.1)},
        {"knots_x": (0.1, 0.1)},
        {"knots_x": (0.1, 1.5)},
        {"knots_x": (math.nan, 0.5)},
        {"knots_y": (1.0, 0.0)},
        {"knots_y": (0.5, 0.5)},
        {"knots_y": (-0.5, 0.5)},
        {"intercept": 1.0},
        {"slope": 0.0},
        {"slope": math.inf},
        {"temperature": 2.0},
    ],
)
def test_a_stored_calibration_is_checked(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate(KNOTS | change)


def test_a_calibration_survives_json_to_the_last_digit() -> None:
    targets, scores = scans(300, 7, 3)
    for method in ("temperature", "platt", "isotonic"):
        found = fit(targets, scores, method)
        assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_columns_without_a_calibration_stay_as_they_are() -> None:
    halved = Calibration(method="isotonic", knots_x=(0, 1), knots_y=(0, 0.5))
    scores = np.array([[0.25, 0.5], [1.0, 0.1]], np.float32)
    assert calibrated({"b": halved}, ["a", "b"], scores).tolist() == [[0.25, 0.25], [1.0, float(np.float32(0.1)) / 2]]
    assert scores.dtype == np.float32
    assert scores[0, 1] == 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=20))
def test_ties_made_are_the_scans_that_were_told_from_one_they_now_equal(pairs: list[tuple[int, int]]) -> None:
    expected = sum(any(a != c and b == d for c, d in pairs) for a, b in pairs)
    assert ties_made([a for a, _ in pairs], [b for _, b in pairs]) == expected


def test_calibration_lowers_both_errors_of_other_scans() -> None:
    targets, scores = scans(4000, 8, 5, 0.5)
    others, theirs = scans(4000, 9, 5, 0.5)
    for method in ("temperature", "platt", "isotonic"):
        after = fit(targets, scores, method).apply(theirs)
        assert brier(others, after) < brier(others, theirs) - 0.02
        assert expected_calibration_error(others, after) < 0.7 * expected_calibration_error(others, theirs)


@given(SCANS)
def test_brier_is_scikit_learns(scans: list[tuple[float, float]]) -> None:
    targets, scores = np.array(scans).T
    known = ~np.isnan(targets)
    if known.any():
        expected = brier_score_loss(targets[known], scores[known], pos_label=1)
        assert brier(targets, scores) == pytest.approx(expected, abs=1e-15)
    else:
        assert math.isnan(brier(targets, scores))
        assert math.isnan(expected_calibration_error(targets, scores))
        assert reliability(targets, scores) == []


@given(SCANS, st.sampled_from([1, 2, 3, 10]), st.randoms(use_true_random=False))
def test_calibration_error_is_the_sum_over_bins_that_no_tie_crosses(
    scans: list[tuple[float, float]], bins: int, random: object
) -> None:
    known = sorted(((score, target) for target, score in scans if not math.isnan(target)))
    n = len(known)
    groups: dict[int, list[tuple[float, float]]] = {}
    for score, target in known:
        ranks = [rank for rank, (other, _) in enumerate(known) if other == score]
        middle = (ranks[0] + ranks[-1] + 1) / 2  # of places 0 … n, in which ranks are 1 wide
        groups.setdefault(math.floor(bins * middle / n + 1e-9), []).append((score, target))
    assert all(0 <= number < bins for number in groups)
    targets, scores = np.array(scans).T
    found = reliability(targets, scores, bins)
    assert [each.n for each in found] == [len(groups[number]) for number in sorted(groups)]
    error = 0.0
    for each, number in zip(found, sorted(groups), strict=True):
        members = np.array(groups[number])
        assert each[:2] == pytest.approx(members.mean(axis=0), abs=1e-14)
        assert each[2:4] == wilson(float(members[:, 1].sum()), len(members))
        error += len(members) / n * abs(members[:, 0].mean() - members[:, 1].mean())
    if n:
        assert expected_calibration_error(targets, scores, bins) == pytest.approx(error, abs=1e-14)
        random.shuffle(scans)  # type: ignore[attr-defined]
        mixed = expected_calibration_error(*np.array(scans).T, bins)
        assert mixed == pytest.approx(error, abs=1e-14)


def test_without_ties_bins_are_of_equal_mass() -> None:
    rng = np.random.default_rng(1)
    assert [each.n for each in reliability(rng.integers(0, 2, 1000), rng.random(1000))] == [100] * 10
    assert sorted(each.n for each in reliability(rng.integers(0, 2, 23), rng.random(23))) == [2] * 7 + [3] * 3
    with pytest.raises(ValueError, match="bins must be at least 1; got 0"):
        reliability([0, 1], [0.1, 0.2], bins=0)
    with pytest.raises(ValueError, match="to be taken as probabilities"):
        brier([0, 1], [0.1, 1.2])


def test_intervals_are_those_of_drawn_patients() -> None:
    targets, scores = scans(60, 10)
    groups = [f"p{number}" for number in np.random.default_rng(0).integers(0, 15, 60)]
    found = measure(targets, scores, groups, draws=200, seed=3)
    known = np.flatnonzero(~np.isnan(targets))
    order = known[np.argsort(scores[known])]
    place = np.full(60, -1)
    place[order] = [int(10 * (rank + 0.5) / len(order)) for rank in range(len(order))]
    squares, errors = [], []
    for drawn in weights(groups, 60, 200, 3, chunk=1):
        times = drawn[0] * ~np.isnan(targets)
        gaps = np.nan_to_num(scores - targets)
        squares.append((times * gaps**2).sum() / times.sum())
        errors.append(sum(abs((times * gaps)[place == bin].sum()) for bin in range(10)) / times.sum())
    assert found.brier == pytest.approx(from_draws(squares, brier(targets, scores)), abs=1e-13)
    error = expected_calibration_error(targets, scores)
    assert found.expected_calibration_error == pytest.approx(from_draws(errors, error), abs=1e-13)


def test_the_interval_of_the_brier_score_covers_it() -> None:
    """True probabilities that are scores themselves: the Brier score is the mean of p(1 − p)."""
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        p = rng.beta(1, 3, 150)
        found = measure(rng.random(150) < p, p, draws=200).brier
        covered += found.low <= 1 / 4 - (3 / 80 + 1 / 16) <= found.high
    # E p(1 − p) of beta(1, 3) is 1/4 − (3/80 + 1/16); of 200, 95 % ± three standard errors.
    assert 180 <= covered <= 199


def test_what_has_no_interval_says_why() -> None:
    for targets, groups, why in [
        ([math.nan, math.nan], None, "no labelled scans"),
        ([1, math.nan], None, "only 1 labelled scan"),
        ([1, 0], ["a", "a"], "all scans in one group"),
    ]:
        found = measure(targets, [0.2, 0.4], groups)
        assert found.brier.why == found.expected_calibration_error.why == why
        assert all(map(math.isnan, found.brier[:3]))
    perfect = measure([0, 0, 1], [0.0, 0.0, 1.0])
    assert perfect.brier == (0, 0, pytest.approx(1 - 0.025 ** (1 / 3)), "")
