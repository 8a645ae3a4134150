"""Thresholds against a search over all of them, intervals against published ones, exact coverage and single draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from damcli.metrics.delong import Estimate
from damcli.metrics.intervals import from_draws, weights, wilson
from damcli.metrics.operating import Point, Rule, choose, measure, point

SCANS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.integers(-4, 4).map(float)), min_size=1, max_size=25
)


class Worth(NamedTuple):
    """What a threshold is worth, exactly."""

    threshold: float
    sensitivity: Fraction
    specificity: Fraction


def all_thresholds(scans: list[tuple[float, float]]) -> list[Worth]:
    high = [score for target, score in scans if target == 1]
    low = [score for target, score in scans if target == 0]
    return [
        Worth(at, Fraction(sum(s >= at for s in high), len(high)), Fraction(sum(s < at for s in low), len(low)))
        for at in sorted({*high, *low})
    ]


def best(scans: list[tuple[float, float]], rule: Rule, prevalence: Fraction | None) -> float | None:
    """Look at every threshold; None where none does what is asked."""
    found = all_thresholds(scans)
    if rule.kind == "youden":
        found = [each for each in found if each.sensitivity + each.specificity > 1]
        return max(found, key=lambda w: (w.sensitivity + w.specificity, w.sensitivity)).threshold if found else None
    assert rule.at is not None
    at = Fraction(repr(rule.at))
    if rule.kind == "cost":
        positives, negatives = (sum(target == kind for target, _ in scans) for kind in (1, 0))
        share = Fraction(positives, positives + negatives) if prevalence is None else prevalence

        def cost(sensitivity: Fraction, specificity: Fraction) -> Fraction:
            return at * (1 - sensitivity) * share + (1 - specificity) * (1 - share)

        cheapest = min(found, key=lambda w: (cost(w.sensitivity, w.specificity), -w.sensitivity))
        nothing_called = cost(Fraction(0), Fraction(1))
        return cheapest.threshold if cost(cheapest.sensitivity, cheapest.specificity) < nothing_called else None
    order: Callable[[Worth], tuple[Fraction, Fraction]] = lambda w: (w.sensitivity, w.specificity)  # noqa: E731
    enough = [each for each in found if getattr(each, rule.kind) >= at]
    if rule.kind == "sensitivity":
        order = lambda w: (w.specificity, w.sensitivity)  # noqa: E731
    return max(enough, key=order).threshold if enough else None


@given(
    SCANS,
    st.sampled_from(
        ["youden", "sensitivity=0.5", "sensitivity=0.9", "sensitivity=1", "specificity=0.5", "specificity=0.9",
         "specificity=1", "cost=0.25", "cost=1", "cost=3", "cost=40"]
    ),
    st.sampled_from([None, 0.125, 0.5]),
)  # fmt: skip
def test_thresholds_are_those_of_a_search_over_all(
    scans: list[tuple[float, float]], text: str, prevalence: float | None
) -> None:
    targets, scores = np.array(scans).T
    rule = Rule.parse(text)
    if not ((targets == 1).any() and (targets == 0).any()):
        with pytest.raises(ValueError, match="no (positives|negatives) to choose a threshold by"):
            choose(targets, scores, rule, prevalence)
        return
    expected = best(scans, rule, None if prevalence is None else Fraction(prevalence))
    if expected is None:
        with pytest.raises(ValueError, match="no threshold|cheapest to call no scan"):
            choose(targets, scores, rule, prevalence)
        return
    found = choose(targets, scores, rule, prevalence)
    if rule.kind == "cost" and prevalence is not None and found != expected:
        # Costs that are equal as fractions may differ in their last digit here: then the two cost the same.
        costs = {w.threshold: (1 - w.sensitivity) * Fraction(text[5:]) * Fraction(prevalence)
                 + (1 - w.specificity) * (1 - Fraction(prevalence)) for w in all_thresholds(scans)}  # fmt: skip
        assert costs[found] == costs[expected]
    else:
        assert found == expected


@given(SCANS, st.sampled_from(["youden", "sensitivity=0.8", "specificity=0.8", "cost=2"]))
def test_what_a_threshold_was_worth_is_what_it_measures_also_in_float32(
    scans: list[tuple[float, float]], text: str
) -> None:
    targets, scores = np.array(scans).T
    narrow = (scores / 7).astype(np.float32)
    try:
        chosen = point(targets, narrow, Rule.parse(text))
    except ValueError:
        return
    again = Point.model_validate_json(chosen.model_dump_json())
    assert again == chosen
    measured = measure(targets, narrow, again.threshold)
    assert (measured.sensitivity.value, measured.specificity.value) == (
        chosen.chosen_on.sensitivity,
        chosen.chosen_on.specificity,
    )
    assert measured.true_positives + measured.false_negatives == chosen.chosen_on.positives
    assert measured.true_negatives + measured.false_positives == chosen.chosen_on.negatives


def test_no_threshold_where_the_highest_scores_are_those_of_negatives_or_all_scores_are_equal() -> None:
    with pytest.raises(ValueError, match="no threshold has a specificity of 0.9: the highest scores are those of neg"):
        choose([0, 1, 0], [0.1, 0.5, 0.9], Rule.parse("specificity=0.9"))
    with pytest.raises(ValueError, match="no threshold is better than calling all scans or none"):
        choose([0, 1, 0, 1], [0.5] * 4, Rule.parse("youden"))
    assert choose([0, 1, 0, 1], [0.5] * 4, Rule.parse("sensitivity=0.9")) == 0.5
    with pytest.raises(ValueError, match="a prevalence lies between 0 and 1; got 1"):
        choose([0, 1], [0.1, 0.5], Rule.parse("cost=2"), prevalence=1)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("youden", "youden", "the threshold with the largest sensitivity + specificity"),
        ("sensitivity=0.9", "sensitivity-0.9", "specificity among those with a sensitivity of at least 0.9"),
        (" specificity = 0.999999 ", "specificity-0.999999", "among those with a specificity of at least 0.999999"),
        ("cost=5", "cost-5", "a missed positive costing 5 times a false alarm"),
    ],
)
def test_a_rule_has_a_name_and_words_and_survives_json(text: str, name: str, words: str) -> None:
    rule = Rule.parse(text)
    assert rule.name == name
    assert words in rule.words
    assert Rule.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an operating point is chosen by youden, sensitivity, specificity, cost; got ''"),
        ("f1=0.5", "an operating point is chosen by"),
        ("youden=1", "youden takes no number"),
        ("sensitivity", "sensitivity takes a number, such as sensitivity=0.9"),
        ("cost", "cost takes a number, such as cost=5"),
        ("sensitivity=90%", "sensitivity takes a number; got '90%'"),
        ("sensitivity=", "sensitivity takes a number; got ''"),
        ("sensitivity=90", "a sensitivity is above 0 and at most 1; got 90"),
        ("specificity=0", "a specificity is above 0 and at most 1; got 0"),
        ("specificity=nan", "finite number"),
        ("cost=0", "a cost is above 0; got 0"),
        ("cost=-2", "a cost is above 0; got -2"),
        ("cost=inf", "finite number"),
    ],
)
def test_a_rule_that_means_nothing_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Rule.parse(text)
    assert "\n" not in str(refused.value)


def test_a_stored_point_is_checked() -> None:
    with pytest.raises(ValidationError):
        Rule(kind="sensitivity", at=1.5)
    chosen = point([0, 1], [0.1, 0.5], Rule.parse("youden")).model_dump()
    for wrong in ({"threshold": math.nan}, {"threshold": math.inf}, {"rule": {"kind": "youden", "at": 0.5}}):
        with pytest.raises(ValidationError):
            Point.model_validate(chosen | wrong)


def table(tp: int, fn: int, tn: int, fp: int) -> tuple[list[int], list[float]]:
    """Scans of that 2 × 2 table at the threshold 0.5, and two of unknown target."""
    targets = [1] * (tp + fn) + [0] * (tn + fp) + [math.nan] * 2
    return targets, [0.9] * tp + [0.1] * fn + [0.1] * tn + [0.5] * fp + [0.9, 0.1]


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_intervals_of_newcombes_examples(successes: int, total: int, low: float, high: float) -> None:
    """Newcombe, Stat. Med. 17 (1998) 857-872, Table I, method 3."""
    found = measure(*table(successes, total - successes, 5, 5), 0.5).sensitivity
    assert (found.value, found.why) == (successes / total, "")
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    mirrored = measure(*table(5, 5, successes, total - successes), 0.5).specificity
    assert mirrored == found


def test_predictive_values_of_a_published_case_control_study() -> None:
    """The 70-gene signature: 31 of 34 cases and 12 of 44 controls called, at a prevalence of 7 %.

    Data: van de Vijver et al., N. Engl. J. Med. 347 (2002) 1999-2009, an example of Mercaldo, Lau, Zhou (2007). Bounds:
    as the R package CIfinder prints them in its documentation for the standard logit method.
    """
    found = measure(*table(31, 3, 32, 12), 0.5, prevalence=0.07)
    assert found[:3] == (0.5, 31, 12)
    assert found.ppv[:3] == pytest.approx((0.2010444, 0.1331384, 0.2919216), abs=5e-8)
    assert found.npv[:3] == pytest.approx((0.9909508, 0.9734141, 0.9969560), abs=5e-8)
    assert found.prevalence == 0.07


def test_predictive_values_at_the_scans_own_prevalence_are_shares_of_those_called() -> None:
    found = measure(*table(31, 3, 32, 12), 0.5)
    assert found.prevalence == 34 / 78
    assert found.ppv == Estimate(31 / 43, *wilson(31, 43))
    assert found.npv == Estimate(32 / 35, *wilson(32, 35))
    at_it = measure(*table(31, 3, 32, 12), 0.5, prevalence=34 / 78)
    assert (at_it.ppv.value, at_it.npv.value) == pytest.approx((31 / 43, 32 / 35), abs=1e-15)


@given(*[st.integers(0, 12)] * 4, st.sampled_from([None, 0.001, 0.3, 0.999]), st.booleans())
def test_figures_follow_bayes_and_intervals_hold_them_inside_0_and_1(
    tp: int, fn: int, tn: int, fp: int, prevalence: float | None, grouped: bool
) -> None:
    targets, scores = table(tp, fn, tn, fp)
    groups = [str(row // 2) for row in range(len(targets))] if grouped else None
    found = measure(targets, scores, 0.5, prevalence, groups, draws=40)
    assert found[1:5] == (tp, fp, tn, fn)
    for figure in (found.sensitivity, found.specificity, found.ppv, found.npv):
        if figure.why:
            assert all(map(math.isnan, figure[:3]))
        else:
            assert 0 <= figure.low <= figure.value <= figure.high <= 1
            assert figure.low < figure.high
    share = Fraction(tp + fn, max(tp + fn + tn + fp, 1)) if prevalence is None else Fraction(prevalence)
    if tp + fn and tn + fp:
        sensitivity, specificity = Fraction(tp, tp + fn), Fraction(tn, tn + fp)
        called = share * sensitivity + (1 - share) * (1 - specificity)
        if not found.ppv.why:
            assert found.ppv.value == pytest.approx(float(share * sensitivity / called), abs=1e-14)
        if not found.npv.why:
            assert found.npv.value == pytest.approx(float((1 - share) * specificity / (1 - called)), abs=1e-14)
        if not grouped:
            assert (bool(found.ppv.why), bool(found.npv.why)) == (tp + fp == 0, tn + fn == 0)
    else:
        assert found.ppv.why == found.npv.why == ("no negatives" if tp + fn else "no positives")


@pytest.mark.parametrize(("sensitivity", "specificity", "prevalence"), [(0.9, 0.98, 0.07), (0.95, 0.73, 0.02)])
def test_predictive_values_are_covered_as_often_as_the_level_says(
    sensitivity: float, specificity: float, prevalence: float
) -> None:
    """Exactly: every table of 30 positives and 40 negatives by its probability, zero cells included."""
    called = prevalence * sensitivity + (1 - prevalence) * (1 - specificity)
    truth = prevalence * sensitivity / called, (1 - prevalence) * specificity / (1 - called)
    covered, seen = np.zeros(2), np.zeros(2)
    for tp in range(31):
        for tn in range(41):
            chance = math.comb(30, tp) * sensitivity**tp * (1 - sensitivity) ** (30 - tp)
            chance *= math.comb(40, tn) * specificity**tn * (1 - specificity) ** (40 - tn)
            if chance > 1e-6:
                found = measure(*table(tp, 30 - tp, tn, 40 - tn), 0.5, prevalence)
                for k, (figure, true) in enumerate(zip((found.ppv, found.npv), truth, strict=True)):
                    seen[k] += chance * (not figure.why)
                    covered[k] += chance * (figure.low <= true <= figure.high)
    assert (covered / seen > 0.935).all(), covered / seen


def test_a_predictive_value_of_1_is_bounded_by_the_bounds_of_both_rates() -> None:
    found = measure(*table(31, 3, 44, 0), 0.5, prevalence=0.07)
    hits, alarms = 0.07 * wilson(31, 34).low, 0.93 * (1 - wilson(44, 44).low)
    assert found.ppv == (1.0, pytest.approx(hits / (hits + alarms), abs=1e-15), 1.0, "")


def test_where_patients_repeat_they_are_drawn() -> None:
    rng = np.random.default_rng(3)
    groups = [f"p{number}" for number in rng.integers(0, 12, 60)]
    targets = rng.choice([0.0, 1.0, math.nan], 60, p=[0.5, 0.4, 0.1])
    scores = rng.random(60)
    found = measure(targets, scores, 0.4, None, groups, draws=300, seed=7)
    expected: dict[str, list[float]] = {"sensitivity": [], "specificity": [], "ppv": [], "npv": []}
    at_prevalence = []
    for drawn in weights(groups, 60, 300, 7, chunk=1):
        tp, fp = (int(drawn[0][(targets == kind) & (scores >= 0.4)].sum()) for kind in (1, 0))
        fn, tn = (int(drawn[0][(targets == kind) & (scores < 0.4)].sum()) for kind in (1, 0))
        shares = {"sensitivity": (tp, fn), "specificity": (tn, fp), "ppv": (tp, fp), "npv": (tn, fn)}
        for name, (hit, miss) in shares.items():
            expected[name].append(hit / (hit + miss))
        hits, alarms = 0.1 * tp / (tp + fn), 0.9 * fp / (tn + fp)
        at_prevalence.append(hits / (hits + alarms))
    for name, values in expected.items():
        estimate = getattr(found, name)
        assert estimate == pytest.approx(from_draws(values, estimate.value), abs=1e-14)
    given = measure(targets, scores, 0.4, 0.1, groups, draws=300, seed=7)
    assert given.ppv == pytest.approx(from_draws(at_prevalence, given.ppv.value), abs=1e-14)


def test_scans_seen_four_times_say_no_more_than_once() -> None:
    rng = np.random.default_rng(4)
    targets, scores = rng.integers(0, 2, 80).astype(float), rng.random(80)
    once = measure(targets, scores, 0.5)
    groups = [str(row) for row in range(80)]
    assert measure(targets, scores, 0.5, groups=groups) == once
    often = measure(np.repeat(targets, 4), np.repeat(scores, 4), 0.5, groups=np.repeat(groups, 4))
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        a, b = getattr(once, name), getattr(often, name)
        assert b.value == a.value
        assert 0.8 < (b.high - b.low) / (a.high - a.low) < 1.25


def test_what_is_undefined_says_why() -> None:
    nothing = measure([math.nan], [0.5], 0.5)
    assert nothing.sensitivity.why == nothing.ppv.why == "no positives"
    assert nothing.specificity.why == "no negatives"
    assert math.isnan(nothing.prevalence)
    none_called = measure([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], math.inf, prevalence=0.1)
    assert none_called.ppv.why == "no scans called positive"
    assert none_called.npv.value == pytest.approx(0.9)
    one_patient = measure([0, 0, 1, 1], [0.1, 0.6, 0.3, 0.7], 0.5, 0.1, ["a", "b", "c", "c"])
    assert one_patient.sensitivity.why == one_patient.ppv.why == "all positives in one group"
    assert not one_patient.specificity.why
    with pytest.raises(ValueError, match="the threshold is nan"):
        measure([0, 1], [0.1, 0.2], math.nan)
    with pytest.raises(ValueError, match="a prevalence lies between 0 and 1; got 0"):
        measure([0, 1], [0.1, 0.2], 0.15, prevalence=0)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        measure([0, 1], [0.1, 0.2], 0.15, level=95)
    with pytest.raises(ValueError, match="scores must be finite"):
        measure([0, 1], [0.1, math.nan], 0.15)
