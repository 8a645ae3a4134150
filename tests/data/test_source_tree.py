"""What all readers of downloads share: which table, which image of which row, and what is said of the others."""

import gzip
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from damcli.data.labels import Policy
from damcli.data.sources import Source, check_rows, check_same, locate, need, read_csv, years
from damcli.data.sources.tree import DICOM_FIRST, IMAGES, Tree, listed, python_lists
from damcli.errors import DataError, UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def source(root: Path, keys: list[str | None], **more) -> Source:
    number = pl.Series(range(len(keys)), dtype=pl.Float64)
    return Tree(root).source("x", pl.Series(keys, dtype=pl.String), {"Edema": number % 2}, number=number, **more)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a/b/train.csv", "a/train.csv"], "a/train.csv"),
        (["A/TRAIN.CSV"], "A/TRAIN.CSV"),
        (["train.csv.gz", "a/train.csv"], "train.csv.gz"),
        (["a/train.csv.gz", "a/train.csv"], "a/train.csv"),
        (["a/new.csv", "train.csv"], "a/new.csv"),
        (["train.csv/1.png", "a/b/train.csv"], "a/b/train.csv"),
        (["._train.csv", ".cache/train.csv", "a/b/train.csv"], "a/b/train.csv"),
        (["my_train.csv", "train.csv.zip", "train.csv~"], None),
    ],
)
def test_which_table(tmp_path: Path, files: list[str], found: str | None) -> None:
    tree = Tree(touch(tmp_path, *files))
    assert tree.table("new.csv", "train.csv") == (found and tmp_path / found)


def test_two_tables_that_are_equally_near(tmp_path: Path) -> None:
    tree = Tree(touch(tmp_path, "a/train.csv", "b/Train.csv.gz", "c/d/train.csv"))
    with pytest.raises(UsageError, match=r"which train\.csv\? there are 2: a/train\.csv, b/Train\.csv\.gz"):
        tree.table("train.csv")


def test_a_table_that_is_needed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no a\.csv or b\.csv in this folder or below"):
        Tree(touch(tmp_path, "c.csv")).need("a.csv", "b.csv")


def test_a_packed_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n007\n"))
    assert read_csv(Tree(tmp_path).need("a.csv"))["id"].to_list() == ["007"]


def test_a_download_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        Tree(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a folder"):
        Tree(touch(tmp_path, "a.csv") / "a.csv")


def test_images_by_what_the_key_makes_of_their_path_below_the_root(tmp_path: Path) -> None:
    root = touch(tmp_path / "p9", "p1/s1/a.JPG", "p1/s2/a.dcm", "p2/b.png", "p2/notes.txt", "p2/._b.png", ".x/c.png")
    images = Tree(root).images()
    assert images == {"a": [Path("p1/s1/a.JPG"), Path("p1/s2/a.dcm")], "b": [Path("p2/b.png")]}
    by_folder = Tree(root).images(lambda path: path.parts[0] if len(path.parts) > 2 else None)
    assert list(by_folder) == ["p1"]
    assert list(Tree(root, [".dcm"]).images()) == ["a"]


def test_every_row_gets_its_own_image_and_keeps_its_own_facts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [f"{n:03}" for n in rng.permutation(200)]
    there = rng.random(200) < 0.8
    touch(tmp_path, *(f"{int(key) % 7}/{key}.png" for key, is_there in zip(keys, there, strict=True) if is_there))
    found = source(tmp_path, keys, patient=pl.Series([f"p{key}" for key in keys]))
    expected = [n for n in range(200) if there[n]]
    assert found.scans["id"].to_list() == [f"{int(keys[n]) % 7}/{keys[n]}.png" for n in expected]
    assert found.scans["path"].to_list() == [str(tmp_path / name) for name in found.scans["id"]]
    assert found.scans["number"].to_list() == expected
    assert found.scans["label:Edema"].to_list() == [n % 2 for n in expected]
    assert found.scans["patient"].to_list() == [f"p{keys[n]}" for n in expected]
    assert found.refused == [(keys[n], "the image is not in this download") for n in range(200) if not there[n]]
    assert found.scans["study"].null_count() == len(expected)
    assert (found.root, found.findings, found.policies) == (tmp_path, ["Edema"], {"Edema": Policy()})


def test_rows_that_name_no_file_are_refused_however_many(tmp_path: Path) -> None:
    found = source(touch(tmp_path, "a.png"), ["", "a", None, "../a", "/a"])
    assert found.scans["number"].to_list() == [1]
    nothing, gone = "the row names no file", "the image is not in this download"
    assert found.refused == [("", nothing), ("", nothing), ("../a", gone), ("/a", gone)]


def test_what_is_there_twice_and_what_no_row_names_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "dicom/1.dcm", "jpeg/1.jpg", "other/1.jpg", "x/2.png", "y/2.png", "3.png", "4.png")
    found = source(tmp_path, ["1", "2"], notes=["first"])
    assert found.scans["id"].to_list() == ["jpeg/1.jpg", "x/2.png"]
    assert found.notes == [
        "first",
        "2 images are there more than once: JPEG comes before PNG comes before DICOM, and then the first folder counts",
        "2 images without a label, or of rows left out, are not taken",
    ]
    assert source(touch(tmp_path / "alone", "1.png"), ["1"]).notes == []


