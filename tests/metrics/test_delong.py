"""DeLong's variance, intervals and test against the sums over all pairs, a published example, and simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.metrics import auroc, components, delong_interval, delong_test, estimate, mean_auroc

SCANS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-4, 4).map(float), st.integers(-4, 4).map(float)),
    min_size=4,
    max_size=30,
)


def pairwise_covariance(targets: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """DeLong's covariance of two AUROCs from the structural components, every pair looked at: O(n²)."""

    def placements(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = scores[targets == 1][:, None] - scores[targets == 0]
        won = (np.sign(gap) + 1) / 2
        return won.mean(axis=1), won.mean(axis=0)

    (v10_a, v01_a), (v10_b, v01_b) = placements(a), placements(b)
    return float(np.cov(v10_a, v10_b)[0, 1] / len(v10_a) + np.cov(v01_a, v01_b)[0, 1] / len(v01_a))


def both_classes_twice(targets: np.ndarray) -> bool:
    return bool((targets == 1).sum() >= 2 and (targets == 0).sum() >= 2)


@given(SCANS)
def test_contributions_hold_delongs_variance_and_covariance(scans: list[tuple[float, float, float]]) -> None:
    targets, a, b = np.array(scans).T
    one, other = components(targets, a), components(targets, b)
    assert one.auroc == pytest.approx(auroc(targets, a), abs=0, nan_ok=True)
    if both_classes_twice(targets):
        assert (one.contributions**2).sum() == pytest.approx(pairwise_covariance(targets, a, a), abs=1e-14)
        assert one.contributions @ other.contributions == pytest.approx(pairwise_covariance(targets, a, b), abs=1e-14)
        assert one.contributions.sum() == pytest.approx(0, abs=1e-13)
        assert (one.contributions[np.isnan(targets)] == 0).all()


@given(SCANS)
def test_interval_holds_the_figure_stays_inside_and_mirrors_with_the_labels(
    scans: list[tuple[float, float, float]],
) -> None:
    targets, scores, _ = np.array(scans).T
    value, low, high, why = estimate([components(targets, scores)])
    if why:
        assert all(map(math.isnan, (value, low, high)))
        assert not both_classes_twice(targets) or np.unique(scores[~np.isnan(targets)]).size == 1
    else:
        assert 0 <= low <= value <= high <= 1
        assert low < high
        assert delong_interval(1 - targets, scores) == pytest.approx((1 - high, 1 - low), abs=1e-12)
        assert delong_interval(targets, np.exp(scores)) == (low, high)


def test_published_ratings_of_hanley_and_mcneil() -> None:
    """109 CT scans rated 1 to 5 (Radiology 143 (1982) 29-36, Table I: area 0.893).

    Stata's manual analyses the same table under [R] roctab: area 0.8932, DeLong's standard error 0.0307, and the
    interval on the plain scale 0.83295 to 0.95339.
    """
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    targets = np.repeat([0, 1], [sum(normal), sum(abnormal)])
    ratings = np.repeat([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], normal + abnormal)
    part = components(targets, ratings)
    deviation = math.sqrt((part.contributions**2).sum())
    assert (round(part.auroc, 4), round(deviation, 4)) == (0.8932, 0.0307)
    plain = [part.auroc + sign * 1.959963984540054 * deviation for sign in (-1, 1)]
    assert [round(bound, 5) for bound in plain] == [0.83295, 0.95339]


def test_interval_on_the_logit_scale_by_hand() -> None:
    targets, scores = [0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6]
    # V10 = 2/3, 1, 1 and V01 = 1, 1, 2/3: each with variance 1/27, so var = 2/81.
    middle, deviation = 8 / 9, math.sqrt(2 / 81)
    reach = 1.959963984540054 * deviation / (middle * (1 - middle))
    expected = [1 / (1 + math.exp(-(math.log(8) + sign * reach))) for sign in (-1, 1)]
    assert delong_interval(targets, scores) == pytest.approx(expected, abs=1e-12)
    assert delong_interval(targets, scores, level=0.5)[0] > expected[0]


@pytest.mark.parametrize(("m", "n"), [(2, 2), (10, 1000), (50, 50)])
def test_a_perfect_separation_has_the_exact_bound_of_disjoint_pairs(m: int, n: int) -> None:
    targets, scores = np.repeat([0.0, 1.0], [n, m]), np.arange(n + m)
    value, low, high, _ = estimate([components(targets, scores)])
    assert (value, high) == (1, 1)
    assert low ** min(m, n) == pytest.approx(0.025)
    assert estimate([components(targets, -scores)])[:3] == pytest.approx((0, 0, 1 - low))


@pytest.mark.parametrize(
    ("targets", "scores", "why"),
    [
        ([0, 0, 0], [1, 2, 3], "no positives"),
        ([1, 1, math.nan], [1, 2, 3], "no negatives"),
        ([0, 0, 1], [1, 2, 3], "only 1 positive"),
        ([1, 1, 0], [1, 2, 3], "only 1 negative"),
        ([math.nan] * 3, [1, 2, 3], "no labelled scans"),
        ([0, 0, 1, 1], [5, 5, 5, 5], "all scores equal"),
    ],
)
def test_without_a_variance_there_is_no_interval_but_a_reason(targets: list, scores: list, why: str) -> None:
    assert all(map(math.isnan, delong_interval(targets, scores)))
    assert estimate([components(targets, scores)]).why == why


@pytest.mark.parametrize("level", [0, 1, 95, -0.5])
def test_refuses_a_level_that_is_none(level: float) -> None:
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        delong_interval([0, 0, 1, 1], [1, 2, 3, 4], level=level)


def test_comparison_is_the_paired_test_with_the_pairwise_covariance() -> None:
    rng = np.random.default_rng(2)
    targets = np.repeat([0.0, 1.0], [60, 40])
    common = rng.normal(size=100) + targets
    a, b = common + rng.normal(size=100), (common + rng.normal(size=100)).round(1)
    found = delong_test(targets, a, b)
    variance = (
        pairwise_covariance(targets, a, a) + pairwise_covariance(targets, b, b) - 2 * pairwise_covariance(targets, a, b)
    )
    difference = auroc(targets, a) - auroc(targets, b)
    assert found.difference == pytest.approx(difference, abs=1e-15)
    reach = 1.959963984540054 * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((difference - reach, difference + reach), abs=1e-12)
    # Φ from its integral, so that the p-value is checked by another way than ours.
    grid = np.linspace(-12, -abs(difference) / math.sqrt(variance), 200_001)
    assert found.p == pytest.approx(2 * np.trapezoid(np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), grid), abs=1e-7)
    swapped = delong_test(targets, b, a)
    assert (swapped.difference, swapped.p) == pytest.approx((-difference, found.p))


