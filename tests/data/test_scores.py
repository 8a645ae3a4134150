"""Tables keyed by scan: joined by path and by column name, and hostile files refused with the place of the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.data import scores
from damcli.data.scores import ScanTable
from damcli.errors import DataError, UsageError

IDS = ["a.png", "b.png", "c.png"]
PLAIN = "path,status,error,Edema,Fracture\na.png,ok,,0.1,0.4\nb.png,ok,,0.2,0.5\nc.png,ok,,0.3,0.6\n"
EXPECTED = [[0.1, 0.4], [0.2, 0.5], [0.3, 0.6]]


def table(folder: Path, text: str | bytes, name: str = "scores.csv") -> ScanTable:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return ScanTable.read(folder / name)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace(",ok,", ",,"),
        "\ufeff" + PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        "Fracture,extra,Edema,path\n.6,x,.3,c.png\n.5,y,.2,b.png\n.4,,.1,a.png\n",
        'path,"Edema",Fracture\n"a.png",1e-1,0.4\nb.png, 0.2 ,0.5\nc.png,+0.3,0.60\n',
    ],
    ids=[
        "plain",
        "no status",
        "BOM",
        "semicolons",
        "tabs",
        "CRLF",
        "other order and columns",
        "quotes, blanks, exponents",
    ],
)
def test_joins_by_path_and_name(tmp_path: Path, text: str) -> None:
    joined = table(tmp_path, text).scores(IDS, ["Edema", "Fracture"])
    np.testing.assert_array_equal(joined.scores, EXPECTED)
    assert not joined.failed.any()
    assert joined.unused == 0


def test_takes_the_scans_in_the_order_asked_for_and_counts_the_others(tmp_path: Path) -> None:
    joined = table(tmp_path, PLAIN).scores(["c.png", "a.png"], ["Fracture"])
    assert joined.scores.tolist() == [[0.6], [0.4]]
    assert joined.unused == 1


def test_failed_rows_have_no_score_and_skipped_ones_are_no_scans(tmp_path: Path) -> None:
    text = PLAIN.replace("b.png,ok,,0.2,0.5", "b.png,failed,truncated,,") + "Thumbs.db,skipped,no image,,\n"
    joined = table(tmp_path, text).scores(IDS, ["Edema"])
    assert joined.failed.tolist() == [False, True, False]
    np.testing.assert_array_equal(joined.scores, [[0.1], [np.nan], [0.3]])
    assert joined.unused == 0


def test_a_name_quoted_against_spreadsheets_is_found(tmp_path: Path) -> None:
    joined = table(tmp_path, "path,Edema\n'=1.png,0.1\n'b.png,0.2\n").scores(["=1.png", "'b.png"], ["Edema"])
    assert joined.scores.tolist() == [[0.1], [0.2]]


def test_ids_quoted_against_spreadsheets_are_read_as_they_are(tmp_path: Path) -> None:
    found = table(tmp_path, "path,Patient,study,Edema\na,'-12,'=s,0.1\nb,'7,,0.2\nc,007,s\t1,0.3\n")
    assert found.patients == ["-12", "'7", "007"]
    assert found.frame["study"].fill_null("").to_list() == ["=s", "", "s\t1"]
    # In Parquet nothing is quoted, so a quote is the id's own.
    found.frame.with_columns(patient=pl.lit("'-12")).write_parquet(tmp_path / "s.parquet")
    assert ScanTable.read(tmp_path / "s.parquet").patients == ["'-12"] * 3


def test_calls_by_a_threshold_ids_and_counts_are_no_findings(tmp_path: Path) -> None:
    header = "path,status,error,Edema,Mass,Edema:positive,patient,study,scans,Scans_Failed"
    found = table(tmp_path, f"{header}\na.png,ok,,0.1,0.9,0,p,s,2,1\n")
    assert found.names == ["Edema", "Mass"]
    assert found.named(["edema:positive", "EDEMA"]).names == ["EDEMA", "Mass"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.2,0.5", "nan,0.5"), "1 scores are no finite numbers"),
        (("0.2,0.5", "inf,0.5"), "row 2 below the header, column 'Edema'"),
        (("0.2,0.5", "0.2,high"), "first 'high'"),
        (("0.2,0.5", '"0,2",0.5'), "first '0,2'"),
        (("0.2,0.5", ",0.5"), "give every scan a score"),
        (("b.png", "z.png"), r"1 of 3 scans have no row, first b\.png"),
        (("b.png", ""), "row 2 below the header"),
        (("b.png", "a.png"), r"1 scans are there more than once, first a\.png"),
        ((",Fracture", ",Edema"), "names a column twice: Edema"),
        (("path", "file"), "no column 'path'; it has: file, status, error, Edema, Fracture"),
        (("Edema", "edema"), "no column 'Edema'"),
        (("0.2,0.5", "0.2"), "line 3 has 4 fields, the header 5"),
    ],
)
def test_hostile_rows_are_refused_by_their_place(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in PLAIN
    with pytest.raises(DataError, match=message):
        table(tmp_path, PLAIN.replace(*change, 1)).scores(IDS, ["Edema", "Fracture"])


def test_when_no_path_fits_both_spellings_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"first valid/a\.png \(the table's first is a\.png\)"):
        table(tmp_path, PLAIN).scores(["valid/a.png", "valid/b.png"], ["Edema"])


@pytest.mark.parametrize("content", [b"", b"\n", b"path,Edema\n", b"\x00\xff\x80", "path,Edema\n".encode("utf-16")])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError):
        table(tmp_path, content)
    with pytest.raises(DataError, match=r"no Parquet file"):
        table(tmp_path, content, "scores.parquet")
    for name in ("absent.csv", "absent.parquet"):
        with pytest.raises(UsageError, match="no such file|No such file"):
            ScanTable.read(tmp_path / name)


def test_written_scores_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 2)).astype(np.float32)
    scores.write(tmp_path / "scores.parquet", IDS, ["Edema", "Fracture"], values)
    read = ScanTable.read(tmp_path / "scores.parquet")
    assert (read.ids, read.names, read.patients) == (IDS, ["Edema", "Fracture"], None)
    np.testing.assert_array_equal(read.scores(IDS, ["Edema", "Fracture"]).scores, values)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]


def test_parquet_with_nulls_and_status(tmp_path: Path) -> None:
    frame = pl.DataFrame({"path": IDS, "status": ["ok", "failed", "ok"], "Edema": [0.1, None, 0.3]})
    frame.write_parquet(tmp_path / "s.parquet")
    assert ScanTable.read(tmp_path / "s.parquet").scores(IDS, ["Edema"]).failed.tolist() == [False, True, False]
    frame.with_columns(status=pl.lit("ok")).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match="1 scores are no finite numbers, first None"):
        ScanTable.read(tmp_path / "s.parquet").scores(IDS, ["Edema"])


def test_labels_keep_uncertain_and_blank_apart_and_refuse_others(tmp_path: Path) -> None:
    text = "path,patient,Edema,Fracture\na,p1,1,0.0\nb,p1,-1,\nc,,nan,1.0\n"
    labels = table(tmp_path, text)
    assert labels.names == ["Edema", "Fracture"]
    assert labels.patients == ["p1", "p1", ""]
    np.testing.assert_array_equal(labels.labels(["Edema", "Fracture"]), [[1, 0], [-1, np.nan], [np.nan, 1]])
    with pytest.raises(DataError, match="neither 1, 0, -1"):
        table(tmp_path, text.replace("p1,1", "p1,yes")).labels(["Edema"])


def test_paths_below_the_folder_that_was_scored_stand_for_ids(tmp_path):
    (tmp_path / "scores.csv").write_text("path,Edema\nb/1.dcm,0.5\na/1.dcm,0.25\nother.dcm,0.125\n")
    table = ScanTable.read(tmp_path / "scores.csv")
    files = ["/archive/scans/a/1.dcm", "/archive/scans/b/1.dcm"]
    joined = table.scores(["Case_A", "Case_B"], ["Edema"], files)
    assert joined.scores[:, 0].tolist() == [0.25, 0.5]
    # One scan that is not there, or ids that are: nothing is guessed.
    for ids, places in (
        (["Case_A", "Case_B"], ["/archive/scans/a/1.dcm", "/archive/scans/c/1.dcm"]),
        (["b/1.dcm", "x"], files),
    ):
        with pytest.raises(DataError, match="no row"):
            table.scores(ids, ["Edema"], places)


def test_columns_are_named_as_the_findings_where_it_is_clear(tmp_path: Path) -> None:
    odd = table(tmp_path, PLAIN.replace("Edema", "EDEMA"))
    assert odd.named(["Edema", "Fracture", "Pneumonia"]).names == ["Edema", "Fracture"]
    np.testing.assert_array_equal(odd.named(["Edema"]).scores(IDS, ["Edema"]).scores[:, 0], [0.1, 0.2, 0.3])
    both = table(tmp_path, PLAIN.replace("Fracture", "edema"))
    assert both.named(["Edema"]).names == ["Edema", "edema"]
    for findings in (["EDEMA"], ["Edema", "EDEMA"]):
        with pytest.raises(DataError, match="which is the column of 'EDEMA' is not clear"):
            both.named(findings)
    with pytest.raises(DataError, match="which is the column of"):
        odd.named(["Edema", "edema"])


def test_a_row_that_may_be_of_two_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a row may be of 2 scans: a/1\.png\n  where: .*row 1 below the header"):
        table(tmp_path, "path,Edema\na/1.png,0.5\n").scores(["a/1.png", r"a\1.png"], ["Edema"])


def test_rows_are_places_in_the_file(tmp_path: Path) -> None:
    text = "path,status,Edema\nThumbs.db,skipped,\na.png,ok,.1\nx.txt,skipped,\nb.png,ok,.2\n"
    assert table(tmp_path, text).rows.tolist() == [2, 4]


@given(st.permutations(range(3)), st.permutations(range(5)), st.permutations(range(3)))
def test_neither_order_nor_other_columns_change_a_score(rows: list[int], columns: list[int], ids: list[int]) -> None:
    frame = pl.read_csv(PLAIN.encode(), infer_schema=False).with_columns(error=pl.lit("0.9"))
    shuffled = frame.select(np.array(frame.columns)[columns].tolist())[rows]
    made = ScanTable.of(Path("scores.csv"), shuffled)
    joined = made.scores([IDS[n] for n in ids], ["Edema", "Fracture"])
    np.testing.assert_array_equal(joined.scores, np.array(EXPECTED)[ids])


def test_own_columns_are_known_in_any_case_where_one_is_meant(tmp_path: Path) -> None:
    found = table(tmp_path, "Path,Status,PATIENT,Edema\na.png,Failed,p1,\nb.png,ok,p1,.2\n")
    assert (found.ids, found.patients, found.names) == (["a.png", "b.png"], ["p1", "p1"], ["Edema"])
    assert found.scores(["a.png", "b.png"], ["Edema"]).failed.tolist() == [True, False]
    assert table(tmp_path, "path,Path,Edema\na.png,x,.1\n").ids == ["a.png"]
    with pytest.raises(DataError, match="no column 'path'; it has: Path, PATH, Edema"):
        table(tmp_path, "Path,PATH,Edema\na.png,x,.1\n")
