"""Any table of images and labels: CSV, Parquet, and a TOML that says what the columns mean."""

import gzip
from datetime import date
from pathlib import Path

import polars as pl
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


def test_without_patients_the_scans_of_a_study_stay_together(tmp_path: Path) -> None:
    file = write(tmp_path, "path,exam,sick\n1.png,e1,1\n2.png,e1,0\n3.png,,0\n")
    source = table.read(file, ["sick"], study_column="exam")
    assert source.scans["patient"].to_list() == source.scans["study"].to_list() == ["e1", "e1", None]
    assert any("no patient column: scans are split by 'exam'" in note for note in source.notes)


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
    refused(tmp_path, UsageError, "which table", "no CSV or Parquet", "it has no folders")
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
    refused(tmp_path, UsageError, "other.csv, scans.csv", f"prepare table {tmp_path / 'other.csv'}")
    refused(
        write(tmp_path, "path,sick\n1.png,1\n"), UsageError, "'sick' is given twice", label_columns=["sick", "sick"]
    )


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


def test_byte_order_mark_semicolons_and_names_no_disk_can_hold(tmp_path: Path) -> None:
    long = "x" * 300
    file = tmp_path / "scans.csv"
    file.write_bytes(f"\ufeffpath;sick\n{long}.png;1\n../up.png;0\n;0\n".encode())
    source = table.read(file, ["sick"])
    assert source.scans["id"].to_list() == [f"{long}.png"]
    assert locate(source.scans["path"][0]).name == f"{long}.png"
    assert [name for name, _ in source.refused] == ["../up.png", ""]
    assert "leaves the folder" in source.refused[0][1]


def test_the_only_table_of_a_folder_is_taken_packed_or_not(tmp_path: Path) -> None:
    packed = tmp_path / "scans.csv.gz"
    packed.write_bytes(gzip.compress(b"path,sick\n1.png,1\n"))
    (tmp_path / "._scans.csv").write_bytes(b"\0\5\26\7")
    (tmp_path / "project.toml").write_text("name = 'a'")
    assert table.read(tmp_path, ["sick"]).scans["id"].to_list() == ["1.png"]
    packed.write_bytes(packed.read_bytes()[:-9])
    refused(tmp_path, DataError, "cut off")
    write(tmp_path, "", "b.parquet")
    refused(tmp_path, UsageError, "b.parquet, scans.csv.gz")


def parquet(file: Path, **columns: object) -> Path:
    pl.DataFrame(columns).write_parquet(file)
    return file


def test_parquet_columns_of_every_type(tmp_path: Path) -> None:
    long = [10**38 + 7, 10**38 + 8, None, 10**38 + 7]
    file = parquet(
        tmp_path / "scans.parquet",
        path=["1.png", " 2.png ", "3.png", "../4.png"],
        patient=pl.Series([2**63 + 1, 2**63 + 3, None, 0], dtype=pl.UInt64),
        study=pl.Series(long, dtype=pl.Int128),
        split=pl.Series(["Train", "val", "test", "test"], dtype=pl.Categorical),
        yes=[True, False, None, True],
        whole=pl.Series([1, 0, -1, None], dtype=pl.Int8),
        real=[1.0, float("nan"), None, 0.0],
        text=["1", "", "-1.0", None],
    )
    source = table.read(file, ["yes", "whole", "real", "text"], study_column="study", split_column="split")
    assert source.scans["id"].to_list() == ["1.png", "2.png", "3.png"]
    assert source.refused == [("../4.png", "the path leaves the folder of scans")]
    assert source.scans["patient"].to_list() == ["9223372036854775809", "9223372036854775811", None]
    assert source.scans["study"].to_list() == [str(long[0]), str(long[1]), None]
    assert source.scans["split"].to_list() == ["train", "valid", "test"]
    assert source.scans.select("^label:.*$").rows() == [(1, 1, 1, 1), (0, 0, None, None), (None, -1, None, -1)]


@pytest.mark.parametrize("name", ["scans.parquet", "scans.csv", "scans"])
def test_parquet_is_known_by_its_name_or_content(tmp_path: Path, name: str) -> None:
    file = parquet(tmp_path / name, path=["1.png"], sick=[1])
    assert table.read(file, ["sick"]).scans["label:sick"].to_list() == [1]
    refused(file, UsageError, "--label-columns sick", label_columns=[])