def test_comparison_without_variance_is_undefined() -> None:
    targets, scores = [0, 0, 1, 1, 0], np.array([1.0, 2, 3, 4, 3.5])
    same = delong_test(targets, scores, np.exp(scores))
    assert same.difference == 0
    assert all(map(math.isnan, same[1:]))
    assert all(map(math.isnan, delong_test([0, 0, 0], [1, 2, 3], [3, 2, 1])))


def many_findings(rng: np.random.Generator, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three findings of correlated labels and scores, each with gaps of its own; scores tied here and there."""
    severity = rng.normal(size=(n, 1))
    latent = 0.95 * severity + 0.3 * rng.normal(size=(n, 3))
    targets = (latent > np.array([0.0, 0.5, 1.0])).astype(float)
    targets[rng.random((n, 3)) < np.array([0.0, 0.2, 0.4])] = math.nan
    scores = (latent + 1.2 * rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(n, 3))).round(1)
    return targets, scores


def test_mean_over_findings_agrees_with_the_bootstrap_over_scans() -> None:
    rng = np.random.default_rng(3)
    targets, scores = many_findings(rng)
    parts = [components(targets[:, k], scores[:, k]) for k in range(3)]
    found = mean_auroc(targets, scores)
    assert found.value == pytest.approx(np.mean([part.auroc for part in parts]))
    draws = []
    for _ in range(1500):
        rows = rng.integers(0, len(targets), len(targets))
        draws.append(np.mean([auroc(targets[rows, k], scores[rows, k]) for k in range(3)]))
    deviation = math.sqrt((sum(part.contributions for part in parts) ** 2).sum()) / 3
    assert deviation == pytest.approx(np.std(draws), rel=0.1)
    # As if independent it would be too narrow, as a sum of deviations too wide: the covariance is at work.
    alone = [math.sqrt((part.contributions**2).sum()) for part in parts]
    assert deviation > 1.1 * math.sqrt(sum(d**2 for d in alone)) / 3
    assert deviation < sum(alone) / 3
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.012)


def test_mean_leaves_out_what_has_no_uncertainty() -> None:
    rng = np.random.default_rng(4)
    targets, scores = many_findings(rng)
    wider = np.column_stack([targets, np.zeros(len(targets)), np.eye(len(targets))[0]])
    assert mean_auroc(wider, np.column_stack([scores, scores[:, :2]])) == mean_auroc(targets, scores)
    assert mean_auroc(wider[:, 3:], scores[:, :2]).why == "no finding has an AUROC"
    with pytest.raises(ValueError, match=r"\(N,K\) of one shape"):
        mean_auroc(targets, scores[:, :2])


def test_mean_of_perfect_findings_has_the_bound_of_the_smallest_class() -> None:
    targets = np.column_stack([np.repeat([0.0, 1.0], [5, 15]), np.repeat([0.0, 1.0], [17, 3])])
    found = mean_auroc(targets, np.column_stack([np.arange(20), np.arange(20)]))
    assert (found.value, found.high) == (1, 1)
    assert found.low**3 == pytest.approx(0.025)


def test_one_finding_is_its_own_mean_and_more_scans_narrow_it() -> None:
    targets, scores = np.array([0.0, 0, 0, 1, 1, 1]), np.array([1.0, 2, 4, 3, 5, 6])
    assert mean_auroc(targets[:, None], scores[:, None])[1:3] == delong_interval(targets, scores)
    widths = [high - low for low, high in (delong_interval(np.tile(targets, t), np.tile(scores, t)) for t in (1, 2, 8))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


@pytest.mark.parametrize(("m", "n", "gap"), [(50, 150, 1.0), (50, 50, 2.0)])
def test_intervals_cover_the_true_area(m: int, n: int, gap: float) -> None:
    """Binormal scores, whose area is Φ(gap/√2); 2,000 draws, so the share's own deviation is about 0.005."""
    rng = np.random.default_rng(5)
    truth = (1 + math.erf(gap / 2)) / 2
    targets = np.repeat([1.0, 0.0], [m, n])
    intervals = [delong_interval(targets, rng.normal(size=m + n) + gap * targets) for _ in range(2000)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.97


def test_mean_interval_covers_the_true_mean() -> None:
    rng = np.random.default_rng(6)
    truth = mean_auroc(*many_findings(rng, 400_000)).value
    intervals = [mean_auroc(*many_findings(rng)) for _ in range(1000)]
    assert 0.93 <= np.mean([found.low <= truth <= found.high for found in intervals]) <= 0.97
