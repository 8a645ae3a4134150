"""Rows of studies and patients: against plain loops, with no scan lost; and whose a scan is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.bundle import by_unit
from damcli.bundle.table import Row
from damcli.data.archives import Place
from damcli.data.inputs import Input
from damcli.data.workers import Decoded

RULES = {"Edema": "mean", "Fracture": "max", "Mass": "first"}


def scan(path: str, *scores: float, patient: str = "", study: str = "") -> Row:
    return Row(path, "ok", "", np.array(scores or (0.5, 0.5, 0.5), np.float32), patient=patient, study=study)


def failed(path: str, error: str = "cut off", patient: str = "", study: str = "") -> Row:
    return Row(path, "failed", error, None, patient=patient, study=study)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Rows of scans; a study is of one patient."""
    rows = []
    for number in range(draw(st.integers(0, 12))):
        patient = draw(st.sampled_from(["", "p1", "p2"]))
        study = patient and draw(st.sampled_from(["", f"{patient}.a", f"{patient}.b"]))
        status = draw(st.sampled_from(["ok", "ok", "failed", "skipped"]))
        scores = np.array([draw(st.integers(0, 7)) / 7 for _ in RULES], np.float32)
        error = "" if status == "ok" else draw(st.sampled_from(["cut off", "empty"]))
        rows.append(Row(f"{number}.dcm", status, error, scores if status == "ok" else None, "", patient, study))
    return rows


@given(tables(), st.sampled_from(["study", "patient"]))
def test_units_are_those_of_plain_loops(table: list[Row], by: str) -> None:
    groups: dict[str, list[Row]] = {}
    for row in table:
        if row.status != "skipped":
            groups.setdefault(getattr(row, by) or row.path, []).append(row)
    made = by_unit.rows(by, iter(table), RULES)
    units = list(made)
    assert [unit.path for unit in units] == list(groups)
    for unit, members in zip(units, groups.values(), strict=True):
        good = [row.scores for row in members if row.scores is not None]
        assert (unit.scans, unit.failed) == (len(members), len(members) - len(good))
        assert unit.status == ("ok" if good else "failed")
        assert unit.patient == members[0].patient
        assert unit.study == (members[0].study if by == "study" else "")
        if good:
            expected = np.float32([np.mean(good, axis=0, dtype=np.float64)[0], np.max(good, axis=0)[1], good[0][2]])
            assert unit.scores.dtype == np.float32
            np.testing.assert_allclose(unit.scores, expected, rtol=1e-7)
            np.testing.assert_array_equal(unit.scores[1:], expected[1:])
            assert unit.error == ""
        else:
            assert unit.scores is None
            assert all(row.error in unit.error for row in members)
    assert sum(unit.scans for unit in units) + made.skipped == len(table)
    assert made.alone == sum(not getattr(row, by) for row in table if row.status != "skipped")


def test_a_study_of_two_patients_is_two() -> None:
    rows = [scan("a", patient="p1", study="1.2"), scan("b", patient="p2", study="1.2"), scan("c", study="9")]
    made = by_unit.rows("study", rows, RULES)
    # Studies are numbered by patient here, so whose the last one is nobody knows.
    assert ([unit.path for unit in made], made.alone) == (["p1/1.2", "p2/1.2", "c"], 1)
    made = by_unit.rows("study", rows[1:], RULES)
    assert ([unit.path for unit in made], made.alone) == (["1.2", "9"], 0)
    made = by_unit.rows("study", [rows[0], scan("d", study="1.2")], RULES)
    assert ([unit.path for unit in made], made.alone) == (["p1/1.2", "1.2"], 0)


def test_without_any_id_each_scan_is_by_itself() -> None:
    made = by_unit.rows("study", [scan("a", patient="p"), Row("Thumbs.db", "skipped", "no image", None)], RULES)
    assert (made.skipped, made.alone, [(unit.path, unit.patient) for unit in made]) == (1, 1, [("a", "p")])
    assert list(by_unit.rows("patient", [], RULES)) == []


def test_a_failed_unit_says_what_was_wrong() -> None:
    reasons = ["empty", "cut off", "cut off", "too large", "no pixels", "several frames"]
    rows = [failed(str(number), reason, study="s") for number, reason in enumerate(reasons)]
    (unit,) = by_unit.rows("study", rows, RULES)
    assert unit.error == "2 scans: cut off; 1 scan: empty; 1 scan: too large; 2 more"
    assert (unit.scans, unit.failed) == (6, 6)
    (unit,) = by_unit.rows("study", rows[:1], RULES)
    assert unit.error == "empty"


def test_many_scans_take_little_memory() -> None:
    scores = np.full(14, 0.5, np.float32)

    def table(scans: int) -> Iterator[Row]:
        for number in range(scans):
            patient = f"{number // 4:016x}"
            yield Row(f"folder/{number:06}.dcm", "ok", "", scores, patient=patient, study=f"{patient[::-1]}")

    tracemalloc.start()
    made = by_unit.rows("study", table(20_000), dict.fromkeys(map(str, range(14)), "mean"))
    units = sum(1 for _ in made)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert units == 5_000
    assert peak < 20_000 * (2 * scores.nbytes + 300)


def ids(name: str, file: str, patient: str = "", study: str = "", stated: tuple[str, str] | None = None) -> list[str]:
    """Whose a scan is; `patient` and `study` are those of its header."""
    return [*by_unit.ids_of(Input(name, Place(Path(file)), ""), Decoded(0, None, "ok", "", patient, study), stated)]


def test_the_table_goes_before_the_header_and_this_before_folders() -> None:
    name = "patient00007/study2/view1.dcm"
    assert ids(name, name) == ["patient00007", "patient00007/study2"]
    assert ids(name, name, "H1 ", " 1.2.3\0") == ["H1", "1.2.3"]
    assert ids(name, name, "H1") == ["H1", "patient00007/study2"]
    assert ids(name, name, "H1", "1.2.3", ("T1", "")) == ["T1", "1.2.3"]
    assert ids(name, name, "H1", "1.2.3", (" T1 ", "study1")) == ["T1", "T1/study1"]
    assert ids(name, name, "H1", "1.2.3", ("", "study1")) == ["H1", "study1"]
    assert ids(name, name, "  ", "\0", (" ", " ")) == ["patient00007", "patient00007/study2"]
    assert ids("1.dcm", "/scans/1.dcm") == ["", ""]


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("view1.jpg", "/data/train/patient1/study3/view1.jpg", ["patient1", "patient1/study3"]),
        ("train/patient1/study3/view1.jpg", "small.zip", ["patient1", "patient1/study3"]),
        ("patient1_study3_view1_frontal.jpg", "patient1_study3_view1_frontal.jpg", ["patient1", "patient1/study3"]),
        ("patient2/study1/1.jpg", "/home/patient1/study9/patient2/study1/1.jpg", ["patient2", "patient2/study1"]),
        ("1.jpg", "/patients/outpatient1/study3/1.jpg", ["", ""]),
        ("1.jpg", "/study3/patient1/1.jpg", ["patient1", ""]),
        ("patient1.jpg", "/scans/patient1.jpg", ["", ""]),
    ],
)
def test_folders_are_those_of_chexpert(name: str, file: str, expected: list[str]) -> None:
    assert ids(name, file) == expected
