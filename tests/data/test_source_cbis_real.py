"""CBIS-DDSM as it is: the four complete tables, and the few films that are at hand."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli.data import splits
from damcli.data.images import Contract, read_scan
from damcli.data.sources import Source, cbis, ddsm


def test_the_complete_tables(test_data: Path) -> None:
    tables = cbis.tables(test_data / "cbis_ddsm_tables")
    cases = cbis.read_cases(tables)
    assert len(cases) == 3568
    assert cases["patient"].n_unique() == 1566
    assert cases["image"].n_unique() == 3103
    assert cases["crop"].n_unique() == cases["mask"].n_unique() == 3568
    expected = {
        ("train", "calcification"): (1546, 602, 1227, 528, 474, 544),
        ("test", "calcification"): (326, 151, 284, 130, 67, 129),
        ("train", "mass"): (1318, 691, 1231, 577, 104, 637),
        ("test", "mass"): (378, 201, 361, 194, 37, 147),
    }
    raw = pl.concat(
        pl.read_csv(table, infer_schema=False).select("pathology", pl.col("image file path").alias("image"))
        for table in tables
    )
    assert raw["image"].to_list() == cases["image"].to_list()
    cases = cases.with_columns(raw["pathology"])
    for (split, lesion), figures in expected.items():
        part = cases.filter(split=split, lesion=lesion)
        kinds = dict(part["pathology"].value_counts().iter_rows())
        assert figures == (
            len(part), part["patient"].n_unique(), part["image"].n_unique(),
            kinds["BENIGN"], kinds["BENIGN_WITHOUT_CALLBACK"], kinds["MALIGNANT"],
        )  # fmt: skip
        assert part["malignant"].sum() == figures[-1]
    assert cases.group_by("image").agg(pl.col("malignant").n_unique()).filter(malignant=2).height == 17
    assert cases.filter(pl.col("density").is_null()).select("split", "lesion").rows() == [("test", "calcification")] * 2


def test_who_crosses_over_in_the_complete_tables(test_data: Path) -> None:
    cases = cbis.read_cases(cbis.tables(test_data / "cbis_ddsm_tables"))
    patients = cbis.moved(cases)
    assert len(patients) == 31
    sides = {
        (lesion, split): set(part["patient"])
        for (lesion, split), part in cases.partition_by("lesion", "split", as_dict=True).items()
    }
    one = sides["calcification", "test"] & sides["mass", "train"]
    other = sides["calcification", "train"] & sides["mass", "test"]
    assert (len(one), len(other)) == (13, 18)
    assert set(patients) == one | other


@pytest.fixture
def complete(test_data: Path, tmp_path: Path) -> Source:
    """All 3,103 images of the complete tables, each an empty file: nothing is decoded yet."""
    for table in cbis.tables(test_data / "cbis_ddsm_tables"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    for name in cbis.read_cases(cbis.tables(tmp_path))["image"].unique():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return ddsm.read(tmp_path)


def test_the_complete_download(complete: Source) -> None:
    scans = complete.scans
    assert len(scans) == 3103
    assert complete.refused == []
    assert scans["patient"].n_unique() == 1566
    assert splits.crossing(scans["patient"].to_list(), scans["split"].to_list()) == []
    # No film is on both sides, nor has two labels.
    films = scans.with_columns(film=pl.col("id").str.extract(r"(P_\d{5}_\w+)$"))
    assert films["film"].n_unique() == 3032
    each = films.group_by("film").agg(pl.col("split", "label:malignant").n_unique())
    assert each["split"].max() == each["label:malignant"].max() == 1
    assert any(note.startswith("31 patients") for note in complete.notes)
    # What was test stays test; of train, the 31 patients' images went there.
    official = scans.filter(pl.col("id").str.contains("-Test_"))
    assert len(official) == 284 + 361
    assert set(official["split"]) == {"test"}
    moved = scans.filter(pl.col("id").str.contains("-Training_") & (pl.col("split") == "test"))
    assert moved["patient"].n_unique() == 31


def test_the_real_scan(test_data: Path) -> None:
    """One film as DICOM (RLE, 16 bits), the seven others of the table as PNG by the names of their cases."""
    source = ddsm.read(test_data / "cbis_ddsm")
    assert source.refused == []
    labels = dict(source.scans.select("id", "label:malignant").iter_rows())
    known = pl.read_csv(test_data / "cbis_ddsm" / "labels.csv")
    names = known["png"].str.extract(r"/(.*)\.png")
    assert labels == dict(zip(names, known["malignant"], strict=True))
    assert dict(source.scans.select("id", "patient").iter_rows()) == dict(zip(names, known["patient_id"], strict=True))
    path = next(path for path in source.scans["path"] if path.endswith(".dcm"))
    shown = read_scan(Path(path), Contract(size=512, channels=1)).astype(float)
    png = np.asarray(Image.open(test_data / "cbis_ddsm" / "png_512" / "Mass-Test_P_00820_LEFT_CC.png"), float)
    beside = (512 - png.shape[1]) // 2
    inner = shown[:, beside : beside + png.shape[1]]
    # The PNG is spread between its smallest and its largest value, the scan between percentiles.
    assert np.corrcoef(inner.ravel(), png.ravel())[0, 1] > 0.99
    assert not shown[:, : beside - 1].any()


def test_the_real_pictures(test_data: Path, tmp_path: Path) -> None:
    table = "mass_case_description_test_set.csv"
    (tmp_path / table).write_bytes((test_data / "cbis_ddsm" / table).read_bytes())
    (tmp_path / "png_512").symlink_to(test_data / "cbis_ddsm" / "png_512")
    source = ddsm.read(tmp_path)
    assert len(source.scans) == 8
    assert source.refused == []
    assert source.scans.filter(pl.col("label:malignant") == 1)["patient"].to_list() == ["P_00820"] * 2
    for path in source.scans["path"]:
        image = Image.open(io.BytesIO(Path(path).read_bytes()))
        shown = read_scan(Path(path), Contract(size=max(image.size), channels=1))
        beside = (shown.shape[1] - image.width) // 2
        assert np.array_equal(shown[:, beside : beside + image.width], np.asarray(image))
