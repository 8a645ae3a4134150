"""Scans put together to studies and patients: against plain loops, and whatever the order of the scans."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.data.bands import MISSING, groups_of
from damcli.data.units import SEVERAL, Units, parse_reduce
from damcli.errors import DataError, UsageError

NAN = math.nan
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["", "p1", "p2", "p3"]),
        st.sampled_from([NAN, 0.1, 0.2, 0.3, 0.7, -3.5]),
        st.sampled_from([1.0, 0.0, -1.0, NAN]),
    ),
    min_size=1,
    max_size=14,
).filter(lambda rows: any(row[0] for row in rows))


def by_patient(patients: list[str]) -> Units:
    return Units.of("patient", patients, None, [f"{row}.png" for row in range(len(patients))])


def test_scans_are_units_of_their_own() -> None:
    units = Units.of("scan", None, None, ["a.png", "b.png"])
    assert (units.names, units.members.tolist(), units.alone, len(units)) == (["a.png", "b.png"], [0, 1], 0, 2)


def test_a_study_is_known_by_its_patient_too() -> None:
    patients, studies = ["p1", "p2", "p1", "p1"], ["study1", "study1", "study1", "study2"]
    units = Units.of("study", patients, studies, list("abcd"))
    assert units.names == ["p1/study1", "p2/study1", "p1/study2"]
    assert units.members.tolist() == [0, 1, 0, 2]
    assert units.first.tolist() == [0, 1, 3]


def test_a_study_whose_id_names_its_patient_is_called_by_that_alone() -> None:
    units = Units.of("study", ["patient1"] * 2, ["patient1/study1", "CheXpert-v1.0/test/patient1/study2"], ["a", "b"])
    assert units.names == ["patient1/study1", "CheXpert-v1.0/test/patient1/study2"]


def test_studies_without_patients_are_known_by_their_own_id() -> None:
    assert Units.of("study", None, ["s1", "s1", "s2"], list("abc")).members.tolist() == [0, 0, 1]
    # No study id is that of two patients: so it is enough without one.
    units = Units.of("study", ["p1", "", ""], ["s1", "s2", "s2"], list("abc"))
    assert (units.names, units.alone) == (["p1/s1", "s2"], 0)


def test_where_studies_are_numbered_by_patient_one_without_a_patient_is_not_put_together() -> None:
    units = Units.of("study", ["p1", "p2", "", ""], ["s1", "s1", "s1", "s1"], ["a", "b", "c", "d"])
    assert units.names == ["p1/s1", "p2/s1", "c", "d"]
    assert units.alone == 2


def test_scans_without_an_id_are_never_put_together() -> None:
    units = Units.of("patient", ["", "p", None, "p", ""], None, list("abcde"))
    assert (units.names, units.members.tolist(), units.alone) == (["a", "p", "c", "e"], [0, 1, 2, 1, 3], 3)


@pytest.mark.parametrize(("by", "patients", "studies"), [
    ("patient", None, ["s"]), ("patient", [""], ["s"]), ("study", ["p"], None), ("study", ["p"], [""]),
])  # fmt: skip
def test_units_that_are_not_known_are_refused(by, patients, studies) -> None:
    with pytest.raises(DataError, match=f"not known which {by}"):
        Units.of(by, patients, studies, ["a"], "labels.csv")


def test_a_worked_example_of_scores() -> None:
    units = by_patient(["p", "q", "p", "q", "p"])
    scores = np.array([[0.5, 0.5, 0.5], [0.1, 0.1, 0.1], [0.25, 0.25, 0.25], [NAN] * 3, [0.75, 0.75, 0.75]])
    found = units.scores(scores, ["mean", "max", "first"])
    assert found.scores.tolist() == [[0.5, 0.75, 0.5], [0.1, 0.1, 0.1]]
    assert found.failed.tolist() == [False, False]
    assert found.partly == 1


def test_a_unit_without_a_scored_scan_failed_and_the_first_is_the_first_scored() -> None:
    found = by_patient(["p", "p", "q", "r"]).scores(np.array([[NAN], [0.3], [NAN], [0.9]]), ["first"])
    np.testing.assert_array_equal(found.scores, [[0.3], [NAN], [0.9]])
    assert (found.failed.tolist(), found.partly) == ([False, True, False], 1)


def test_a_scan_with_a_score_for_some_findings_alone_failed() -> None:
    found = by_patient(["p", "p"]).scores(np.array([[0.2, NAN], [0.4, 0.6]]), ["mean", "mean"])
    assert found.scores.tolist() == [[0.4, 0.6]]


@pytest.mark.parametrize("count", [1, 3, 7, 49])
def test_the_mean_of_equal_scores_is_that_score_exactly(count: int) -> None:
    # 0.1 added up three times and divided by three is another number: a tie would be lost.
    for score in (0.1, 0.7, 1e-300, -3.3):
        found = by_patient(["p"] * count).scores(np.full((count, 1), score), ["mean"])
        assert found.scores[0, 0] == score


@given(ROWS, st.randoms(use_true_random=False))
def test_scores_and_labels_are_those_of_plain_loops_in_any_order(rows, random) -> None:
    patients, scores, labels = (list(column) for column in zip(*rows, strict=True))
    units = by_patient(patients)
    made = units.scores(np.array(scores)[:, None].repeat(3, axis=1), ["mean", "max", "first"])
    truth = units.labels(np.array(labels)[:, None])
    disagree = 0
    for unit, name in enumerate(units.names):
        own = [row for row in range(len(rows)) if (patients[row] or f"{row}.png") == name]
        assert np.flatnonzero(units.members == unit).tolist() == own
        scored = [scores[row] for row in own if not math.isnan(scores[row])]
        assert made.failed[unit] == (not scored)
        if scored:
            np.testing.assert_allclose(made.scores[unit], [np.mean(scored), max(scored), scored[0]], rtol=1e-15)
            assert min(scored) <= made.scores[unit, 0] <= max(scored)
        said = [labels[row] for row in own if not math.isnan(labels[row])]
        expected = 1 if 1 in said else -1 if -1 in said else 0 if 0 in said else NAN
        np.testing.assert_array_equal(truth.labels[unit], [expected])
        disagree += len(set(said)) > 1
    assert truth.disagree.tolist() == [disagree]

    order = list(range(len(rows)))
    random.shuffle(order)
    paths = [f"{row}.png" for row in range(len(rows))]
    again = Units.of("patient", [patients[row] for row in order], None, [paths[row] for row in order])
    mixed = again.scores(np.array(scores)[order][:, None].repeat(2, axis=1), ["mean", "max"])
    place = [again.names.index(name) for name in units.names]
    np.testing.assert_array_equal(mixed.scores[place], made.scores[:, :2])
    assert mixed.partly == made.partly
    np.testing.assert_array_equal(again.labels(np.array(labels)[order][:, None]).labels[place], truth.labels)


def test_labels_that_differ_are_counted_by_finding() -> None:
    labels = np.array([[1, 0], [0, 0], [-1, NAN], [0, 1], [NAN, NAN]])
    found = by_patient(["p", "p", "q", "q", "r"]).labels(labels)
    np.testing.assert_array_equal(found.labels, [[1, 0], [-1, 1], [NAN, NAN]])
    assert found.disagree.tolist() == [2, 0]


def test_what_scans_of_a_unit_share() -> None:
    assert by_patient(["p", "p", "q", "q"]).shared(["a", "a", "a", "b"]) == ["a", SEVERAL]


def test_rules_for_all_and_for_some_findings() -> None:
    findings = ["Edema", "Pleural Effusion"]
    assert parse_reduce("", findings) == {"Edema": "mean", "Pleural Effusion": "mean"}
    assert parse_reduce("max", findings) == {"Edema": "max", "Pleural Effusion": "max"}
    assert parse_reduce(" pleural effusion = FIRST ", findings) == {"Edema": "mean", "Pleural Effusion": "first"}
    assert parse_reduce("Edema=mean,max", findings) == {"Edema": "mean", "Pleural Effusion": "max"}


@pytest.mark.parametrize(("text", "message"), [
    ("median", "no way 'median'"), ("Edema=", "no way ''"), ("Fracture=max", "no finding 'Fracture'"),
    ("max,mean", "all findings is given twice"), ("Edema=max,edema=mean", "'Edema' is given twice"),
])  # fmt: skip
def test_rules_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_reduce(text, ["Edema", "Pleural Effusion"])


@pytest.mark.parametrize("name", ["age", "Age", "AGE"])
@pytest.mark.parametrize("as_text", [False, True])
def test_ages_become_bands(name: str, as_text: bool) -> None:
    ages = [0, 17, 17.9, 18, 39, 40, 64.5, 65, 79, 80, 104, None, 999, -1]
    cells = (
        pl.Series(name, [None if a is None else f"{a:g}" for a in ages])
        if as_text
        else pl.Series(name, ages, pl.Float64)
    )
    found = groups_of(cells)
    bands = ["0–17"] * 3 + ["18–39"] * 2 + ["40–64"] * 2 + ["65–79"] * 2 + ["80+"] * 2 + [MISSING] * 3
    assert found.groups == bands
    assert found.names == ("0–17", "18–39", "40–64", "65–79", "80+", MISSING)
    assert found.notes == ("2 ages are below 0, or 130 or above: they count as missing",)


def test_other_numbers_become_quarters_with_equal_numbers_together() -> None:
    found = groups_of(pl.Series("dose", list(range(1, 13))))
    assert found.names == ("≤ 3", "> 3 to 6", "> 6 to 9", "> 9")
    assert [found.groups.count(name) for name in found.names] == [3, 3, 3, 3]
    tied = groups_of(pl.Series("dose", [0.0] * 60 + [float(n) for n in range(1, 41)]))
    assert tied.names == ("≤ 0", "> 0 to 15", "> 15")
    assert [tied.groups.count(name) for name in tied.names] == [60, 15, 25]


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=11, max_size=60, unique=True))
def test_quarters_hold_every_scan_once_in_the_order_of_the_numbers(values: list[float | None]) -> None:
    found = groups_of(pl.Series("x", values, pl.Float64))
    known = sorted((value, group) for value, group in zip(values, found.groups, strict=True) if value is not None)
    places = [found.names.index(group) for _, group in known]
    assert places == sorted(places)
    assert [group == MISSING for group in found.groups] == [value is None for value in values]
    if len(known) > 10:
        counts = np.bincount(places)
        assert len(counts) == 4
        assert counts.max() - counts.min() <= 3


def test_few_numbers_and_texts_are_groups_as_they_are() -> None:
    assert groups_of(pl.Series("age", [10, 9, None, 10])) == (["10", "9", MISSING, "10"], ("9", "10", MISSING), ())
    assert groups_of(pl.Series("contrast", [True, False, True])).names == ("false", "true")
    found = groups_of(pl.Series("sex", [" F", "M", "", "unknown", "N/A", None, "missing"]))
    assert (found.groups, found.names) == (["F", "M"] + [MISSING] * 5, ("F", "M", MISSING))


def test_units_whose_scans_differ_do_not_make_text_of_numbers() -> None:
    cells = [str(age) for age in range(20, 60)] + [SEVERAL, ""]
    found = groups_of(pl.Series("age", cells))
    assert found.names == ("18–39", "40–64", SEVERAL, MISSING)
    assert found.groups[-2:] == [SEVERAL, MISSING]


def test_columns_that_make_no_groups_are_refused_with_the_reason() -> None:
    assert len(groups_of(pl.Series("site", [f"s{n}" for n in range(20)])).names) == 20
    with pytest.raises(DataError, match="21 different values of text, too many"):
        groups_of(pl.Series("site", [f"s{n}" for n in range(21)]), "labels.csv")
    with pytest.raises(DataError, match="no values"):
        groups_of(pl.Series("site", [None, "", "nan"], pl.String))
    with pytest.raises(DataError, match="neither text nor numbers"):
        groups_of(pl.Series("site", [[1], [2]]))
