"""Readers' files, as they are published and as they are spoilt: joined by key and name, or refused with the place."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.data import readings
from damcli.data.labels import CHEXPERT_FINDINGS
from damcli.data.readings import Reading
from damcli.errors import DataError, UsageError

NAN = math.nan
UNITS = ["patient64741/study1", "patient64742/study1", "patient64743/study2"]
FINDINGS = ["Edema", "Lung Opacity"]
EXPECTED = [[1, 0], [0, 1], [0, 0]]
# As the eight files are: Lung Lesion before Lung Opacity, keys with the folders above, no newline at the end.
HEADER = "Study,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema"
PLAIN = f"""{HEADER}
CheXpert-v1.0/test/patient64741/study1,0,1,1,1,0,1
CheXpert-v1.0/test/patient64742/study1,0,1,0,0,1,0
CheXpert-v1.0/test/patient64743/study2,1,0,0,1,0,0"""


def read(folder: Path, text: str | bytes, units=UNITS, findings=FINDINGS, by="study", name="bc4.csv") -> Reading:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return readings.read([folder / name], units, findings, by)[0]


def reordered(text: str, rows: list[int], columns: list[int]) -> str:
    cells = [line.split(",") for line in text.splitlines()]
    lines = [cells[0], *(cells[1:][row] for row in rows)]
    return "\n".join(",".join(line[column] for column in columns) for line in lines)


@pytest.mark.parametrize("text", [
    PLAIN, "\ufeff" + PLAIN, PLAIN.replace(",", ";"), PLAIN.replace(",", "\t"),
    PLAIN.replace("\n", "\r\n") + "\r\n\r\n", PLAIN.encode("utf-16"),
    PLAIN.replace("/", "\\"), PLAIN.replace(",1", ",1.0").replace(",0", ", 0.0 "),
    PLAIN.replace("Study", "study_id"), PLAIN.replace("Study", "PATH"), PLAIN.replace("Study", " id "),
    PLAIN.replace("CheXpert-v1.0/test/", ""), PLAIN.replace("CheXpert-v1.0/test/", "/data/test/"),
    PLAIN.replace("Edema", "EDEMA").replace("Lung Opacity", " lung opacity"),
    reordered(PLAIN, [2, 0, 1], [6, 3, 5, 0, 4, 2, 1]),
], ids=["plain", "BOM", "semicolons", "tabs", "CRLF", "UTF-16", "backslashes", "decimals", "study_id", "PATH", "id",
        "short keys", "absolute", "case", "other order"])  # fmt: skip
def test_calls_are_joined_by_key_and_name(tmp_path: Path, text: str | bytes) -> None:
    found = read(tmp_path, text)
    assert found.calls.tolist() == EXPECTED
    assert (found.name, found.missing, found.unknown, found.uncertain, found.absent) == ("bc4", 0, 0, 0, ())
    assert found.notes == []


@given(st.permutations(range(3)), st.permutations(range(7)), st.permutations(range(3)))
def test_order_of_rows_columns_and_units_makes_no_difference(tmp_path_factory, rows, columns, units) -> None:
    folder = tmp_path_factory.mktemp("readers")
    found = read(folder, reordered(PLAIN, rows, columns), [UNITS[unit] for unit in units])
    assert found.calls.tolist() == [EXPECTED[unit] for unit in units]


def test_units_may_have_the_longer_names(tmp_path: Path) -> None:
    units = [f"CheXpert-v1.0/test/{unit}" for unit in UNITS]
    assert read(tmp_path, PLAIN, units).calls.tolist() == EXPECTED
    assert read(tmp_path, PLAIN.replace("CheXpert-v1.0/", ""), units).calls.tolist() == EXPECTED


def test_parquet_and_gz_are_read_too(tmp_path: Path) -> None:
    pl.DataFrame({"Study": UNITS, "Edema": [1, 0, None], "Lung Opacity": [False, True, False]}).write_parquet(
        tmp_path / "bc6.parquet"
    )
    with pytest.raises(DataError, match="a label is neither"):  # true and false are no calls
        readings.read([tmp_path / "bc6.parquet"], UNITS, FINDINGS)
    found = readings.read([tmp_path / "bc6.parquet"], UNITS, ["Edema"])[0]
    np.testing.assert_array_equal(found.calls, [[1], [0], [NAN]])
    assert read(tmp_path, gzip.compress(PLAIN.encode()), name="bc8.csv.gz").name == "bc8"


def test_missing_rows_unknown_keys_and_uncertain_calls_are_left_out_and_said(tmp_path: Path) -> None:
    text = PLAIN.replace("patient64742/study1,0,1,0,0,1,0", "patient9/study1,0,1,0,0,1,0").replace(
        ",1,0,1\n", ",1,-1,\n"
    )
    found = read(tmp_path, text, findings=["Edema", "Lung Opacity", "Fracture"])
    np.testing.assert_array_equal(found.calls, [[NAN, NAN, NAN], [NAN, NAN, NAN], [0, 0, NAN]])
    assert found.notes == [
        "reader bc4: 1 of 3 have no row",
        "reader bc4: 1 rows belong to none that is judged and are left out",
        "reader bc4: 1 calls are uncertain (-1) and left out",
        "reader bc4: there is no column for Fracture",
    ]


@pytest.mark.parametrize(("text", "message", "where"), [
    (PLAIN + "\n" + PLAIN.splitlines()[1], "1 keys are there more than once", "rows 1 and 4"),
    (PLAIN + "\npatient64741/study1,0,0,0,0,0,0", "are of the same study, written in two ways", "row 4"),
    (PLAIN.replace("CheXpert-v1.0/test/patient64742/study1", ""), "a row has no study", "row 2"),
    (PLAIN.replace(",0,1,0,0,1,0", ",0,1,0,0,1,yes"), "neither 1, 0, -1", "row 2 below the header, column 'Edema'"),
    (PLAIN.replace(",0,1,0,0,1,0", ",0,1,0,0,1,0.5"), "neither 1, 0, -1", "row 2 below the header, column 'Edema'"),
    (PLAIN.replace("patient", "person"), "none of its 3 rows is of a study", "column 'study'"),
    (PLAIN.replace("patient6474", "patient1"), "none of its 3 rows", "column 'study'"),
    (PLAIN.replace("Study", "Exam"), "no column that says which study", "bc4.csv"),
    (PLAIN.replace("No Finding", "study"), "which column holds the keys is not clear", "bc4.csv"),
    (PLAIN.replace("Edema", "Oedema").replace("Lung Opacity", "Opacity"), "none of the findings", "bc4.csv"),
    (PLAIN.replace("No Finding", "edema").replace(",Edema", ",EDEMA"), "'Edema' is not clear", "bc4.csv"),
    (PLAIN.replace("No Finding", "Edema"), "names a column twice: Edema", "bc4.csv"),
    (HEADER, "table is empty", "bc4.csv"),
    (PLAIN.replace("1,1,1,0,1\n", "1,1,1,0\n"), "line 2 has 6 fields", "bc4.csv"),
])  # fmt: skip
def test_files_that_are_spoilt_are_refused_with_the_place(tmp_path: Path, text: str, message: str, where: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert where in str(caught.value.where)


def test_a_key_that_may_be_of_two_units_is_refused(tmp_path: Path) -> None:
    text = "Study,Edema\nstudy1,1\nstudy2,0\n"
    with pytest.raises(DataError, match="may be of 2 that are judged"):
        read(tmp_path, text)
    assert read(tmp_path, "Study,Edema\nstudy2,1\n").calls[2, 0] == 1


def test_whole_parts_of_keys_are_compared(tmp_path: Path) -> None:
    units = ["p11/study1", "p1/study11", "p1/study1"]
    found = read(tmp_path, "Study,Edema\np1/study1,1\nx/p11/study1,0\n", units, ["Edema"])
    np.testing.assert_array_equal(found.calls, [[0], [NAN], [1]])
    assert found.unknown == 0


def test_the_longest_unit_is_meant(tmp_path: Path) -> None:
    found = read(tmp_path, "Study,Edema\nx/p1/study1,1\n", ["study1", "p1/study1"], ["Edema"])
    np.testing.assert_array_equal(found.calls, [[NAN], [1]])


def test_readers_of_scans_and_patients(tmp_path: Path) -> None:
    text = "path,study,Edema\na/1.png,s,1\na/2.png,s,0\n"
    assert read(tmp_path, text, ["a/2.png", "a/1.png"], ["Edema"], by="scan").calls.tolist() == [[0], [1]]
    assert read(tmp_path, "Patient_ID,Edema\np2,1\n", ["p1", "p2"], ["Edema"], by="patient").missing == 1
    with pytest.raises(DataError, match="1 keys are there more than once"):  # two rows for the study
        read(tmp_path, text, ["s"], ["Edema"])
    with pytest.raises(DataError, match="none of its 3 rows is of a patient") as caught:
        read(tmp_path, PLAIN, ["patient64741"], by="patient")
    assert "--by study" in caught.value.fix


def test_a_folder_holds_a_reader_per_file_and_no_others(tmp_path: Path) -> None:
    inner = tmp_path / "benchmark_radiologists"
    inner.mkdir()
    for name in ("bc8", "bc4", "bc6"):
        (inner / f"{name}.csv").write_text(PLAIN)
    (inner / "._bc4.csv").write_bytes(b"\0\5\26\7")
    (inner / "README.md").write_text("x")
    (inner / "more").mkdir()
    (inner / "more" / "bc1_gt.csv").write_text(PLAIN)
    found = readings.read([inner], UNITS, FINDINGS)
    assert [reading.name for reading in found] == ["bc4", "bc6", "bc8"]
    # One of the published files is a copy of another under a second name.
    assert readings.notes(found)[0] == "readers bc4 and bc6 called everything alike: is one file a copy?"
    with pytest.raises(UsageError, match="no tables of readers") as caught:
        readings.read([tmp_path], UNITS, FINDINGS)
    assert "benchmark_radiologists" in caught.value.fix


def test_two_readers_of_one_name_and_files_that_are_not_there(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "bc4.csv").write_text(PLAIN)
    with pytest.raises(UsageError, match="two readers are called bc4"):
        readings.read([tmp_path / "a", tmp_path / "b"], UNITS, FINDINGS)
    with pytest.raises(UsageError, match="cannot be read"):
        readings.read([tmp_path / "bc5.csv"], UNITS, FINDINGS)


def test_all_of_chexperts_findings_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    units = [f"patient{64741 + n}/study1" for n in range(50)]
    calls = rng.integers(0, 2, (50, 14))
    written = [*CHEXPERT_FINDINGS[:3], "Lung Lesion", "Lung Opacity", *CHEXPERT_FINDINGS[5:]]
    order = [CHEXPERT_FINDINGS.index(name) for name in written]
    rows = [f"CheXpert-v1.0/test/{units[n]}," + ",".join(map(str, calls[n, order])) for n in rng.permutation(50)]
    found = read(tmp_path, "\n".join([",".join(["Study", *written]), *rows]), units, CHEXPERT_FINDINGS)
    np.testing.assert_array_equal(found.calls, calls)
