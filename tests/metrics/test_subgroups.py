"""AUROCs of subgroups: DeLong's where patients do not repeat, Obuchowski's where they do, and gaps that are honest."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.metrics import auroc, components, delong_interval, delong_test
from damcli.metrics.subgroups import by_group

NAN = math.nan
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 5), st.sampled_from("fm?"), st.sampled_from("pqrstuvw")),
    min_size=6,
    max_size=60,
)


def obuchowski(targets: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Return S10/m, S01/n and 2·S11/(mn) of Obuchowski 1997, equations 3 to 5, from every pair and by patient."""
    gap = scores[targets == 1][:, None] - scores[targets == 0]
    won = (np.sign(gap) + 1) / 2
    area, (m, n) = won.mean(), won.shape
    v10, v01 = won.mean(axis=1), won.mean(axis=0)
    names = np.unique(patients)
    one = {p: (v10[patients[targets == 1] == p] - area) for p in names}
    other = {p: (v01[patients[targets == 0] == p] - area) for p in names}
    i10, i01 = (sum(bool(len(each[p])) for p in names) for each in (one, other))
    s10 = i10 / ((i10 - 1) * m) * sum(one[p].sum() ** 2 for p in names)
    s01 = i01 / ((i01 - 1) * n) * sum(other[p].sum() ** 2 for p in names)
    factor = math.sqrt(i10 * i01 / ((i10 - 1) * (i01 - 1)))  # the paper's is I/(I − 1); see the module
    s11 = factor * sum(one[p].sum() * other[p].sum() for p in names)
    return s10 / m, s01 / n, 2 * s11 / (m * n)


def variance_of(estimate) -> float:
    """Return the variance that an interval on the logit scale stands for."""
    logit = [math.log(bound / (1 - bound)) for bound in (estimate.low, estimate.high)]
    return ((logit[1] - logit[0]) / 2 / 1.959963984540054 * estimate.value * (1 - estimate.value)) ** 2


def zou_donner(a, b, level: float, correlation: float = 0.0) -> tuple[float, float]:
    """Return the interval of a − b from two (targets, scores) and the correlation of their AUROCs."""
    (low_a, high_a), (low_b, high_b) = (delong_interval(*part, level) for part in (a, b))
    one, other = auroc(*a), auroc(*b)
    down = (one - low_a) ** 2 + (high_b - other) ** 2 - 2 * correlation * (one - low_a) * (high_b - other)
    up = (high_a - one) ** 2 + (other - low_b) ** 2 - 2 * correlation * (high_a - one) * (other - low_b)
    return one - other - math.sqrt(down), one - other + math.sqrt(up)


def sample(seed: int, scans: int, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(scans) < 0.4).astype(float)
    return targets, rng.normal(targets * shift)


def test_a_group_has_the_auroc_and_interval_of_its_scans_alone() -> None:
    targets, scores = sample(0, 300)
    targets[::7] = NAN
    groups = np.array(list("abc"))[np.arange(300) % 3]
    found = by_group(targets, scores, groups.tolist())
    assert [group.name for group in found.groups] == ["a", "b", "c"]
    for group in found.groups:
        own = groups == group.name
        assert group.auroc.value == auroc(targets[own], scores[own])
        assert group.auroc[1:3] == pytest.approx(delong_interval(targets[own], scores[own]), abs=1e-14)
        assert (group.scans, group.small) == (100, False)
        assert group.positives == (targets[own] == 1).sum()
        assert group.negatives == (targets[own] == 0).sum()
    # A patient per scan, or unnamed ones, are the same as none.
    for patients in ([f"p{n}" for n in range(300)], [""] * 300):
        assert by_group(targets, scores, groups.tolist(), patients=patients) == found


@given(ROWS)
def test_variance_is_obuchowskis(rows) -> None:
    targets, scores, groups, patients = (np.array(column) for column in zip(*rows, strict=True))
    for group in by_group(targets, scores, groups.tolist(), patients=patients.tolist()).groups:
        own = (groups == group.name) & ~np.isnan(targets)
        fewest = min(len(set(patients[own & (targets == kind)])) for kind in (0, 1))
        assert group.small == (fewest < 10)
        if fewest < 2:
            assert group.auroc.why
            assert math.isnan(group.auroc.value)
            continue
        expected = sum(obuchowski(targets[own], scores[own], patients[own]))
        if group.auroc.why:
            assert expected == pytest.approx(0, abs=1e-12)
        elif 0 < group.auroc.value < 1:
            assert group.auroc.value == pytest.approx(auroc(targets[own], scores[own]), abs=0)
            if group.auroc.low > 1e-4 and group.auroc.high < 1 - 1e-4:  # else the logit cannot be read back
                assert variance_of(group.auroc) == pytest.approx(expected, rel=1e-6)