def test_a_csv_may_begin_like_parquet(tmp_path: Path) -> None:
    assert len(table.read(write(tmp_path, "PAR1,path,sick\n,1.png,1\n"), ["sick"]).scans) == 1


def test_floating_point_ids_are_whole_or_refused(tmp_path: Path) -> None:
    def made(*ids: float | None, kind: type[pl.DataType] = pl.Float64) -> Path:
        patients = pl.Series(ids, dtype=kind)
        return parquet(tmp_path / "a.parquet", path=["1.png", "2.png"], patient=patients, sick=[1, 0])

    source = table.read(made(12.0, None), ["sick"])
    assert source.scans["patient"].to_list() == ["12", None]
    assert any("'patient' holds floating-point numbers" in note for note in source.notes)
    refused(made(1.0, 12.5), DataError, "row 2", "'patient'", "text or integers")
    refused(made(1.0, 2.0**53), DataError, "row 2", "lost digits")
    refused(made(2.0**24, 1.0, kind=pl.Float32), DataError, "row 1")
    refused(made(1.0, float("inf")), DataError, "row 2")
    assert table.read(made(2.0**53 - 1, 0.0), ["sick"]).scans["patient"][0] == "9007199254740991"


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", path=["1.png"], sick=[[1]], ill=[2], ok=[1], image=[b"\xff\xd8"])
    refused(file, DataError, "'sick' holds List")
    refused(file, DataError, "'image' holds Binary", label_columns=["ok"], image_column="image")
    refused(file, DataError, "row 1", "'ill'", label_columns=["ill"])
    refused(file, UsageError, "which columns are the labels?", label_columns=[])
    refused(parquet(tmp_path / "b.parquet", path=[], sick=[]), DataError, "empty")
    refused(parquet(tmp_path / "c.parquet", path=["1.png"] * 2, sick=[1, 0]), DataError, "more than once", "1.png")
    content = file.read_bytes()
    # Cut off, no Parquet at all, nothing, and overwritten inside.
    for broken in (content[:-20], b"path,sick\n1.png,1\n", b"", content[:4] + b"\xff" * 200 + content[204:]):
        file.write_bytes(broken)
        refused(file, DataError, "no Parquet", "a.parquet")
    refused(tmp_path / "absent.parquet", UsageError, "absent.parquet")


MAP = """
table = "tables/cases.csv"
images = "png"
image_column = "file"
patient_column = "who"
split_column = "part"
metadata = ["age", "sex", "seen"]

[labels.cancer]
column = "pathology"
positive = ["MALIGNANT"]
negative = ["BENIGN", "BENIGN_WITHOUT_CALLBACK"]
uncertain = ["UNPROVEN"]

[labels.mass]
"""
CASES = """file,who,person,part,age,sex,seen,pathology,mass
1.png,1,a,train,40,F,2001,MALIGNANT,1
2.png,2,b,train,,M,,BENIGN,0
3.png,3,c,test,6.5e1,,x,UNPROVEN,
4.png,4,c,test,nan,F,2004,,-1
5.png,5,d,test,50,F,2004,BENIGN_WITHOUT_CALLBACK,0
../6.png,5,d,test,50,F,2004,BENIGN,0
"""


def mapped(folder: Path, text: str = MAP, cases: str = CASES) -> Path:
    (folder / "tables").mkdir(exist_ok=True)
    write(folder / "tables", cases, "cases.csv")
    return write(folder, text, "map.toml")


def test_a_toml_says_what_the_columns_mean(tmp_path: Path) -> None:
    source = table.read(mapped(tmp_path), [])
    assert source.findings == ["cancer", "mass"]
    assert source.scans["label:cancer"].to_list() == [1, 0, -1, None, 0]
    assert source.scans["label:mass"].to_list() == [1, 0, None, -1, 0]
    assert source.scans["path"][0] == str(tmp_path / "png" / "1.png")
    assert source.scans["patient"].to_list() == list("12345")
    assert source.scans["split"].to_list() == ["train", "train", "test", "test", "test"]
    assert source.scans["age"].to_list() == [40, None, 65, None, 50]
    assert source.scans["sex"].to_list() == ["F", "M", None, "F", "F"]
    assert source.scans["seen"].to_list() == ["2001", None, "x", "2004", "2004"]
    assert [name for name, _ in source.refused] == ["../6.png"]
    assert table.read(tmp_path, []).scans.equals(source.scans)