def test_a_file_that_is_called_like_the_scan_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "a/1_small.jpg", "b/1.dcm")
    found = source(tmp_path, ["1", "2"], key=lambda path: path.stem.removesuffix("_small"), ids=["1", "2"])
    assert found.scans.select("id", "path").rows() == [("1", str(tmp_path / "b/1.dcm"))]
    assert found.refused == [("2", "the image is not in this download")]


def test_two_rows_of_one_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than once"):
        source(touch(tmp_path, "a.png", "b.png"), ["a", "b", "a"])


def test_none_of_the_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of their images"):
        source(touch(tmp_path, "b.png"), ["a"])


def test_a_table_without_a_row_left_is_no_matter_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scan of the tables is left"):
        source(touch(tmp_path, "a.png"), [])


def test_parts_that_were_not_downloaded_are_left_out_and_said(tmp_path: Path) -> None:
    parts = pl.Series(["0", "0", "1", None])
    found = source(touch(tmp_path, "0/a.png"), ["a", "b", "c", "d"], parts=parts)
    assert found.scans["id"].to_list() == ["0/a.png"]
    assert [name for name, _ in found.refused] == ["b", "d"]
    assert found.notes[0] == "left out 1 scans of parts that are not in this download: 1"


@pytest.mark.parametrize(("number", "lacking"), [(20, 1), (19, 1), (100, 5), (100, 6)])
def test_where_a_part_of_the_download_seems_to_be_missing_it_is_said(tmp_path: Path, number: int, lacking: int) -> None:
    """Above 5 %, which is where `prepare` refuses to go on."""
    names = [f"{n:03}" for n in range(number)]
    found = source(touch(tmp_path, *(f"{name}.png" for name in names[lacking:])), names)
    assert len(found.refused) == lacking
    hint = (
        f"{lacking} of {number} images are not there: is a part of the download missing? fetch it, or go on without "
        "it: --max-rejected"
    )
    assert found.notes == ([hint] if lacking / number > 0.05 else [])


def test_dicom_comes_before_what_was_made_of_it(tmp_path: Path) -> None:
    assert set(DICOM_FIRST) == set(IMAGES)
    tree = Tree(touch(tmp_path, "a/1.png", "b/1.dicom", "c/1.jpg"), DICOM_FIRST)
    assert tree.images()["1"] == [Path("b/1.dicom"), Path("a/1.png"), Path("c/1.jpg")]


def test_pictures_made_of_dicom_are_counted_where_a_set_is_given_out_as_dicom(tmp_path: Path) -> None:
    touch(tmp_path, "a.dcm", "a.png", "b.png", "c.jpg", "d.png")
    keys, labels = pl.Series(["a", "b", "c"]), {"Edema": pl.Series([0.0, 1.0, 1.0])}
    (said,) = [note for note in Tree(tmp_path, DICOM_FIRST).source("x", keys, labels).notes if "greys" in note]
    assert said.startswith("2 images are pictures that were made of the DICOM files")
    assert not any("greys" in note for note in Tree(tmp_path).source("x", keys, labels).notes)


def test_what_a_spreadsheet_leaves_behind_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbfid;age;;\r\n1;58,5;;\r\n;;;\r\n2; ;;\r\n;;;\r\n")
    assert read_csv(file).select("id", "age").rows() == [("1", "58,5"), ("2", "")]
    file.write_text("id,age\n,\n")
    with pytest.raises(DataError, match="this table is empty"):
        read_csv(file)