def test_the_difference_of_groups_that_share_patients_has_their_covariance() -> None:
    # Each patient has a frontal and a lateral scan of nearly one score: apart they would look far more uncertain.
    rng = np.random.default_rng(1)
    truth, score = sample(1, 200)
    targets, patients = np.repeat(truth, 2), np.repeat(np.arange(200), 2)
    scores = np.repeat(score, 2) + rng.normal(0, 0.3, 400)
    views = ["frontal", "lateral"] * 200
    gap = by_group(targets, scores, views, patients=patients).largest_gap
    frontal, lateral = (components(truth, scores[start::2]) for start in (0, 1))
    assert gap.groups == (("frontal", "lateral") if frontal.auroc > lateral.auroc else ("lateral", "frontal"))
    both = [(truth, scores[start::2]) for start in (0, 1)]
    correlation = np.corrcoef(frontal.contributions, lateral.contributions)[0, 1]
    assert correlation > 0.8
    pair = both if frontal.auroc > lateral.auroc else both[::-1]
    assert gap.difference[1:3] == pytest.approx(zou_donner(*pair, 0.95, correlation), abs=1e-9)
    # Its width is near that of DeLong's test, whose interval is normal.
    _, low, high, p = delong_test(truth, pair[0][1], pair[1][1])
    assert 1 < (gap.difference.high - gap.difference.low) / (high - low) < 1.1
    assert p < gap.p < p + 0.05
    alone = by_group(targets, scores, views).largest_gap
    assert alone.difference.high - alone.difference.low > 2 * (gap.difference.high - gap.difference.low)


def test_the_largest_gap_is_that_of_all_pairs_and_is_corrected_for_them() -> None:
    parts = {
        name: sample(seed, 120, shift) for seed, (name, shift) in enumerate({"a": 0.5, "b": 2, "c": 1, "d": 1}.items())
    }
    targets, scores = (np.concatenate([part[n] for part in parts.values()]) for n in (0, 1))
    groups = [name for name in parts for _ in range(120)]
    found = by_group(targets, scores, groups)
    area = {name: components(*part) for name, part in parts.items()}
    high, low = max(
        (sorted(pair, key=lambda n: -area[n].auroc) for pair in combinations(parts, 2)),
        key=lambda pair: area[pair[0]].auroc - area[pair[1]].auroc,
    )
    difference = area[high].auroc - area[low].auroc
    assert found.pairs == 6
    assert found.largest_gap.groups == (high, low) == ("b", "a")
    assert found.largest_gap.difference.value == pytest.approx(difference, abs=1e-14)
    gap = found.largest_gap
    assert gap.difference[1:3] == pytest.approx(zou_donner(parts[high], parts[low], 1 - 0.05 / 6), abs=1e-9)
    assert 0 < gap.p < 0.05 < 6 * 0.05
    # p is where the interval would just hold 0, whatever level was asked for.
    assert zou_donner(parts[high], parts[low], 1 - gap.p / 6)[0] == pytest.approx(0, abs=1e-9)
    assert by_group(targets, scores, groups, level=0.9).largest_gap.p == gap.p


@given(ROWS, st.randoms(use_true_random=False))
def test_interval_and_p_agree_and_order_makes_no_difference(rows, random) -> None:
    targets, scores, groups, patients = (list(column) for column in zip(*rows, strict=True))
    found = by_group(targets, scores, groups, patients=patients)
    _, low, high, why = found.largest_gap.difference
    assert bool(why) == math.isnan(found.largest_gap.p)
    if not why:
        assert -1 <= low <= found.largest_gap.difference.value <= high <= 1
        assert 0 <= found.largest_gap.p <= 1
        assert abs(found.largest_gap.p - 0.05) < 1e-6 or (low > 0) == (found.largest_gap.p < 0.05)
    order = list(range(len(rows)))
    random.shuffle(order)
    again = by_group(
        *([column[row] for row in order] for column in (targets, scores, groups)),
        None,
        [patients[row] for row in order],
    )
    assert [group.auroc.value for group in again.groups] == pytest.approx(
        [g.auroc.value for g in found.groups], nan_ok=True
    )
    assert again.largest_gap.p == pytest.approx(found.largest_gap.p, rel=1e-6, nan_ok=True)


