"""HAM10000 from Kaggle and Dataverse (FORMATS section 12): one diagnosis an image, images that share a lesion."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.data.sources import ham10000
from damcli.errors import DataError, UsageError

KAGGLE = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ROWS = (
    "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp",
    "HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp",
    "HAM_0002730,ISIC_0026769,mel,histo,,unknown,unknown",
    "HAM_0001466,ISIC_0031633,nv,follow_up,75.0,female,ear",
    ",ISIC_0031634,vasc,consensus,5.0,female,",
    ",ISIC_0031635,akiec,histo,60.0,female,face",
)
NAMES = [row.split(",")[1] for row in ROWS]


def download(root: Path, rows=ROWS, header: str = KAGGLE, table: str = "HAM10000_metadata.csv") -> Path:
    for number, name in enumerate(NAMES):
        folder = root / f"HAM10000_images_part_{number % 2 + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").touch()
    (root / table).write_text("\n".join([header, *rows]) + "\n")
    return root


def test_kaggles_table(tmp_path: Path) -> None:
    source = ham10000.read(download(tmp_path))
    scans = source.scans
    assert scans["id"].to_list() == NAMES
    assert scans["path"][1] == str(tmp_path / "HAM10000_images_part_2" / "ISIC_0025030.jpg")
    labels = scans.select(f"label:{finding}" for finding in source.findings).to_numpy()
    assert (labels.sum(axis=1) == 1).all()
    assert [source.findings[n] for n in labels.argmax(axis=1)] == [
        "benign keratosis", "benign keratosis", "melanoma", "nevus", "vascular lesion", "actinic keratosis"
    ]  # fmt: skip
    assert len(source.findings) == 7
    assert scans["age"].to_list() == [80, 80, None, 75, 5, 60]
    assert scans["sex"].to_list() == ["male", "male", None, "female", "female", "female"]
    assert scans["site"].to_list() == ["scalp", "scalp", None, "ear", None, "face"]
    assert scans["split"].null_count() == len(scans)
    assert not {"dataset", "dx_type"} & set(scans.columns)
    assert (source.size, source.channels, source.refused) == (384, 3, [])


def test_the_lesion_groups_and_an_unknown_one_is_no_group(tmp_path: Path) -> None:
    source = ham10000.read(download(tmp_path))
    lesions = ["HAM_0000118", "HAM_0000118", "HAM_0002730", "HAM_0001466", None, None]
    assert source.scans["patient"].to_list() == source.scans["study"].to_list() == lesions
    assert "of 3 lesions" in source.notes[0]
    assert any("2 images have no lesion id" in note and "cannot be excluded" in note for note in source.notes)
    assert any("no patient is known" in note for note in source.notes)


@pytest.mark.parametrize("table", ["HAM10000_metadata", "HAM10000_metadata.tab", "ham10000_metadata.TAB"])
def test_dataverse_has_a_column_more_and_serves_tabs_and_quotes(tmp_path: Path, table: str) -> None:
    rows = [f"{row},{'vidir_modern' if number else 'rosendahl'}" for number, row in enumerate(ROWS)]
    plain = ham10000.read(download(tmp_path / "csv", rows, KAGGLE + ",dataset"))
    assert plain.scans["dataset"].to_list() == ["rosendahl", *["vidir_modern"] * 5]
    quoted = ["\t".join(cell if cell[:1].isdigit() else f'"{cell}"' for cell in row.split(",")) for row in rows]
    header = (KAGGLE + ",dataset").replace(",", "\t")
    tab = ham10000.read(download(tmp_path / "tab", quoted, header, table))
    assert tab.scans.drop("path").equals(plain.scans.drop("path"))


def test_kaggles_images_lie_there_twice_and_masks_are_no_images(tmp_path: Path) -> None:
    download(tmp_path)
    for name in (
        "ham10000_images_part_1/ISIC_0027419.jpg",
        "masks/ISIC_0027419_segmentation.png",
        "x/ISIC_0099999.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = ham10000.read(tmp_path)
    assert source.scans["path"][0] == str(tmp_path / "HAM10000_images_part_1" / "ISIC_0027419.jpg")
    assert any(note.startswith("1 images are there more than once") for note in source.notes)
    assert any(note.startswith("1 images without a label") for note in source.notes)


def test_one_part_alone_refuses_the_others_by_name(tmp_path: Path) -> None:
    for file in (download(tmp_path) / "HAM10000_images_part_2").iterdir():
        file.unlink()
    source = ham10000.read(tmp_path)
    assert source.scans["id"].to_list() == NAMES[::2]
    assert source.refused == [(name, "the image is not in this download") for name in NAMES[1::2]]
    assert any(note.startswith("3 of 6 images are not there") and "--max-rejected" in note for note in source.notes)


def test_a_part_that_is_missing_is_said_before_anything_is_decoded(tmp_path: Path, run_here) -> None:
    """The images here are empty: had any been looked at, it would be counted too."""
    for file in (download(tmp_path) / "HAM10000_images_part_2").iterdir():
        file.unlink()
    code, _, said = run_here("prepare", "ham10000", tmp_path, "-o", tmp_path / "out", "--workers", "0")
    assert code == 3
    assert "3 of 6 images are not there: is a part of the download missing?" in said
    assert "3 of 6 scans cannot be used: the image is not in this download (3)" in said
    assert not (tmp_path / "out").exists()


def test_a_lesion_with_two_diagnoses(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1].replace(",bkl,", ",mel,"), *ROWS[2:]]
    with pytest.raises(
        DataError, match=r"another image of this lesion.*\n.*row 2 below the header, column 'dx'"
    ) as error:
        ham10000.read(download(tmp_path, rows))
    assert "HAM_0000118" not in str(error.value)


def test_ages_that_are_none_are_said(tmp_path: Path) -> None:
    source = ham10000.read(
        download(tmp_path, [ROWS[0].replace(",80.0,", ',"80,5",'), ROWS[1].replace(",80.0,", ",old,")])
    )
    assert source.scans["age"].to_list() == [80.5, None]
    assert "1 ages are above 100 or none: they count as not known" in source.notes


def test_findings_that_are_asked_for(tmp_path: Path) -> None:
    source = ham10000.read(download(tmp_path), findings=["Melanoma"])
    assert source.findings == ["melanoma"]
    assert source.scans["label:melanoma"].to_list() == [0, 0, 1, 0, 0, 0]
    with pytest.raises(UsageError, match="there is no finding 'mel'"):
        ham10000.read(tmp_path, findings=["mel"])


def test_tables_that_are_none(tmp_path: Path) -> None:
    tmp_path.joinpath("x").mkdir()
    with pytest.raises(DataError, match=r"no HAM10000_metadata\.csv or HAM10000_metadata\.tab"):
        ham10000.read(tmp_path)
    for column in ("lesion_id", "dx"):
        with pytest.raises(DataError, match=f"no column '{column}'"):
            ham10000.read(download(tmp_path, header=KAGGLE.replace(f"{column},", "other,")))
    for dx in ("scc", ""):
        with pytest.raises(DataError, match=r"none of akiec.*\n.*row 3 below the header, column 'dx'"):
            ham10000.read(download(tmp_path, [row.replace(",mel,", f",{dx},") for row in ROWS]))
    with pytest.raises(DataError, match="more than once"):
        ham10000.read(download(tmp_path, [*ROWS, ROWS[0]]))


def test_it_is_prepared_with_no_lesion_on_two_sides(tmp_path: Path, run_here) -> None:
    rng = np.random.default_rng(0)
    codes = ("mel", "nv", "bkl")
    rows = [f"HAM_{n // 3},ISIC_{n:07},{codes[n // 3 % 3]},histo,40.0,male,back" for n in range(60)]
    for n in range(60):
        folder = tmp_path / "in" / f"HAM10000_images_part_{n % 2 + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"ISIC_{n:07}.jpg")
    (tmp_path / "in" / "HAM10000_metadata.csv").write_text("\n".join([KAGGLE, *rows]))
    out = tmp_path / "out"
    code, _, said = run_here(
        "prepare", "ham10000", tmp_path / "in", "-o", out, "--size", "16", "--findings", "melanoma,nevus"
    )
    assert code == 0, said
    manifest = pl.read_parquet(out / "manifest.parquet")
    assert set(manifest["split"]) == {"train", "valid"}
    assert manifest.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
