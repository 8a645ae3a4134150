"""ChestX-ray14 as its releases have it (FORMATS section 10.1): headers, ages, patients, findings, official split."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.commands.prepare.reading import read as prepared
from damcli.data.sources import Source, nih
from damcli.data.store import Dataset
from damcli.errors import DamcliError, DataError, UsageError

V2020 = ("Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
         "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]")  # fmt: skip
ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.171,0.171",
    "00012345_003.png,Pleural_Thickening|Hernia|Mass,3,12345,0,F,PA,2500,2048,0.171,0.171",
)
FILES = tuple(row[:16] for row in ROWS)


def download(root: Path, rows=ROWS, header: str = V2020, table: str = "Data_Entry_2017_v2020.csv", files=FILES) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / table).write_text("\n".join([header, *rows]) + "\n")
    for number, name in enumerate(files):
        folder = root / f"images_{number % 12 + 1:03}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return root


def lists(root: Path, train_val=(), test=()) -> None:
    for name, files in (("train_val_list.txt", train_val), ("test_list.txt", test)):
        (root / name).write_text("\n".join(files))  # without a final newline


def refused(root: Path, kind: type[DamcliError], *said: str, **options) -> None:
    with pytest.raises(kind) as caught:
        nih.read(root, **options)
    for text in said:
        assert text in str(caught.value)


def positive(source: Source) -> list[set[str]]:
    """The findings of each scan, of which every other one is negative."""
    labels = source.scans.select(f"label:{finding}" for finding in source.findings)
    assert set(labels.to_numpy().ravel()) <= {0.0, 1.0}
    return [{name for name, label in zip(source.findings, row, strict=True) if label} for row in labels.iter_rows()]


def test_the_table_of_2020(tmp_path: Path) -> None:
    source = nih.read(download(tmp_path))
    scans = source.scans
    assert len(source.findings) == 14
    assert positive(source) == [
        {"Cardiomegaly"}, {"Cardiomegaly", "Emphysema"}, set(), {"Pleural_Thickening", "Hernia", "Mass"}
    ]  # fmt: skip
    assert scans["id"].to_list() == [f"images_{n + 1:03}/images/{name}" for n, name in enumerate(FILES)]
    assert scans["path"][3] == str(tmp_path / "images_004/images/00012345_003.png")
    assert scans["patient"].to_list() == ["00000001", "00000001", "00000002", "00012345"]
    assert scans["age"].to_list() == [57, 58, 80, 0]
    assert scans["sex"].to_list() == ["Male", "Male", "Female", "Female"]
    assert scans["projection"].to_list() == ["PA", "PA", "AP", "PA"]
    assert set(scans["view"]) == {"frontal"}
    assert scans["split"].null_count() == 4
    assert any("no official split" in note for note in source.notes)
    assert source.refused == []


def test_kaggles_table_has_a_comma_behind_every_line(tmp_path: Path) -> None:
    rows = [row + "," for row in ROWS]
    kaggle = nih.read(download(tmp_path / "kaggle", rows, V2020 + ",", "Data_Entry_2017.csv")).scans
    assert kaggle.drop("path").equals(nih.read(download(tmp_path / "nih")).scans.drop("path"))


def test_the_newer_of_two_tables_and_one_that_is_packed(tmp_path: Path) -> None:
    download(tmp_path, ROWS[:2], table="Data_Entry_2017.csv")
    assert len(nih.read(tmp_path).scans) == 2
    assert len(nih.read(download(tmp_path)).scans) == 4


def test_patient_sex_and_ages_of_other_releases(tmp_path: Path) -> None:
    ages = ["058Y", "411Y", "018M", ""]
    rows = [",".join([*row.split(",")[:4], age, *row.split(",")[5:]]) for row, age in zip(ROWS, ages, strict=True)]
    source = nih.read(download(tmp_path, rows, V2020.replace("Gender", "Sex")))
    assert source.scans["age"].to_list() == [58, None, 1.5, None]
    assert source.scans["sex"].to_list() == ["Male", "Male", "Female", "Female"]
    assert "1 ages are above 100 or none: they count as not known" in source.notes


def test_the_test_list_is_test_and_the_rest_is_open(tmp_path: Path) -> None:
    download(tmp_path)
    lists(tmp_path, [*FILES[:2], "00009999_000.png", FILES[2]], [FILES[3], "00008888_000.png"])
    source = nih.read(tmp_path)
    assert source.scans["split"].to_list() == [None, None, None, "test"]
    assert "the scans of test_list.txt are test, as is official" in source.notes


def test_lists_that_do_not_fit_the_table(tmp_path: Path) -> None:
    download(tmp_path)
    lists(tmp_path, FILES[:2], FILES[3:])
    refused(tmp_path, DataError, "in none or both", "row 3 below the header")
    lists(tmp_path, FILES[:2], FILES[1:])
    refused(tmp_path, DataError, "in none or both", "row 2 below the header")
    (tmp_path / "train_val_list.txt").unlink()
    refused(tmp_path, DataError, "train_val_list.txt is missing")


@pytest.mark.parametrize("written", [b"\r\n", b"\n\n", b" \n"])
def test_lists_as_other_systems_write_them(tmp_path: Path, written: bytes) -> None:
    download(tmp_path)
    lists(tmp_path, FILES[:3], FILES[3:])
    plain = nih.read(tmp_path).scans
    for name in ("train_val_list.txt", "test_list.txt"):
        text = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", written) + written)
    assert nih.read(tmp_path).scans.equals(plain)
    assert plain["split"].to_list() == [None, None, None, "test"]


def test_lists_that_share_a_patient_stop_it(tmp_path: Path) -> None:
    download(tmp_path)
    lists(tmp_path, [FILES[0], *FILES[2:]], [FILES[1]])
    with pytest.raises(DataError, match="1 patients have scans in two splits") as caught:
        prepared("nih", tmp_path)
    assert "--allow-leaks" in str(caught.value)
    assert prepared("nih", tmp_path, allow_leaks=True).scans["split"].to_list()[1] == "test"


def test_findings_that_are_asked_for(tmp_path: Path) -> None:
    source = nih.read(download(tmp_path), findings=["no finding", "Mass"])
    assert source.findings == ["No Finding", "Mass"]
    assert positive(source) == [set(), set(), {"No Finding"}, {"Mass"}]
    refused(tmp_path, UsageError, "did you mean Infiltration", findings=["Infiltrate"])


@pytest.mark.parametrize("cell", ["", "Infiltrate", "Mass|", "Mass|Tumour", "No Finding|Mass", "mass", "Mass|Mass"])
def test_findings_that_are_none(tmp_path: Path, cell: str) -> None:
    rows = [ROWS[0], ROWS[1].replace("Cardiomegaly|Emphysema", cell)]
    refused(download(tmp_path, rows), DataError, "not findings", "row 2 below the header, column 'Finding Labels'")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("00000002_000.png", "00000003_000.png", "not the patient of the file name"),
        (",0,2,80", ",0,2.0,80", "not the patient of the file name"),
        (",0,2,80", ",0,,80", "not the patient of the file name"),
        ("00000002_000.png", "../2.png", "none of ChestX-ray14"),
        ("00000002_000.png", "", "none of ChestX-ray14"),
        ("00000002_000.png", "00000001_000.png", "not the patient of the file name"),
    ],
)
def test_rows_whose_image_or_patient_is_none(tmp_path: Path, old: str, new: str, said: str) -> None:
    rows = [row.replace(old, new) for row in ROWS]
    refused(download(tmp_path, rows), DataError, said, "row 3 below the header")
    with pytest.raises(DataError) as caught:
        nih.read(tmp_path)
    assert "00000002" not in str(caught.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path, DataError, "no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv")
    for column in ("Finding Labels", "Patient ID", "Patient Gender"):
        header = V2020.replace(column, "Something")
        name = "Patient Sex" if column == "Patient Gender" else column
        refused(download(tmp_path, header=header), DataError, f"no column '{name}'")
    download(tmp_path, [*ROWS, ROWS[0]])
    refused(tmp_path, DataError, "more than once")


def test_images_lie_anywhere_also_with_other_files_beside_them(tmp_path: Path) -> None:
    download(tmp_path, files=())
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in (*FILES[:3], "00099999_000.png"):
        (tmp_path / "deep" / "er" / name).touch()
    source = nih.read(tmp_path)
    assert source.scans["id"].to_list() == [f"deep/er/{name}" for name in FILES[:3]]
    assert source.refused == [(FILES[3].removesuffix(".png"), "the image is not in this download")]
    assert any(note.startswith("1 images without a label") for note in source.notes)


def test_real_rows(test_data: Path, tmp_path: Path) -> None:
    rows = (test_data / "nih_tables" / "Data_Entry_2017_v2020.first300.csv").read_text().splitlines()
    download(tmp_path, rows[1:], rows[0], files=[row.partition(",")[0] for row in rows[1:]])
    shutil.copy(test_data / "nih_tables" / "BBox_List_2017.csv", tmp_path)
    source = nih.read(tmp_path)
    assert len(source.scans) == 300
    cells = [set(row.split(",")[1].split("|")) - {"No Finding"} for row in rows[1:]]
    assert positive(source) == cells
    assert source.scans["patient"].to_list() == [f"{int(row.split(',')[3]):08}" for row in rows[1:]]
    assert source.scans["age"].null_count() == 0


def test_it_is_prepared_and_four_channels_are_the_same_grey(tmp_path: Path, run_here) -> None:
    rows = [f"{patient:08}_00{n}.png,{'Mass|Hernia' if patient % 3 else 'No Finding'},{n},{patient},50,F,PA,8,8,1,1"
            for patient in range(1, 11) for n in range(2)]  # fmt: skip
    files = [row[:16] for row in rows]
    root = download(tmp_path / "in", rows, files=files)
    lists(root, files[:16], files[16:])
    for number, name in enumerate(files):  # both images of a patient show the same
        grey = Image.fromarray(np.random.default_rng(number // 2).integers(0, 256, (24, 24), np.uint8))
        grey.convert("RGBA" if number % 2 else "L").save(next(root.rglob(name)))
    code, _, said = run_here("prepare", "nih", root, "-o", tmp_path / "out", "--size", "16", "--findings", "Mass")
    assert code == 0, said
    dataset = Dataset.open(tmp_path / "out")
    manifest = dataset.manifest.with_row_index().sort("id")
    pixels = dataset.read(manifest["index"].to_numpy().astype(np.int64))
    names = manifest["id"].str.slice(-16).to_list()
    by_name = dict(zip(names, pixels, strict=True))
    for name in files[::2]:
        assert by_name[name].std() > 20
        assert np.array_equal(by_name[name], by_name[name.replace("_000", "_001")])
    assert manifest.filter(split="test")["patient"].n_unique() == 2
    assert set(manifest["split"]) == {"train", "valid", "test"}
    assert manifest.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