def test_tables_that_are_refused_name_a_fix(tmp_path: Path) -> None:
    for cut in ("id,age\n1\n", "id\n1\n"):
        (tmp_path / "a.csv").write_text(cut)
        with pytest.raises(DataError) as error:
            need(read_csv(tmp_path / "a.csv"), ["id", "age"], tmp_path / "a.csv")
        assert error.value.fix
    with pytest.raises(DataError) as error:
        check_rows(pl.Series([False]), "none", tmp_path / "a.csv")
    assert error.value.fix


def test_columns_that_a_table_lacks_are_left_out(tmp_path: Path) -> None:
    assert "site" not in source(touch(tmp_path, "a.png"), ["a"], site=None).scans.columns


def test_names_that_are_no_utf_8_are_found_again(tmp_path: Path) -> None:
    name = os.fsdecode("Röntgen".encode("latin-1"))
    scans = source(touch(tmp_path, f"{name}/é.png", f"{name}/{name}.png"), ["é", "Röntgen"]).scans
    assert scans["id"][1] == "Röntgen/Röntgen.png"
    assert all(locate(path).is_file() for path in scans["path"])


def test_cells_that_list_findings() -> None:
    cells = pl.Series(["Mass|Edema", "No Finding", "Edema, mild", "", None, " Mass | Hernia"])
    assert {name: marks.to_list() for name, marks in listed(cells, ["Edema", "Mass"]).items()} == {
        "Edema": [1, 0, 0, 0, None, 0],
        "Mass": [1, 0, 0, 0, None, 1],
    }
    assert listed(cells, ["mild"], ",")["mild"].to_list() == [0, 0, 1, 0, None, 0]


def test_cells_that_are_the_text_of_a_python_list(tmp_path: Path) -> None:
    texts = [
        "['Mass']",
        "['Mass',\n 'Edema']",
        "['Mass' 'Ed\nema'\n 'x']",
        "[\"it's\", ' y ']",
        "[]",
        "",
        "None",
        "NaN",
    ]
    lists = [["Mass"], ["Mass", "Edema"], ["Mass", "Ed ema", "x"], ["it's", "y"], [], None, None, None]
    found = python_lists(pl.Series("labels", texts), Path("a.csv"))
    assert found.to_list() == lists
    assert listed(found, ["Mass"])["Mass"].to_list() == [1, 1, 1, 0, 0, None, None, None]
    harm = tmp_path / "harm"
    for text in ("Mass", "'Mass'", "['Mass'", "[1]", "['Mass', None]", "{'Mass': 1}", "[" * 100_000,
                 f"[open('{harm}', 'w').name]"):  # fmt: skip
        with pytest.raises(DataError, match=r"no list of texts.*\n.*a\.csv, row 2 below the header, column 'labels'"):
            python_lists(pl.Series("labels", ["['Mass']", text]), Path("a.csv"))
    assert not harm.exists()


def test_rows_of_one_unit_must_agree() -> None:
    unit = pl.Series(["a", "b", None, "a", "b", None])
    check_same(pl.Series([1, 2, 3, 1, 2, 4]), unit, "differ", Path("a.csv"))
    check_same(pl.Series([None, 2, 3, None, 2, 4]), unit, "differ", Path("a.csv"))
    for cells, row in (([1, 2, 3, 1, 3, 4], 5), ([1, 2, 3, None, 2, 4], 4), ([None, 2, 3, 1, 2, 4], 4)):
        with pytest.raises(DataError, match=f"differ\n.*a.csv, row {row} below the header, column 'dx'"):
            check_same(pl.Series(cells), unit, "differ", Path("a.csv"), "dx")


@pytest.mark.parametrize(
    ("text", "age"),
    [("58,5", 58.5), ("058Y", 58), ("58", 58), ("58.0", 58), ("0", 0), ("100", 100), ("018M", 1.5),
     ("052W", 52 * 7 / 365.25), ("010D", 10 / 365.25), ("058y", 58), ("101", None), ("411", None), ("-1", None),
     ("", None), ("nan", None), ("Y", None), ("058X", None), ("5 8", None), ("٥٨", None)],
)  # fmt: skip
def test_ages_in_years(text: str, age: float | None) -> None:
    assert years(pl.Series([text])).to_list() == [None if age is None else pytest.approx(age)]
