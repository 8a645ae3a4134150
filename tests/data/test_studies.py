"""Labels keyed by study, joined to scans by whole parts of paths or by a column of studies, and never by guessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from damcli.data.scores import ScanTable
from damcli.data.studies import StudyTable, read_labels
from damcli.errors import DataError

TRUTH = (
    "Study,No Finding,Edema\n"
    "CheXpert-v1.0/test/patient64741/study1,1,0\n"
    "CheXpert-v1.0/test/patient64742/study1,0,1\n"
    "CheXpert-v1.0/test/patient64742/study11,0,-1\n"
)
KEYS = [line.split(",")[0] for line in TRUTH.splitlines()[1:]]


def labels(folder: Path, text: str = TRUTH) -> StudyTable:
    (folder / "groundtruth.csv").write_text(text, encoding="utf-8")
    found = read_labels(folder / "groundtruth.csv")
    assert isinstance(found, StudyTable)
    return found


def scores(folder: Path, *rows: str, header: str = "path,status,Edema") -> ScanTable:
    (folder / "scores.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return ScanTable.read(folder / "scores.csv")


@pytest.mark.parametrize("above", ["", "test/", "CheXpert-v1.0/test/", "/data/CheXpert-v1.0/test/", "./test//"])
def test_scans_lie_in_the_folder_of_their_study(tmp_path: Path, above: str) -> None:
    table = scores(
        tmp_path,
        f"{above}patient64742/study11/view1_frontal.jpg,ok,0.1",
        f"{above}patient64741/study1/view2_lateral.jpg,failed,",
        f"{above}patient64742/study1/series 3/view1_frontal.jpg,ok,0.3",
        f"{above}patient64741/study1/view1_frontal.jpg,ok,0.4",
        f"{above}patient64741/study2/view1_frontal.jpg,ok,0.5",
    )
    found = labels(tmp_path).scans(table)
    assert found.rows.tolist() == [2, 0, 1, 0]
    assert found.studies == [KEYS[2], KEYS[0], KEYS[1], KEYS[0]]
    assert found.ids == table.ids[:4]
    assert found.patients is None
    joined = table.scores(found.ids, ["Edema"])
    assert joined.failed.tolist() == [False, True, False, False]
    assert joined.unused == 1


def test_labels_are_raw_and_findings_are_the_other_columns(tmp_path: Path) -> None:
    table = labels(tmp_path)
    assert (table.names, table.column) == (["No Finding", "Edema"], "study")
    np.testing.assert_array_equal(table.labels(["Edema", "No Finding"]), [[0, 1], [1, 0], [-1, 0]])


def test_a_column_of_studies_says_whose_a_scan_is(tmp_path: Path) -> None:
    by_id = labels(tmp_path, "study_id,Edema\ns50,1\ns51,0\n")
    table = scores(tmp_path, "b.dcm,s51,.1", "a.dcm,s50,.2", "c.dcm,s52,.3", "s51/d.dcm,,.4", header="path,Study,Edema")
    assert by_id.scans(table).ids == ["b.dcm", "a.dcm", "s51/d.dcm"]
    assert by_id.scans(table).rows.tolist() == [1, 0, 1]
    by_patient = labels(tmp_path, "patient,study,Edema\np1,1,1\np2,1,0\n")
    assert by_patient.studies == ["p1/1", "p2/1"]
    table = scores(tmp_path, "b.dcm,p2,1,.1", "a.dcm,p1,1,.2", "c.dcm,p3,1,.3", header="path,patient,study,Edema")
    found = by_patient.scans(table)
    assert (found.rows.tolist(), found.patients) == ([1, 0], ["p2", "p1"])
    # Below its patient a study need not be unique, nor named as in the labels.
    table = scores(
        tmp_path, *(f"{n}.dcm,{k[19:31]},{k[32:]},.1" for n, k in enumerate(KEYS)), header="path,patient,study,Edema"
    )
    found = labels(tmp_path).scans(table)
    assert (found.rows.tolist(), found.patients) == ([0, 1, 2], [k[19:31] for k in KEYS])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["patient64741/study1/1.jpg", "patient64742/study1/1.jpg"], r"1 of 3 studies have no scan .* first .*study11"),
        (["study1/1.jpg", "study11/1.jpg"], r"3 of 3 studies have no scan .*the scores' first is study1/1\.jpg"),
        (["1/patient64741/study1x/1.jpg"], "3 of 3 studies"),
        (["xpatient64741/study1/1.jpg"], "3 of 3 studies"),
        ([f"{KEYS[0]}/{KEYS[1]}/1.jpg"], "may be of 2 studies"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels(tmp_path).scans(scores(tmp_path, *(f"{row},ok,.5" for row in rows)))


def test_an_end_that_several_studies_share_is_refused(tmp_path: Path) -> None:
    truth = labels(tmp_path, "Study,Edema\nhere/p1/s1,1\nthere/p1/s1,0\n")
    with pytest.raises(DataError, match=r"the scan p1/s1/1\.jpg may be of 2 studies(.|\n)*row 2 below the header"):
        truth.scans(scores(tmp_path, "here/p1/s1/1.jpg,ok,.5", "p1/s1/1.jpg,ok,.5"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Study,Edema\np/s1,1\np/s2,0\np/s1,0\n", "1 studies are there more than once, first p/s1(.|\n)*rows 1 and 3"),
        ("Study,Edema\np/s1,1\np\\s1,0\n", "1 studies are there more than once"),
        ("Study,Edema\np/s1,1\n,0\n", "a row has no study\n.*row 2 below the header"),
        ("exam,Edema\np/s1,1\n", "no column 'path'; it has: exam, Edema"),
    ],
)
def test_a_study_is_there_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels(tmp_path, text)


def test_a_table_with_paths_is_keyed_by_them(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("Study,path,Edema\ns1,a.png,1\n", encoding="utf-8")
    assert isinstance(read_labels(tmp_path / "labels.csv"), ScanTable)
