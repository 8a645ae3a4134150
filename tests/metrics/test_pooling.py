"""Pooling of sites: closed forms, a published example, another library's figures, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from damcli.metrics import Estimate, components, delong_interval, estimate
from damcli.metrics.pooling import chi2_tail, logit_deviation, pool, pool_aurocs, t_quantile

# Trials of the BCG vaccine against tuberculosis: cases and others among vaccinated and not. Colditz et al., JAMA 271
# (1994) 698-702, as worked through in Viechtbauer, J. Stat. Softw. 36 (2010) no. 3.
BCG = np.array(
    [
        *([4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619], [33, 5036, 47, 5761]),
        *([180, 1361, 372, 1079], [8, 2537, 10, 619], [505, 87886, 499, 87892], [29, 7470, 45, 7232]),
        *([17, 1699, 65, 1600], [186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825]),
    ],
    float,
)


def bcg() -> tuple[np.ndarray, np.ndarray]:
    """Log relative risks and their standard deviations."""
    a, b, c, d = BCG.T
    return np.log(a / (a + b) / (c / (c + d))), np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_published_example() -> None:
    found = pool(*bcg())
    assert found.q == pytest.approx(152.2330, abs=5e-5)
    assert [found.tau2.low, found.tau2.high] == pytest.approx([0.1197, 1.1115], abs=5e-5)
    assert [100 * found.i2.low, 100 * found.i2.high] == pytest.approx([81.92, 97.68], abs=5e-3)


@pytest.mark.parametrize(
    ("values", "deviations", "expected"),
    [
        # statsmodels 0.15, combine_effects(…, method_re="iterated", use_t=True): fixed effect and its deviation, Q, p,
        # τ² of Paule and Mandel, random effects with Hartung and Knapp's interval.
        (
            *bcg(),
            (-0.43028516365, 0.04049875171, 152.233008082, 1.99676459e-26, 0.318068452, -0.714968153, -1.109098381,
             -0.320837925),
        ),
        (
            *([1.2, 1.9, 1.5, 2.6], [0.3, 0.25, 0.4, 0.2]),
            (2.02375059495, 0.13089957129, 17.800690147, 4.83503050e-4, 0.301248375, 1.841840387, 0.855172672,
             2.828508108),
        ),
    ],
)  # fmt: skip
def test_equals_statsmodels(values: object, deviations: object, expected: tuple[float, ...]) -> None:
    found = pool(values, deviations)
    deviation = (found.fixed.high - found.fixed.low) / 2 / stats.norm.ppf(0.975)
    got = (found.fixed.value, deviation, found.q, found.p, found.tau2.value, *found.random[:3])
    assert got == pytest.approx(expected, rel=1e-7)


def test_of_equal_deviations_all_is_in_closed_form() -> None:
    x, s = np.array([0.2, 1.1, 1.4, 2.9, 0.9]), 0.5
    found = pool(x, np.full(5, s), level=0.9)
    between = x.var(ddof=1)
    assert found.fixed[:3] == pytest.approx(
        [x.mean() + z * s / math.sqrt(5) for z in (0, *stats.norm.ppf([0.05, 0.95]))]
    )
    assert found.q == pytest.approx(4 * between / s**2)
    assert found.p == pytest.approx(stats.chi2.sf(found.q, 4))
    assert found.tau2.value == pytest.approx(between - s**2)
    assert found.i2.value == pytest.approx((found.q - 4) / found.q)
    # Random effects of equal sites are the t interval of their mean.
    reach = stats.t.ppf(0.95, 4) * math.sqrt(between / 5)
    assert found.random[:3] == pytest.approx([x.mean(), x.mean() - reach, x.mean() + reach])
    reach = stats.t.ppf(0.95, 3) * math.sqrt(found.tau2.value + between / 5)
    assert found.prediction[:3] == pytest.approx([x.mean(), x.mean() - reach, x.mean() + reach])
    bounds = [4 * between / stats.chi2.ppf(share, 4) - s**2 for share in (0.95, 0.05)]
    assert found.tau2[1:3] == pytest.approx([max(0, bound) for bound in bounds])
    assert found.weights == found.random_weights == pytest.approx([0.2] * 5)


def test_where_sites_agree_the_two_means_are_one_but_for_the_interval() -> None:
    found = pool([1.0, 1.1, 1.05], [0.3, 0.5, 0.4])
    assert found.tau2.value == found.i2.value == 0
    assert found.random.value == pytest.approx(found.fixed.value)
    assert found.random.low < found.fixed.low < found.fixed.high < found.random.high
    assert found.weights == pytest.approx(found.random_weights)


def test_sites_closer_together_than_chance_have_no_interval_of_tau2() -> None:
    found = pool([1.0, 1.0, 1.0], [0.3, 0.5, 0.4])
    assert (found.tau2.value, found.i2.value) == (0, 0)
    assert math.isnan(found.tau2.high)
    assert found.tau2.why == found.i2.why == "the sites lie closer together than chance lets expect"


def test_one_site_is_itself_and_two_predict_nothing() -> None:
    alone = pool([1.3], [0.2])
    assert alone.fixed[:3] == pytest.approx([1.3 + z * 0.2 for z in (0, *stats.norm.ppf([0.025, 0.975]))])
    assert {each.why for each in (alone.random, alone.prediction, alone.i2, alone.tau2)} == {"one site only"}
    assert math.isnan(alone.q)
    two = pool([1.0, 1.5], [0.3, 0.3])
    assert two.prediction.why == "two sites only"
    assert math.isnan(two.prediction.value)
    assert two.random.high - two.random.low == pytest.approx(2 * 12.7062 * math.sqrt(0.125 / 2), rel=1e-5)


@given(
    st.lists(
        st.tuples(st.floats(-8, 8), st.floats(0.02, 3)).map(lambda pair: (round(pair[0], 3), round(pair[1], 3))),
        min_size=2,
        max_size=12,
    )
)
def test_what_holds_of_any_sites(sites: list[tuple[float, float]]) -> None:
    values, deviations = zip(*sites, strict=True)
    found = pool(values, deviations)
    assert min(values) - 1e-9 <= found.fixed.value <= max(values) + 1e-9
    assert found.random.high - found.random.low >= found.fixed.high - found.fixed.low - 1e-9
    assert 0 <= found.i2.value < 1
    if not found.tau2.why:
        assert found.tau2.low <= found.tau2.value <= found.tau2.high
    if found.tau2.value:  # Paule and Mandel's equation
        w = 1 / (np.square(deviations) + found.tau2.value)
        spread = w @ (np.array(values) - w @ values / w.sum()) ** 2
        assert spread == pytest.approx(len(sites) - 1, rel=1e-6)
    again = pool(values[::-1], deviations[::-1])
    assert again.fixed[:3] == pytest.approx(found.fixed[:3])
    assert again.tau2.value == pytest.approx(found.tau2.value, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 31, 200])
def test_chi2_and_t_equal_scipys(degrees: int) -> None:
    for x in (0.0, 1e-6, 0.3, degrees, 3 * degrees, 20 * degrees):
        assert chi2_tail(x, degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-9, abs=1e-300)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-8)


@pytest.mark.parametrize("area", [0.02, 0.3, 0.5, 0.85, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("deviation", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_deviation_is_read_back_from_the_interval(area: float, deviation: float, level: float) -> None:
    z = stats.norm.ppf((1 + level) / 2)
    low, high = (expit(logit(area) + sign * z * deviation) for sign in (-1, 1))
    assert logit_deviation(Estimate(area, low, high), level) == pytest.approx(deviation, rel=1e-5)


def test_delongs_interval_gives_delongs_variance() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random(300) < 0.3).astype(float)
    part = components(targets, rng.normal(size=300) + targets)
    deviation = logit_deviation(estimate([part]), 0.95)
    expected = math.sqrt((part.contributions**2).sum()) / (part.auroc * (1 - part.auroc))
    assert deviation == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "figure",
    [
        Estimate(1.0, 0.6, 1.0),
        Estimate(0.0, 0.0, 0.3),
        Estimate(math.nan, math.nan, math.nan, "no positives"),
        Estimate(0.8, 0.8, 0.8),
        Estimate(0.8, 0.0, 1.0),
        Estimate(0.8, 0.7, 0.9),  # symmetric, but not on the logit scale
    ],
)
def test_what_has_no_interval_on_the_logit_scale_is_refused(figure: Estimate) -> None:
    with pytest.raises(ValueError, match="interval"):
        logit_deviation(figure, 0.95)


@pytest.mark.parametrize(
    ("values", "deviations"),
    [([], []), ([1.0], [0.0]), ([1.0], [-1.0]), ([math.nan], [1.0]), ([1.0], [math.inf]), ([1.0], [1e200]),
     ([1.0, 2.0], [1.0]), ([[1.0]], [[1.0]])],
)  # fmt: skip
def test_what_cannot_be_pooled_is_refused(values: object, deviations: object) -> None:
    with pytest.raises(ValueError, match="values"):
        pool(values, deviations)


def test_intervals_of_other_levels_weigh_the_same() -> None:
    rng = np.random.default_rng(1)
    targets = np.repeat([1.0, 0.0], [40, 90])
    scores = [rng.normal(targets * gap) for gap in (0.8, 1.4, 1.1)]
    levels = [0.8, 0.95, 0.99]
    aurocs = [estimate([components(targets, each)], level) for each, level in zip(scores, levels, strict=True)]
    same = [estimate([components(targets, each)]) for each in scores]
    assert pool_aurocs(aurocs, levels).fixed[:3] == pytest.approx(pool_aurocs(same, [0.95] * 3).fixed[:3])


def test_parts_of_one_hospital_pool_to_about_its_own_figure() -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random(6000) < 0.2).astype(float)
    scores = rng.normal(1.3 * targets)
    whole = delong_interval(targets, scores)
    parts = [estimate([components(targets[k::4], scores[k::4])]) for k in range(4)]
    pooled = pool_aurocs(parts, [0.95] * 4).fixed
    assert [pooled.low, pooled.high] == pytest.approx(whole, abs=0.003)


def simulated(
    rng: np.random.Generator, sites: int, positives: int, area: float, tau: float
) -> tuple[list[Estimate], float]:
    """AUROCs of sites with four negatives to each positive, the true logits normal around `area`'s; and one more's."""
    areas = [expit(logit(area) + tau * rng.normal()) for _ in range(sites + 1)]
    targets = np.repeat([1.0, 0.0], [positives, 4 * positives])
    gaps = [math.sqrt(2) * stats.norm.ppf(each) for each in areas[:-1]]
    return [estimate([components(targets, rng.normal(gap * targets))]) for gap in gaps], areas[-1]


@pytest.mark.slow
@pytest.mark.parametrize("sites", [2, 3, 5, 10])
def test_of_like_sites_the_fixed_effect_covers(sites: int) -> None:
    rng = np.random.default_rng(3)
    found = [pool_aurocs(simulated(rng, sites, 40, 0.85, 0.0)[0], [0.95] * sites) for _ in range(1000)]
    assert 0.93 <= np.mean([each.fixed.low <= 0.85 <= each.fixed.high for each in found]) <= 0.97
    assert np.mean([each.random.low <= 0.85 <= each.random.high for each in found]) >= 0.95
    assert 0.01 <= np.mean([each.p < 0.05 for each in found]) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("sites", [3, 5, 10])
def test_of_unlike_sites_random_effects_cover_and_the_fixed_effect_does_not(sites: int) -> None:
    rng = np.random.default_rng(4)
    held = []
    for _ in range(1000):
        aurocs, another = simulated(rng, sites, 40, 0.85, 0.6)
        found = pool_aurocs(aurocs, [0.95] * sites)
        truths = ((found.fixed, 0.85), (found.random, 0.85), (found.prediction, another))
        held.append([each.low <= truth <= each.high for each, truth in truths])
    fixed, random, predicted = np.mean(held, axis=0)
    assert fixed < 0.75
    assert random >= 0.92  # with three sites more than 0.95: where τ² is estimated as 0 the t is wider than need be
    assert predicted >= 0.91
