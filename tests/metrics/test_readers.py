"""Readers beside ROC curves: by hand, by brute force over thresholds and draws, and where everything is degenerate."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.metrics import wilson
from damcli.metrics.intervals import weights
from damcli.metrics.readers import ReaderPoint, readers_beaten

NAN = math.nan
UNITS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 1.0, NAN]),  # truth
        st.integers(0, 4),  # score, with ties
        st.sampled_from([0.0, 1.0, NAN]),  # call
        st.integers(0, 3),  # how often
    ),
    min_size=4,
    max_size=16,
)


def one(targets, scores, calls, **options) -> ReaderPoint:
    """Compare one reader of one finding."""
    column = [np.asarray(values, float)[:, None] for values in (targets, scores, calls)]
    return readers_beaten(column[0], column[1], {"reader": column[2]}, **options).points[0]["reader"]


def by_hand(targets, scores, calls, times) -> tuple[Fraction, Fraction, Fraction] | None:
    """Return the reader's false positive rate and sensitivity, and the scores' sensitivity there, in exact fractions.

    Every threshold is tried on units written out as often as they count.
    """
    units = [u for u, n in zip(zip(targets, scores, calls, strict=True), times, strict=True) for _ in range(n)]
    units = [(int(t), s, int(c)) for t, s, c in units if not (math.isnan(t) or math.isnan(c))]
    positives, negatives = [[u for u in units if u[0] == kind] for kind in (1, 0)]
    if not (positives and negatives):
        return None

    def share(of, threshold) -> Fraction:
        return Fraction(sum(score >= threshold for _, score, _ in of), len(of))

    curve = [
        (share(negatives, t), share(positives, t)) for t in [math.inf, *sorted({u[1] for u in units}, reverse=True)]
    ]
    rate, sensitivity = (Fraction(sum(c for *_, c in of), len(of)) for of in (negatives, positives))
    under = [point for point in curve if point[0] <= rate]
    f0, t0 = under[-1]
    if f0 == rate:
        return rate, sensitivity, max(t for f, t in under if f == rate)
    f1, t1 = curve[len(under)]
    return rate, sensitivity, t0 + (t1 - t0) * (rate - f0) / (f1 - f0)


def test_a_worked_example() -> None:
    # The curve's points: (0, 1/3), (1/4, 2/3), (1/2, 2/3), (1/2, 1), (1, 1).
    targets, scores = [1, 1, 1, 0, 0, 0, 0], [4, 3, 1, 3, 2, 0, 0]
    point = one(targets, scores, [1, 1, 0, 1, 0, 0, 0])  # at (1/4, 2/3), on the curve: a tie
    assert point.false_positive_rate == (0.25, *wilson(1, 4), "")
    assert point.sensitivity == (2 / 3, *wilson(2, 3), "")
    assert (point.model_sensitivity, point.difference.value, point.beaten) == (2 / 3, 0.0, False)
    assert (point.units, point.uncalled, point.why) == (7, 0, "")
    beaten = one(targets, scores, [1, 0, 0, 1, 0, 0, 0])  # at (1/4, 1/3), below it
    assert (beaten.model_sensitivity, beaten.difference.value, beaten.beaten) == (2 / 3, 1 / 3, True)
    ahead = one(targets, scores, [1, 1, 1, 1, 0, 0, 0])  # at (1/4, 1), above it
    assert ahead.difference.value == pytest.approx(-1 / 3, abs=1e-15)
    assert ahead.beaten is False


def test_between_two_thresholds_the_curve_is_straight() -> None:
    # One score for all: the diagonal. A reader at (1/4, 1/4) ties with it, at (1/4, 0) is beaten by 1/4.
    targets, scores = [1] * 4 + [0] * 4, [7] * 8
    tie, beaten = (one(targets, scores, [*calls, 1, 0, 0, 0]) for calls in ([1, 0, 0, 0], [0, 0, 0, 0]))
    assert (tie.model_sensitivity, tie.difference.value, tie.beaten) == (0.25, 0, False)
    assert (beaten.model_sensitivity, beaten.difference.value, beaten.beaten) == (0.25, 0.25, True)


def test_ties_are_found_exactly_where_rates_are_no_binary_fractions() -> None:
    # On the diagonal of 3·k positives and 7·k negatives, readers at rates of n/7 and n/3 with equal values tie.
    for size in (1, 3, 11, 49):
        targets = [1] * (21 * size) + [0] * (21 * size)
        for called in range(1, 21):
            calls = ([1] * called + [0] * (21 - called)) * size
            found = one(targets, np.zeros(len(targets)), calls * 2, draws=1)
            assert (found.beaten, found.model_sensitivity) == (False, called / 21)


@given(UNITS)
def test_every_draw_is_that_of_exact_fractions(units) -> None:
    targets, scores, calls, times = (np.array(column, float) for column in zip(*units, strict=True))
    once = np.ones(len(units), int)
    expected = by_hand(targets, scores, calls, once)
    point = one(targets, scores, calls, draws=3)
    known = ~np.isnan(targets) & ~np.isnan(calls)
    if any((targets[known] == kind).sum() < 2 for kind in (0, 1)):
        assert point.beaten is None
        assert point.why
        return
    rate, sensitivity, model = expected
    assert point.false_positive_rate.value == float(rate)
    assert point.sensitivity.value == float(sensitivity)
    assert point.model_sensitivity == pytest.approx(float(model), rel=1e-15)
    assert point.beaten == (model > sensitivity)
    # Units written out as often as they are drawn are what a weight stands for.
    again = by_hand(targets, scores, calls, times.astype(int))
    long = [np.repeat(each, times.astype(int)) for each in (targets, scores, calls)]
    if again and all((long[0][~np.isnan(long[2])] == kind).sum() > 1 for kind in (0, 1)):
        assert one(*long, draws=1).beaten == (again[2] > again[1])


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_are_those_of_draws_made_one_by_one(clustered: bool) -> None:
    rng = np.random.default_rng(5)
    scans = 60
    groups = [f"p{n // 2}" for n in range(scans)] if clustered else None
    targets = (rng.random((scans, 2)) < 0.4).astype(float)
    scores = np.round(rng.normal(targets), 1)
    readers = {name: (rng.normal(targets) > 0.8).astype(float) for name in ("a", "b")}
    readers["b"][7, 0] = NAN
    found = readers_beaten(targets, scores, readers, groups, draws=200, seed=3)
    apart = {(k, name): [] for k in range(2) for name in readers}
    numbers = []
    for times in np.concatenate(list(weights(groups, scans, 200, 3))):
        number = 0
        for k, name in apart:
            rate, sensitivity, model = by_hand(targets[:, k], scores[:, k], readers[name][:, k], times)
            apart[k, name].append(float(model - sensitivity))
            number += model > sensitivity
        numbers.append(number / 2)
    for (k, name), values in apart.items():
        _, low, high, _ = found.points[k][name].difference
        assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-14)
    assert found.nrbc[:3] == pytest.approx((sum(found.beaten) / 2, *np.quantile(numbers, [0.025, 0.975])))
    assert found.of == 2
    point = found.points[0]["b"]
    assert (point.units, point.uncalled) == (59, 1)
    rate = point.false_positive_rate
    negatives = int((targets[~np.isnan(readers["b"][:, 0]), 0] == 0).sum())
    plain = wilson(round(rate.value * negatives), negatives)
    assert ((rate.low, rate.high) == plain) is not clustered


def test_readers_who_call_nothing_or_everything() -> None:
    targets, scores = [1, 1, 1, 0, 0, 0], [6, 5, 1, 4, 3, 2]
    nothing = one(targets, scores, [0] * 6)
    assert (nothing.false_positive_rate.value, nothing.sensitivity.value) == (0, 0)
    assert (nothing.model_sensitivity, nothing.beaten) == (2 / 3, True)  # the upper end of the upright line at 0
    everything = one(targets, scores, [1] * 6)
    assert (everything.false_positive_rate.value, everything.sensitivity.value) == (1, 1)
    assert (everything.model_sensitivity, everything.beaten) == (1, False)
    assert everything.difference.why == "every draw gives 0"
    # Where the highest score is a negative's, scores call nothing either at a false positive rate of 0: a tie.
    assert one(targets, [1, 2, 3, 9, 0, 0], [0] * 6).beaten is False


def test_a_perfect_classifier_against_one_who_sees_nothing_has_the_exact_bound() -> None:
    targets = [1] * 20 + [0] * 30
    point = one(targets, targets, [0] * 50)
    assert point.difference == pytest.approx((1.0, 2 * 0.025 ** (1 / 20) - 1, 1.0, ""))
    worst = one(targets, [0] * 20 + [1] * 30, targets)
    assert worst.difference == pytest.approx((-1.0, -1.0, 1 - 2 * 0.025 ** (1 / 20), ""))
    grouped = one(targets, targets, [0] * 50, groups=[f"p{n // 2}" for n in range(50)])
    assert grouped.difference.low == pytest.approx(2 * 0.025 ** (1 / 10) - 1)


def test_an_nrbc_that_no_draw_leaves_is_no_certainty() -> None:
    targets = np.repeat([[1.0, 1.0], [0.0, 0.0]], 20, axis=0)
    blind = np.zeros_like(targets)
    found = readers_beaten(targets, targets, {"a": blind, "b": blind, "c": blind}, draws=50)
    assert (found.beaten, found.nrbc, found.of) == ([3, 3], (3.0, 2.5, 3.0, ""), 3)
    none = readers_beaten(targets, targets, {"a": targets, "b": targets}, draws=50)
    assert none.nrbc == (0.0, 0.0, 0.5, "")


def test_findings_without_a_comparison_have_no_part_in_nrbc() -> None:
    rng = np.random.default_rng(1)
    targets = np.column_stack([rng.integers(0, 2, 40), np.zeros(40), rng.integers(0, 2, 40)]).astype(float)
    good = targets + rng.normal(0, 0.1, targets.shape)
    calls = {"a": rng.integers(0, 2, (40, 3)).astype(float), "b": rng.integers(0, 2, (40, 3)).astype(float)}
    calls["b"][:, 2] = NAN
    found = readers_beaten(targets, good, calls, draws=100)
    assert found.beaten == [2, None, None]
    assert found.points[1]["a"].why == "no positives"
    assert found.points[2]["b"].why == "the reader called no labelled unit"
    assert (found.points[2]["b"].units, found.points[2]["b"].uncalled) == (0, 40)
    assert found.points[2]["a"].beaten is True
    assert found.nrbc.value == 2
    lone = readers_beaten(targets[:, 1:2], good[:, 1:2], {"a": calls["a"][:, 1:2]}, draws=5)
    assert math.isnan(lone.nrbc.value)
    assert lone.nrbc.why == "in no finding can all readers be compared"


def test_positives_of_one_patient_are_no_sample() -> None:
    point = one([1, 1, 0, 0], [4, 3, 2, 1], [1, 0, 0, 0], groups=["p", "p", "q", "r"])
    assert (point.why, point.beaten) == ("all positives in one group", None)
    assert all(math.isnan(value) for value in (*point.difference[:3], point.model_sensitivity))


def test_operating_points_of_a_published_reader() -> None:
    # FORMATS: bc4 on Edema, 78 of 500 positive, sensitivity .628, specificity .915: 49 of 78, and 36 of 422.
    targets = np.repeat([1.0, 0.0], [78, 422])
    calls = np.concatenate([np.repeat([1.0, 0.0], [49, 29]), np.repeat([1.0, 0.0], [36, 386])])
    point = one(targets, np.arange(500, 0, -1), calls)
    assert round(point.sensitivity.value, 3) == 0.628
    assert round(1 - point.false_positive_rate.value, 3) == 0.915
    assert (point.model_sensitivity, point.beaten) == (1, True)
    assert 0.63 - 0.12 < 1 - point.difference.high < 0.63 < 1 - point.difference.low < 0.63 + 0.12


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 3.0, 1e6]))
def test_scores_of_another_scale_and_units_in_another_order_give_the_same(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (30, 2)).astype(float)
    scores, calls = rng.integers(0, 9, (30, 2)).astype(float), {"a": rng.integers(0, 2, (30, 2)).astype(float)}
    order = rng.permutation(30)
    found = readers_beaten(targets, scores, calls, draws=1)
    again = readers_beaten(targets[order], scores[order] * scale - 7, {"a": calls["a"][order]}, draws=1)
    assert again.beaten == found.beaten
    for one_finding, other in zip(found.points, again.points, strict=True):
        assert other["a"].model_sensitivity == one_finding["a"].model_sensitivity
        assert other["a"].sensitivity == one_finding["a"].sensitivity


@pytest.mark.parametrize(("change", "message"), [
    ({"calls": [[0.5], [0]]}, "calls must be 0, 1 or nan; got 0.5 at index 0"),
    ({"calls": [[-1], [0]]}, "calls must be"),
    ({"calls": [[1, 0], [0, 0]]}, "one shape"),
    ({"targets": [1, 0]}, "one shape"),
    ({"targets": [[2], [0]]}, "targets must be 0, 1 or nan"),
    ({"scores": [[NAN], [0]]}, "scores must be finite"),
    ({"level": 1.0}, "level"),
    ({"groups": ["a"]}, "groups must name"),
])  # fmt: skip
def test_other_values_are_refused(change: dict, message: str) -> None:
    given = {"targets": [[1], [0]], "scores": [[0.5], [0.1]], "calls": [[1], [0]]} | change
    calls = {"reader": given.pop("calls")}
    with pytest.raises(ValueError, match=message):
        readers_beaten(given.pop("targets"), given.pop("scores"), calls, **given)
