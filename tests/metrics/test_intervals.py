"""The bootstrap over groups against a plain loop and Obuchowski's formula, its edges, and Wilson's intervals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from damcli.metrics import bootstrap_interval, components, intervals, wilson
from damcli.metrics.intervals import bootstrap, from_draws, obstacle, quantiles, weights
from damcli.metrics.ranking import Ranking, area, average_precision, partial_area


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """300 scans of 100 patients whose scans resemble one another; some scores tied, some targets unknown."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 100, 300)
    truth = rng.random(100) < 0.4
    targets = truth[patients].astype(float)
    scores = (targets + 0.9 * rng.normal(size=100)[patients] + 0.4 * rng.normal(size=300)).round(1)
    targets[rng.random(300) < 0.1] = math.nan
    return targets, scores, [f"p{number}" for number in patients]


def test_a_draw_holds_whole_groups_and_as_many_as_there_are() -> None:
    groups = ["a", "b", "a", "", "c", "", None]
    drawn = np.concatenate(list(weights(groups, 7, draws=500, seed=3)))
    assert drawn.shape == (500, 7)
    assert drawn.dtype == np.int64
    assert (drawn[:, 0] == drawn[:, 2]).all()
    # a, b, c and three scans without a name: six groups.
    assert (drawn[:, [0, 1, 3, 4, 5, 6]].sum(axis=1) == 6).all()
    assert not (drawn[:, 3] == drawn[:, 5]).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_a_draw_depends_on_seed_and_number_only() -> None:
    groups = list("aabbccddee")
    whole = np.concatenate(list(weights(groups, 10, draws=50, seed=1)))
    for chunk in (1, 7, 50, 1000):
        assert (np.concatenate(list(weights(groups, 10, draws=50, seed=1, chunk=chunk))) == whole).all()
    assert (np.concatenate(list(weights(groups, 10, draws=20, seed=1))) == whole[:20]).all()
    assert not (np.concatenate(list(weights(groups, 10, draws=50, seed=2))) == whole).all()
    assert len(np.unique(whole, axis=0)) > 25  # of 126 that there can be
    assert (np.concatenate(list(weights(np.arange(10) // 2 + 7, 10, draws=50, seed=1))) == whole).all()


def test_without_groups_every_scan_is_its_own() -> None:
    alone = np.concatenate(list(weights(None, 5, draws=30)))
    assert (np.concatenate(list(weights([""] * 5, 5, draws=30))) == alone).all()
    assert (alone.sum(axis=1) == 5).all()


def test_refuses_groups_of_other_scans() -> None:
    with pytest.raises(ValueError, match="for each of the 3 scans; got 2"):
        next(weights(["a", "b"], 3))


def test_the_bootstrap_is_the_plain_loop(scored: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores, groups = scored
    rankings = [Ranking.of(targets, scores), Ranking.of(targets, -scores)]

    def both(ranking, counts):
        return np.concatenate([area(ranking, counts), average_precision(ranking, counts)], axis=-1)

    found = np.concatenate(list(bootstrap(rankings, both, groups, 300, draws=40, seed=5)))
    expected = []
    for times in np.concatenate(list(weights(groups, 300, draws=40, seed=5))):
        known = ~np.isnan(targets)
        rows = np.repeat(np.flatnonzero(known), times[known])
        truth = targets[rows]
        expected.append(
            [[roc_auc_score(truth, s[rows]), average_precision_score(truth, s[rows])] for s in (scores, -scores)]
        )
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    # In pieces of another size, and so in other threads, it is the same to the last bit.
    monkeypatch.setattr(intervals, "STEP", 2000)
    pieces = list(bootstrap(rankings, both, groups, 300, draws=40, seed=5))
    assert [len(piece) for piece in pieces] == [6] * 6 + [4]
    assert (np.concatenate(pieces) == found).all()


def test_a_bootstrap_that_is_left_early_does_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "STEP", 10)
    calls = []
    ranking = Ranking.of([0, 1] * 5, range(10))

    def figure(ranking, counts):
        calls.append(1)
        time.sleep(0.002)
        return area(ranking, counts)

    drawing = bootstrap([ranking], figure, None, 10, draws=2000)
    next(drawing)
    drawing.close()
    done = len(calls)
    assert done < 1500
    time.sleep(0.02)
    assert len(calls) == done


def test_its_deviation_is_that_of_obuchowski(scored: tuple) -> None:
    """Biometrics 53 (1997) 567-578: the variance of a clustered AUROC sums DeLong's contributions within patients."""
    targets, scores, groups = scored
    part = components(targets, scores)
    _, member = np.unique(groups, return_inverse=True)
    clustered = math.sqrt((np.bincount(member, part.contributions) ** 2).sum())
    alone = math.sqrt((part.contributions**2).sum())
    drawn = np.concatenate(list(bootstrap([Ranking.of(targets, scores)], area, groups, 300)))[:, 0, 0]
    assert np.std(drawn) == pytest.approx(clustered, rel=0.08)
    assert clustered > 1.3 * alone
    drawn = np.concatenate(list(bootstrap([Ranking.of(targets, scores)], area, None, 300)))[:, 0, 0]
    assert np.std(drawn) == pytest.approx(alone, rel=0.08)


def test_interval_is_normal_on_the_logit_scale_with_the_draws_deviation(scored: tuple) -> None:
    targets, scores, groups = scored
    found = bootstrap_interval(targets, scores, groups, draws=300, seed=9)
    drawn = np.concatenate(list(bootstrap([Ranking.of(targets, scores)], area, groups, 300, 300, 9)))
    middle = roc_auc_score(targets[~np.isnan(targets)], scores[~np.isnan(targets)])
    reach = 1.959963984540054 * drawn.std() / (middle * (1 - middle))
    expected = [1 / (1 + math.exp(-(math.log(middle / (1 - middle)) + sign * reach))) for sign in (-1, 1)]
    assert found[:3] == pytest.approx((middle, *expected), abs=1e-12)
    assert found == bootstrap_interval(targets, scores, groups, draws=300, seed=9)
    assert found != bootstrap_interval(targets, scores, groups, draws=300, seed=10)
    narrower = bootstrap_interval(targets, scores, None, draws=300, seed=9)
    assert narrower.high - narrower.low < 0.9 * (found.high - found.low)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_separation_has_the_exact_bound_of_the_patients(sign: int) -> None:
    """12 positives of 4 patients, 20 negatives of 10: no draw leaves 1, and four patients say little."""
    targets = np.repeat([1.0, 0.0], [12, 20])
    groups = [f"p{i // 3}" for i in range(12)] + [f"n{i // 2}" for i in range(20)]
    found = bootstrap_interval(targets, sign * targets, groups, draws=200)
    bound = 0.025 ** (1 / 4)
    assert found[:3] == pytest.approx((1, bound, 1) if sign > 0 else (0, 0, 1 - bound))


def test_rounding_is_no_spread() -> None:
    """Of 187 negatives the partial AUROC is 1 but for its last digit, in every draw another one."""
    targets = np.repeat([0.0, 1.0], [187, 7])
    found = bootstrap_interval(targets, np.linspace(0, 1, 194), figure=partial_area(0.1), draws=200)
    assert found == (1.0, pytest.approx(0.025 ** (1 / 7)), 1.0, "")
    worst = bootstrap_interval(targets, np.linspace(1, 0, 194), figure=partial_area(0.1), draws=200)
    assert worst.why == "every draw gives 0.473684"


def test_an_exact_share_keeps_what_its_draws_leave_it() -> None:
    draws = np.repeat([1.0, 0.2], [90, 10])
    assert from_draws(draws, 1.0, [0, 1] * 50).low == pytest.approx(0.2)
    assert from_draws(np.zeros(100), 0.0, groups=["a", "b", "b"])[:3] == pytest.approx((0, 0, 1 - 0.025**0.5))
    both = np.column_stack([[0, 1] * 10, [0] * 17 + [1] * 3])
    assert from_draws(np.ones(100), 1.0, both).low == pytest.approx(0.025 ** (1 / 3))


@pytest.mark.parametrize(
    ("draws", "value", "why"),
    [
        ([0.5] * 10, 0.5, "every draw gives 0.5"),
        ([1.0] * 10, 1.0, "every draw gives 1"),
        ([0.5, 0.6, math.nan, math.nan], 0.5, "undefined in 2 of 4 draws"),
        ([0.5, 0.6], math.nan, "undefined"),
    ],
)
def test_without_a_spread_there_is_no_interval_but_a_reason(draws: list, value: float, why: str) -> None:
    found = from_draws(draws, value)
    assert all(map(math.isnan, found[:3]))
    assert found.why == why


def test_undefined_draws_are_left_out() -> None:
    some = np.array([0.5, 0.6, 0.7])
    assert from_draws([*some, math.nan], 0.6) == from_draws(some, 0.6)
    assert quantiles([*some, math.nan], 0.6) == quantiles(some, 0.6)
    assert all(map(math.isnan, quantiles([math.nan], 0.6)))


def test_refuses_what_is_no_share() -> None:
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match="a share must be between 0 and 1"):
            from_draws([0.1, 0.2], value)


@pytest.mark.parametrize(
    ("targets", "groups", "why"),
    [
        ([1, 1, 0, 0], None, ""),
        ([1, 1, 0, 0], ["a", "b", "a", "b"], ""),
        ([1, 1, 0, 0], ["", "", "", ""], ""),
        ([1, 1, 0, 0], ["a", "a", "b", "c"], "all positives in one group"),
        ([1, 1, 0, 0], ["a", "b", "c", "c"], "all negatives in one group"),
        ([1, 0, 0, math.nan], None, "only 1 positive"),
        ([1, 1, 0, math.nan], None, "only 1 negative"),
        ([0, 0, math.nan, math.nan], None, "no positives"),
        ([1, 1, 1, 1], ["a", "b", "c", "d"], "no negatives"),
        ([math.nan] * 4, None, "no labelled scans"),
    ],
)
def test_says_what_stands_in_the_way(targets: list, groups: list | None, why: str) -> None:
    assert obstacle(targets, groups) == why
    found = bootstrap_interval(targets, [1, 2, 3, 1.5], groups, draws=50)
    assert found.why == why
    assert math.isnan(found.value) == bool(why)


def test_equal_scores_have_no_interval() -> None:
    assert bootstrap_interval([0, 0, 1, 1], [5, 5, 5, 5], draws=20).why == "every draw gives 0.5"


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-3, 3), st.sampled_from(["", "a", "b", "c"])),
        min_size=1,
        max_size=25,
    )
)
def test_an_interval_is_inside_holds_its_figure_and_is_never_a_point(scans: list[tuple[float, int, str]]) -> None:
    targets, scores, groups = zip(*scans, strict=True)
    for figure in (area, average_precision):
        value, low, high, why = bootstrap_interval(targets, scores, groups, figure, draws=30)
        if why:
            assert all(map(math.isnan, (value, low, high)))
        else:
            assert 0 <= low <= value <= high <= 1
            assert low < high


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_newcombe_printed_it(successes: int, total: int, low: float, high: float) -> None:
    """Statistics in Medicine 17 (1998) 857-872, Table I, method 3."""
    assert [round(bound, 4) for bound in wilson(successes, total)] == [low, high]


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilsons_bounds_are_where_the_score_test_turns(successes: int, total: int) -> None:
    successes = min(successes, total)
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert low < high
    for bound in (low, high):
        if 0 < bound < 1:
            deviation = math.sqrt(bound * (1 - bound) / total)
            assert abs(successes / total - bound) / deviation == pytest.approx(1.959963984540054, rel=1e-9)


def test_wilson_of_nothing_and_of_what_cannot_be() -> None:
    assert all(map(math.isnan, wilson(0, 0)))
    for successes, total in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes must be between 0 and the total"):
            wilson(successes, total)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        wilson(1, 2, level=95)
