"""Any CSV of images and labels."""

from pathlib import Path

import pytest

from damcli.data.sources import locate, table
from damcli.errors import DamcliError, DataError, UsageError


def write(folder: Path, text: str, name: str = "scans.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_usual_columns_are_taken_and_said(tmp_path: Path) -> None:
    file = write(tmp_path, "Path,Patient_ID,sick\na/1.png,007,1\na/2.png,7,0\na/3.png,,-1\na/4.png,8,\n")
    source = table.read(file, ["sick"])
    assert source.scans["id"].to_list() == ["a/1.png", "a/2.png", "a/3.png", "a/4.png"]
    assert source.scans["path"][0] == str(tmp_path / "a" / "1.png")
    assert source.scans["patient"].to_list() == ["007", "7", None, "8"]
    assert source.scans["label:sick"].to_list() == [1, 0, -1, None]
    assert source.scans["split"].null_count() == 4
    said = " ".join(source.notes)
    assert all(text in said for text in ("'Path'", "'Patient_ID'", "1 scans have no patient id"))
    assert (source.policies["sick"].uncertain, source.policies["sick"].blank) == ("ignore", "missing")


def test_named_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "img;who;exam;side;part;a;b\nx.png;1;e1;Frontal;Train;1;0\ny.png;2;e2;LATERAL;val;0;nan\nz.png;3;;;TEST;;1.0\n",
    )
    source = table.read(
        file, ["b", "a"], image_column="img", patient_column="who", study_column="exam", view_column="side",
        split_column="part", images=tmp_path / "elsewhere",
    )  # fmt: skip
    assert source.findings == ["b", "a"]
    assert source.scans["path"][0] == str(tmp_path / "elsewhere" / "x.png")
    assert source.scans["split"].to_list() == ["train", "valid", "test"]
    assert source.scans["view"].to_list() == ["frontal", "lateral", None]
    assert source.scans["study"].to_list() == ["e1", "e2", None]
    assert source.scans["label:b"].to_list() == [0, None, 1]


def test_without_patients_it_says_that_leaks_cannot_be_excluded(tmp_path: Path) -> None:
    source = table.read(write(tmp_path, "path,sick\n1.png,1\n"), ["sick"])
    assert any("leakage cannot be excluded" in note for note in source.notes)


def test_quoted_fields_and_ids_longer_than_any_number(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'path,patient,note,sick\n"a,b.png",123456789012345678901234567890123456789,"two\nlines",1\n'
        '\n c.png ,123456789012345678901234567890123456788,"say ""x""",0\n',
    )
    source = table.read(file, ["sick"])
    assert source.scans["id"].to_list() == ["a,b.png", "c.png"]
    assert source.scans["patient"].n_unique() == 2


def test_absolute_paths_inside_the_folder_are_fine(tmp_path: Path) -> None:
    file = write(tmp_path, f"path,sick\n{tmp_path}/a/1.png,1\na/../2.png,0\n/etc/passwd,0\n")
    source = table.read(file, ["sick"])
    assert source.scans["id"].to_list() == ["a/1.png", "2.png"]
    assert source.refused[0][0] == "/etc/passwd"


def refused(file: Path, kind: type[DamcliError], *said: str, **columns: object) -> None:
    with pytest.raises(kind) as caught:
        table.read(file, **{"label_columns": ["sick"], **columns})
    for text in said:
        assert text in str(caught.value)


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    refused(tmp_path / "absent.csv", UsageError, "absent.csv", "fix")
    refused(tmp_path, UsageError, "which table", "no CSV")
    file = write(tmp_path, "path,sick,who\n1.png,1,a\n2.png,maybe,a\n")
    refused(tmp_path, DataError, "row 2", "'sick'")
    refused(file, DataError, "'ill'", "it has: path, sick, who", label_columns=["ill"])
    refused(file, DataError, "'pid'", patient_column="pid")
    refused(file, UsageError, "which columns are the labels?", label_columns=[])
    refused(write(tmp_path, "img,sick\n1.png,1\n"), UsageError, "which column names the images?", "--image-column img")
    refused(write(tmp_path, "path,sick,fold\n1.png,1,train\n2.png,1,3\n"), DataError, "row 2", split_column="fold")
    refused(write(tmp_path, "path,sick,sick\n1.png,1,1\n"), DataError, "twice")
    refused(write(tmp_path, "path,sick\n1.png,1\n2.png\n"), DataError, "line 3 has 1 fields, the header 2")
    refused(write(tmp_path, "path,sick\n1.png,1\n1.png,0\n"), DataError, "more than once", "1.png")
    refused(write(tmp_path, 'path,sick\n"1.png,1\n'), DataError, "no CSV")
    refused(write(tmp_path, ""), DataError, "empty")
    write(tmp_path, "path,sick\n1.png,1\n", "other.csv")
    refused(tmp_path, UsageError, "other.csv, scans.csv")


def test_columns_that_look_like_labels_are_offered(tmp_path: Path) -> None:
    file = write(tmp_path, "path,age,sick,well\n1.png,40,1,0.0\n2.png,50,,1.0\n")
    refused(file, UsageError, "--label-columns sick,well", label_columns=[])


def test_an_error_quotes_no_cell(tmp_path: Path) -> None:
    file = write(tmp_path, "path,name,sick\n1.png,DOE^JANE,1\n")
    for columns in ({"label_columns": ["name"]}, {"split_column": "name"}):
        with pytest.raises(DataError) as caught:
            table.read(file, **{"label_columns": ["sick"], **columns})
        assert "DOE" not in str(caught.value)


def test_files_whose_names_are_in_latin1_are_found(tmp_path: Path) -> None:
    name = b"R\xf6ntgen.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    csv = tmp_path / "scans.csv"
    for encoded in ("latin-1", "utf-8"):
        csv.write_bytes("path,sick\nR\xf6ntgen.png,1\n".encode(encoded))
        source = table.read(csv, ["sick"])
        assert source.scans["id"].to_list() == ["R\xf6ntgen.png"]
        assert locate(source.scans["path"][0]).read_bytes() == b"x"
    assert locate(str(tmp_path / "\u6f22.png")).name == "\u6f22.png"


@pytest.mark.parametrize(
    ("folder", "labels", "patient", "scans", "patients"),
    [
        ("nih_cxr_64px", ["Cardiomegaly", "Effusion"], None, 726, 167),
        ("mednist_64px", ["is_cxr"], None, 900, 0),
        ("bccd_96px", ["label"], "group", 338, None),
    ],
)
def test_real_tables(
    test_data: Path, folder: str, labels: list[str], patient: str | None, scans: int, patients: int | None
) -> None:
    source = table.read(test_data / folder, labels, patient_column=patient)
    assert len(source.scans) == scans
    assert source.refused == []
    if patients is not None:
        assert source.scans["patient"].drop_nulls().n_unique() == patients
    assert all(Path(path).is_file() for path in source.scans["path"])