def test_the_command_line_wins_over_the_toml(tmp_path: Path) -> None:
    file = mapped(tmp_path)
    source = table.read(file, ["cancer"], patient_column="person", images=tmp_path / "other")
    assert source.findings == ["cancer"]
    assert source.scans["label:cancer"].to_list() == [1, 0, -1, None, 0]
    assert source.scans["patient"].to_list() == list("abccd")
    assert source.scans["path"][0] == str(tmp_path / "other" / "1.png")
    refused(file, DataError, "no column 'cancers'", label_columns=["cancers"])


def test_a_toml_may_list_columns_and_leave_the_rest_out(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    days = [date(2020, 1, 2)]
    parquet(tmp_path / "tables" / "a.parquet", path=["1.png"], sick=[1], well=[False], dose=[3], on=[True], day=days)
    file = write(
        tmp_path, 'table = "tables/a.parquet"\nlabels = ["sick", "well"]\nmetadata = ["dose", "on", "day"]\n', "a.toml"
    )
    source = table.read(file, [])
    assert source.findings == ["sick", "well"]
    assert source.scans.select("label:sick", "label:well", "dose", "on", "day").row(0) == (1, 0, 3, 1, "2020-01-02")
    assert source.scans["dose"].dtype == pl.Float64
    assert source.scans["path"][0] == str(tmp_path / "tables" / "1.png")


def test_a_text_that_means_no_label_is_named_with_its_row(tmp_path: Path) -> None:
    file = mapped(tmp_path, cases=CASES.replace("UNPROVEN", "malignant"))
    refused(file, DataError, "'malignant'", "row 3", "'pathology'", "MALIGNANT, BENIGN", label_columns=[])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("image_column", "images_column"), "did you mean image_column?"),
        (("positive", "positiv"), "did you mean positive?"),
        (('table = "tables/cases.csv"', ""), "key table"),
        (('"png"', "3"), "key images"),
        (('["MALIGNANT"]', '"MALIGNANT"'), "key labels.cancer.positive"),
        (('["UNPROVEN"]', '["BENIGN"]'), "a text is listed twice"),
        (('["UNPROVEN"]', '[""]'), "--blank"),
        (('"age", "sex"', '"age", "sexe"'), "did you mean sex?"),
        (('"age", "sex"', '"age", "age"'), "given twice"),
        (('"age", "sex"', '"age", "split"'), "cannot be called 'split'"),
        (("[labels.mass]", "[labels]\nmass = 3"), "key labels.mass"),
        (("[labels.cancer]", "labels = ["), "TOML"),
    ],
)
def test_a_toml_that_cannot_be_used(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    cases = CASES.replace("person", "split", 1) if "'split'" in said else CASES
    refused(mapped(tmp_path, MAP.replace(*change), cases), UsageError, said, label_columns=[])


@pytest.mark.parametrize("labels", ["3", '["a", 1]', '[["a"]]', "{ a = 3 }", '["sick", "sick"]'])
def test_labels_of_a_toml_that_are_none(tmp_path: Path, labels: str) -> None:
    write(tmp_path, "path,sick\n1.png,1\n")
    refused(
        write(tmp_path, f'table = "scans.csv"\nlabels = {labels}', "a.toml"), UsageError, "labels", label_columns=[]
    )


def test_a_toml_of_a_table_that_is_none(tmp_path: Path) -> None:
    for name in ("absent.csv", "absent.parquet", "."):
        refused(write(tmp_path, f'table = "{name}"', "a.toml"), UsageError, "cannot be read")
    write(tmp_path, "path,sick\n1.png,1\n")
    refused(write(tmp_path, 'table = "scans.csv"', "a.toml"), UsageError, "which columns", label_columns=[])


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


def test_words_for_no_patient_are_no_patient(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,{name},1\n" for n, name in enumerate(["p1", "NaN", "None", "N/A", "unknown", "-1", ""]))
    (tmp_path / "scans.csv").write_text("path,patient,sick\n" + rows)
    source = table.read(tmp_path / "scans.csv", ["sick"])
    assert source.scans["patient"].to_list() == ["p1"] + [None] * 6
    assert "6 scans have no patient id: each counts as a patient of its own" in source.notes