def test_groups_that_are_too_small_are_said() -> None:
    targets = [1, 0, 0, 0] + [1, 1, 0, 0] + [1, 1] + [NAN] + [1, 0] * 10
    scores = list(range(len(targets)))
    groups = ["one"] * 4 + ["two"] * 4 + ["none"] * 2 + ["blank"] + ["many"] * 20
    found = by_group(targets, scores, groups, names=["many", "two", "one", "none", "blank", "absent"])
    assert [(group.name, group.small, group.auroc.why) for group in found.groups] == [
        ("many", False, ""),
        ("two", True, ""),
        ("one", True, "only 1 positive"),
        ("none", True, "no negatives"),
        ("blank", True, "no labelled scans"),
        ("absent", True, "no labelled scans"),
    ]
    assert found.largest_gap.groups == ("many", "two")
    assert found.pairs == 1
    # Two positives of one patient are one positive patient; ten scans of nine patients are a small group.
    patients = ["p", "q", "r", "s", "t", "t", *map(str, range(len(targets) - 8)), "x", "x"]
    again = by_group(targets, scores, groups, patients=patients)
    assert {group.name: group.auroc.why for group in again.groups}["two"] == "all positives are of one patient"
    assert again.largest_gap.groups is None
    assert again.largest_gap.why == "only one group has an AUROC"
    assert by_group([1, 0], [1, 0], ["a", "b"]).largest_gap.why == "no group has an AUROC"


def test_an_auroc_of_one_is_no_certainty() -> None:
    # Five pairs ordered right against 40 of which some are not: only the bound of the five keeps p honest.
    targets = np.array([1, 0] * 5 + [1, 0] * 20, float)
    scores = np.concatenate([targets[:10], np.tile([1, 0, 1, 0, 0, 1, 1, 0], 5)])
    found = by_group(targets, scores, ["few"] * 10 + ["many"] * 40)
    few, many = found.groups
    assert (few.auroc.value, few.auroc.low) == (1, pytest.approx(0.025 ** (1 / 5)))
    assert many.auroc.value == 0.75
    down = math.hypot(1 - 0.025 ** (1 / 5), many.auroc.high - 0.75)
    assert found.largest_gap.difference[:2] == pytest.approx((0.25, 0.25 - down))
    assert 0.05 < found.largest_gap.p < 1
    perfect = by_group([1, 0] * 10, [1, 0] * 10, ["a"] * 10 + ["b"] * 10).largest_gap
    assert (perfect.difference.value, perfect.p) == (0, 1)
    assert perfect.difference.low < -0.5 < 0.5 < perfect.difference.high


def test_patients_that_do_not_differ_give_no_interval() -> None:
    # Each patient has the same four scans, so that each contributes nothing to the AUROC's variance.
    rows = np.tile([[1, 3], [1, 1], [0, 2], [0, 0]], (12, 1))
    patients = np.repeat(np.arange(12), 4)
    found = by_group(rows[:, 0], rows[:, 1], ["a"] * 24 + ["b"] * 24, patients=patients)
    assert {group.auroc.why for group in found.groups} == {"no variance between patients"}
    # Two views with the very same scores do not differ, whatever rounding leaves of their variances.
    truth, score = sample(4, 60)
    twice = by_group(np.repeat(truth, 2), np.repeat(score, 2), ["a", "b"] * 60, patients=np.repeat(np.arange(60), 2))
    assert twice.largest_gap.why == "the difference has no variance"
    assert all(not group.auroc.why for group in twice.groups)


@pytest.mark.parametrize(("positives", "negatives", "most"), [(100, 400, 0.08), (10, 40, 0.08), (5, 50, 0.11)])
def test_a_gap_is_rarely_found_where_there_is_none(positives: int, negatives: int, most: float) -> None:
    # A normal interval would find one between the small groups and the large one in 10 and 14 of 100 samples.
    rng = np.random.default_rng(7)
    targets = np.repeat([1.0, 0.0, 1.0, 0.0], [positives, negatives, 100, 400])
    groups = ["few"] * (positives + negatives) + ["many"] * 500
    gaps = [by_group(targets, rng.normal(1.2 * targets), groups).largest_gap for _ in range(400)]
    assert 0.01 < np.mean([gap.p < 0.05 for gap in gaps]) < most


@pytest.mark.parametrize(("change", "message"), [
    ({"groups": ["a"]}, "groups must name"),
    ({"groups": ["a", "x"], "names": ["a"]}, "groups must name"),
    ({"patients": ["p"]}, "one for each of the 2 scans"),
    ({"targets": [2, 0]}, "targets must be"),
    ({"scores": [NAN, 0]}, "scores must be finite"),
    ({"level": 0}, "level"),
])  # fmt: skip
def test_other_values_are_refused(change: dict, message: str) -> None:
    given = {"targets": [1, 0], "scores": [1, 0], "groups": ["a", "b"]} | change
    with pytest.raises(ValueError, match=message):
        by_group(**given)
