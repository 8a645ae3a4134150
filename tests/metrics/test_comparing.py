"""Paired comparisons: DeLong's where scans are independent, a bootstrap over patients where not; Holm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from damcli.metrics import compare, compare_means, components, delong_test, holm
from damcli.metrics.intervals import weights


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Three findings of 300 scans of 100 patients, two scores that share most of their errors, gaps in the truth."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 100, 300)
    targets = (rng.random((100, 3)) < 0.4)[patients].astype(float)
    common = targets + rng.normal(size=(100, 3))[patients]
    a = common + 0.6 * rng.normal(size=(100, 3))[patients] + 0.2 * rng.normal(size=(300, 3))
    b = common - 0.1 * targets + 0.6 * rng.normal(size=(100, 3))[patients] + 0.2 * rng.normal(size=(300, 3))
    targets[rng.random((300, 3)) < 0.1] = math.nan
    return targets, a.round(1), b, [f"p{number}" for number in patients]


def test_without_repeating_groups_it_is_delongs_test(scored: tuple) -> None:
    targets, a, b, _ = scored
    expected = delong_test(targets[:, 0], a[:, 0], b[:, 0])
    for groups in (None, [""] * 300, [str(i) for i in range(300)]):
        assert compare(targets[:, 0], a[:, 0], b[:, 0], groups) == expected
    assert compare(targets[:, 0], a[:, 0], b[:, 0], level=0.5).low > expected.low


def test_with_groups_it_is_the_plain_loop(scored: tuple) -> None:
    targets, a, b, groups = scored
    targets, a, b = targets[:, 0], a[:, 0], b[:, 0]
    found = compare(targets, a, b, groups, draws=100, seed=4)
    known = np.flatnonzero(~np.isnan(targets))
    drawn = []
    for times in np.concatenate(list(weights(groups, 300, draws=100, seed=4))):
        rows = np.repeat(known, times[known])
        drawn.append(roc_auc_score(targets[rows], a[rows]) - roc_auc_score(targets[rows], b[rows]))
    difference = roc_auc_score(targets[known], a[known]) - roc_auc_score(targets[known], b[known])
    p = math.erfc(abs(difference) / np.std(drawn) / math.sqrt(2))
    assert found == pytest.approx((difference, *np.quantile(drawn, [0.025, 0.975]), p), abs=1e-12)
    swapped = compare(targets, b, a, groups, draws=100, seed=4)
    assert swapped == pytest.approx((-found.difference, -found.high, -found.low, found.p))


def test_its_deviation_is_obuchowskis_and_wider_than_delongs(scored: tuple) -> None:
    targets, a, b, groups = scored
    parts = [[components(targets[:, k], s[:, k]).contributions for k in range(3)] for s in (a, b)]
    _, member = np.unique(groups, return_inverse=True)
    found = compare_means(targets, a, b, groups)
    apart = np.mean(parts[0], axis=0) - np.mean(parts[1], axis=0)
    clustered = math.sqrt((np.bincount(member, apart) ** 2).sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * clustered, rel=0.1)
    alone = compare_means(targets, a, b)
    assert found.difference == alone.difference
    assert alone.high - alone.low == pytest.approx(2 * 1.959963984540054 * math.sqrt((apart**2).sum()))
    assert alone.high - alone.low < 0.8 * (found.high - found.low)


def test_the_mean_is_over_the_findings_that_have_both_aurocs(scored: tuple) -> None:
    targets, a, b, groups = scored
    for by in (None, groups):
        whole = compare_means(targets, a, b, by, draws=50)
        each = [compare(targets[:, k], a[:, k], b[:, k], by, draws=50) for k in range(3)]
        assert whole.difference == pytest.approx(np.mean([one.difference for one in each]))
        one = compare_means(targets[:, :1], a[:, :1], b[:, :1], by, draws=50)
        assert one == each[0]
        wider = np.column_stack([targets, np.zeros(300), np.arange(300) == 0])
        assert compare_means(wider, a[:, [0, 1, 2, 0, 0]], b[:, [0, 1, 2, 0, 0]], by, draws=50) == whole
    # The last finding has two positives, of one patient: defined for scans, not for patients.
    twins = np.isin(np.arange(300), np.flatnonzero(np.array(groups) == groups[0])[:2]).astype(float)
    wider, more_a, more_b = (np.column_stack([x, y]) for x, y in ((targets, twins), (a, a[:, 0]), (b, b[:, 0])))
    assert compare_means(wider, more_a, more_b, groups, draws=50) == compare_means(targets, a, b, groups, draws=50)
    assert compare_means(wider, more_a, more_b).difference != compare_means(targets, a, b).difference


@pytest.mark.parametrize("groups", [None, list("aabbcc")])
def test_two_scores_of_one_order_have_a_difference_and_no_p(groups: list[str] | None) -> None:
    targets, scores = [0, 1, 0, 1, 0, 1], np.array([1.0, 2, 3, 4, 3.5, 3])
    same = compare(targets, scores, np.exp(scores), groups, draws=50)
    assert same.difference == 0
    assert all(map(math.isnan, same[1:]))


@pytest.mark.parametrize("groups", [None, list("aabb")])
def test_without_a_class_nothing_is_compared(groups: list[str] | None) -> None:
    assert all(map(math.isnan, compare([0, 0, 0, 1], [1, 2, 3, 4], [4, 3, 2, 1], groups)))


def test_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        compare([0, 1], [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="of one shape"):
        compare_means([0, 1], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        compare([0, 0, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4], level=95)


def test_holm_by_hand() -> None:
    """0.01·4, 0.02·3, 0.03·2 held up to 0.06, 0.04·1 held up to 0.06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    assert np.array_equal(holm([math.nan]), [math.nan], equal_nan=True)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12), st.randoms())
def test_holm_rejects_what_its_steps_reject_and_sees_no_order(p: list[float], random) -> None:
    adjusted = holm(p)
    given_ones = sorted(value for value in p if not math.isnan(value))
    for alpha in (0.01, 0.05, 0.3):
        # The definition: from the smallest on, until one is above its own share of alpha.
        rejected = 0
        while rejected < len(given_ones) and given_ones[rejected] * (len(given_ones) - rejected) <= alpha:
            rejected += 1
        assert sum(value <= alpha for value in adjusted) == rejected
    assert all(math.isnan(one) if math.isnan(value) else one >= value for value, one in zip(p, adjusted, strict=True))
    order = list(range(len(p)))
    random.shuffle(order)
    assert np.array_equal(holm([p[i] for i in order]), [adjusted[i] for i in order], equal_nan=True)
