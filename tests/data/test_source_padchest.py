"""PadChest as BIMCV gives it out (FORMATS section 10.3): long ids, lists as text, 16-bit PNG of 12 or 10 bits."""

import csv
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest

from damcli.data import metadata
from damcli.data.images import Contract, read_scan
from damcli.data.sources import Source, padchest
from damcli.errors import DamcliError, DataError, UsageError

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
# Two patients whose ids agree in their first 17 digits, and so in every floating-point number.
LONG = ["839860488694292331637988235681460987000", "839860488694292331637988235681460987999"]
USUAL = {
    "ImageDir": "0", "StudyDate_DICOM": "20140915", "StudyID": "2" * 39, "PatientID": LONG[0], "PatientBirth": "1940.0",
    "PatientSex_DICOM": "F", "Projection": "PA", "Manufacturer_DICOM": "PhilipsMedicalSystems", "MethodLabel":
    "Physician", "Labels": "['normal']", "Report": "sin alteraciones \n , \"pleuroparenquimatosas\" .",
    "labelCUIS": "['C0205307' 'C0032227'\n 'C1969087']",
}  # fmt: skip


def row(image: str, **changed: str) -> dict[str, str]:
    """A row of the table: `image` is its ImageID without .png, the rest is usual unless it is changed."""
    changed = {
        {"PatientSex": "PatientSex_DICOM", "StudyDate": "StudyDate_DICOM"}.get(k, k): v for k, v in changed.items()
    }
    assert changed.keys() <= set(HEADER.split(","))
    return {"ImageID": f"{image}.png", **USUAL, **changed}


def place(row: dict[str, str]) -> str:
    return f"{row['ImageDir']}/{row['ImageID']}"


def download(root: Path, rows: Sequence[dict[str, str]], images: Sequence[str] | None = None) -> Path:
    """The table, and empty files in folders called like ImageDir, or as `images` says: the reader looks at none."""
    root.mkdir(exist_ok=True)
    with (root / TABLE).open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, ["", *HEADER.split(",")], restval="")
        out.writeheader()
        out.writerows({"": str(number), **row} for number, row in enumerate(rows))
    for image in map(place, rows) if images is None else images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    return root


def read(root: Path, *rows: dict[str, str], **options: object) -> Source:
    return padchest.read(download(root, rows), **options)  # type: ignore[arg-type]


def refused(kind: type[DamcliError], said: str, root: Path, **options: object) -> str:
    with pytest.raises(kind) as caught:
        padchest.read(root, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)
    return str(caught.value)


def noted(source: Source, said: str) -> bool:
    return any(said in note for note in source.notes)


def test_scans_with_labels_and_metadata(tmp_path: Path) -> None:
    source = read(
        tmp_path,
        row("a_01", Labels="['cardiomegaly', 'pleural effusion']"),
        row("b_02", ImageDir="54", PatientID=LONG[1], StudyID="3" * 36, PatientSex="M", Projection="AP_horizontal"),
        row("c_03", Labels="['pulmonary edema']", Projection="AP", MethodLabel="RNN_model"),
    )
    scans = source.scans
    assert scans["id"].to_list() == ["0/a_01.png", "54/b_02.png", "0/c_03.png"]
    assert scans["study"].to_list() == ["2" * 39, "3" * 36, "2" * 39]
    assert scans["view"].to_list() == ["frontal"] * 3
    assert scans["projection"].to_list() == ["PA", "AP_horizontal", "AP"]
    assert scans["split"].null_count() == 3
    assert source.findings == ["cardiomegaly", "pulmonary edema", "consolidation", "atelectasis", "pleural effusion"]
    assert scans.select(pl.col("^label:.*$")).rows() == [(1, 0, 0, 0, 1), (0, 0, 0, 0, 0), (0, 1, 0, 0, 0)]
    assert scans["sex"].to_list() == ["Female", "Male", "Female"]
    assert scans["age"].to_list() == [74, 74, 74]
    assert scans["machine"].to_list() == ["PhilipsMedicalSystems"] * 3
    assert scans["label_method"].to_list() == ["Physician", "Physician", "RNN_model"]
    assert noted(source, "the labels of 1 scans are a network's")


def test_ids_of_absurd_length_are_ids(tmp_path: Path) -> None:
    assert read(tmp_path, row("a", PatientID="7" * 5000)).scans["patient"].to_list() == ["7" * 5000]


def test_who_labelled_a_scan_is_kept_and_no_input_of_a_network_by_accident(tmp_path: Path) -> None:
    scans = read(tmp_path, *(row(f"{n}", MethodLabel="RNN_model" if n % 3 else "Physician") for n in range(30))).scans
    told = metadata.leaks(scans.with_columns(split=pl.lit("train")), ["label_method", "sex", "machine"], [])
    assert list(told) == ["label_method"]
    assert "tells of the label itself by its name" in told["label_method"]


def test_ids_are_text_in_full(tmp_path: Path) -> None:
    assert float(LONG[0]) == float(LONG[1])
    source = read(tmp_path, row("a", PatientID=LONG[0]), row("b", PatientID=LONG[1]), row("c", PatientID="nan"))
    assert source.scans["patient"].to_list() == [*LONG, None]
    assert noted(source, "1 scans have no patient: each counts as one of its own")


@pytest.mark.parametrize("column", ["PatientID", "StudyID"])
@pytest.mark.parametrize(
    "text",
    [
        "8.39860488694292e+38", "8,4E+38", "8E38", "839860488694292.0", "839860488694292" + "0" * 24,
        *(str(int(float(digits))) for digits in (LONG[0], "1" * 36, "2" * 30)),
        "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    ],
)  # fmt: skip
def test_ids_that_a_program_has_rounded_are_refused(tmp_path: Path, column: str, text: str) -> None:
    root = download(tmp_path, [row("a"), row("b", **{column: text})])
    message = refused(DataError, "the id is a rounded number", root)
    assert f"row 2 below the header, column '{column}'" in message
    assert text not in message


@pytest.mark.parametrize(
    "text",
    [
        "['cardiomegaly', 'laminar atelectasis', 'pleural effusion']",
        "['cardiomegaly',\n 'laminar atelectasis',\r\n 'pleural effusion']",
        "['cardiomegaly', 'laminar\n atelectasis', ' pleural effusion ', '']",
        "['cardiomegaly' 'laminar atelectasis'\n 'pleural effusion']",
        '["cardiomegaly", "laminar atelectasis", "pleural effusion", "unchanged"]',
    ],
)
def test_lists_of_labels(tmp_path: Path, text: str) -> None:
    """A label counts by itself: "laminar atelectasis" is no "atelectasis"."""
    findings = ["cardiomegaly", "laminar atelectasis", "pleural effusion"]
    source = read(tmp_path, row("a", Labels=text), row("b", Labels="['atelectasis']"), findings=findings)
    assert source.scans.select(pl.col("^label:.*$")).rows() == [(1, 1, 1), (0, 0, 0)]
    assert read(tmp_path, row("a", Labels=text)).scans["label:atelectasis"].to_list() == [0]


@pytest.mark.parametrize(
    "text",
    ["", "nan", "None", "[]", "['']", "['unchanged']", "['Unchanged', 'suboptimal study']", "['exclude', 'mass']"],
)
def test_scans_that_no_label_says_anything_of_are_left_out(tmp_path: Path, text: str) -> None:
    """They are not negative for all findings."""
    source = read(tmp_path, row("a", Labels=text), row("b"))
    assert source.scans["id"].to_list() == ["0/b.png"]
    assert noted(source, "left out 1 scans whose labels are missing or say nothing")
    assert source.refused == []


@pytest.mark.parametrize(
    "text",
    [
        "cardiomegaly", "['cardiomegaly'", "{'cardiomegaly': 1}", "['cardiomegaly', 1]", "[" * 100_000,
        "__import__('os').getcwd()", "[open('/etc/passwd')]",
    ],
)  # fmt: skip
def test_labels_that_are_no_list(tmp_path: Path, text: str) -> None:
    root = download(tmp_path, [row("a"), row("b", Labels=text)])
    assert "row 2 below the header" in refused(DataError, "this is no list of texts", root)


def test_any_label_of_the_table_may_be_a_finding(tmp_path: Path) -> None:
    root = download(tmp_path, [row("a", Labels="['COPD signs', 'scoliosis']"), row("b")])
    source = padchest.read(root, findings=["Scoliosis", "copd signs"])
    assert source.findings == ["scoliosis", "COPD signs"]
    assert source.scans.select(pl.col("^label:.*$")).rows() == [(1, 1), (0, 0)]
    refused(UsageError, "did you mean scoliosis?", root, findings=["scoliossis"])


def test_views(tmp_path: Path) -> None:
    projections = ["PA", "AP", "AP_horizontal", "L", "COSTAL", "EXCLUDE", "UNK", "nan"]
    root = download(tmp_path, [row(p, Projection=p) for p in projections])
    source = padchest.read(root)
    assert source.scans["projection"].to_list() == ["PA", "AP", "AP_horizontal"]
    assert noted(source, "left out 1 lateral scans (--views all keeps them)")
    assert noted(source, "left out 4 scans of other or unknown views")
    source = padchest.read(root, views="all")
    assert source.scans["view"].to_list() == ["frontal", "frontal", "frontal", "lateral"]
    assert noted(source, "left out 4 scans of other or unknown views")
    assert not noted(source, "lateral")


@pytest.mark.parametrize(
    ("date", "born", "age"),
    [
        ("20140915", "1940.0", 74), ("20140915", "2014", 0), ("20140915", "nan", None), ("20140915", "None", None),
        ("nan", "1940.0", None), ("", "", None), ("20140915", "1840.0", None), ("20140915", "2020.0", None),
    ],
)  # fmt: skip
def test_age(tmp_path: Path, date: str, born: str, age: float | None) -> None:
    scans = read(tmp_path, row("a", StudyDate=date, PatientBirth=born)).scans
    assert scans["age"].to_list() == [age]
    assert scans["age"].dtype == pl.Float64


def test_sex(tmp_path: Path) -> None:
    rows = [row(f"{n}", PatientSex=sex) for n, sex in enumerate(["M", "F", "O", "nan", "None", ""])]
    assert read(tmp_path, *rows).scans["sex"].to_list() == ["Male", "Female", "Other", None, None, None]


def test_images_in_one_folder_or_beside_another_copy(tmp_path: Path) -> None:
    rows = [row("a"), row("b", ImageDir="7")]
    source = padchest.read(download(tmp_path / "flat", rows, ["images-224/a.png", "images-224/b.png"]))
    assert source.scans["id"].to_list() == ["images-224/a.png", "images-224/b.png"]
    source = padchest.read(download(tmp_path / "both", rows, ["0/a.png", "7/b.png", "images-224/a.png"]))
    assert source.scans["id"].to_list() == ["0/a.png", "7/b.png"]
    assert noted(source, "1 images are there more than once")


@pytest.mark.parametrize("folders", [True, False])
def test_a_part_of_the_set(tmp_path: Path, folders: bool) -> None:
    """Without folder 7 its scans are left out; one that folder 0 lacks, as some 21 of the whole set, is refused."""
    rows = [row("a"), row("b"), row("c", ImageDir="7", MethodLabel="RNN_model", PatientID="nan")]
    source = padchest.read(download(tmp_path, rows, ["0/a.png"] if folders else ["a.png"]))
    assert len(source.scans) == 1
    assert source.refused == [("b", "the image is not in this download")]
    assert noted(source, "left out 1 scans of parts that are not in this download: ImageDir 7")
    assert not noted(source, "network's")
    assert not noted(source, "have no patient")


def test_a_table_that_is_packed_and_one_that_is_missing(tmp_path: Path) -> None:
    root = download(tmp_path, [row("a")])
    (root / f"{TABLE}.gz").write_bytes(gzip.compress((root / TABLE).read_bytes()))
    (root / TABLE).unlink()
    assert len(padchest.read(root).scans) == 1
    (root / f"{TABLE}.gz").unlink()
    refused(DataError, f"there is no {TABLE}", root)


def test_an_image_that_is_named_twice(tmp_path: Path) -> None:
    refused(DataError, "in the table more than once", download(tmp_path, [row("a"), row("a", Labels="['mass']")]))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_pixels_of_few_bits_in_16_are_neither_black_nor_saturated(tmp_path: Path, bits: int) -> None:
    """All depths show the same picture: one grey value of 8 bits for each sixteenth of a 12-bit range."""
    ramp = np.arange(256).repeat(64).reshape(128, 128)
    file = tmp_path / "a.png"
    assert cv2.imwrite(str(file), np.rint(ramp / 255 * (2**bits - 1)).astype(np.uint16))
    shown = read_scan(file, Contract(size=128, channels=1)).astype(int)
    np.testing.assert_allclose(shown, ramp, atol=1)


def test_the_command(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]) -> None:
    """A truncated file, as the set has some, is rejected, and costs no other scan."""
    rows = [
        row(f"{n}", PatientID=f"{n + 1}" * 38, Labels="['cardiomegaly']" if n % 2 else "['normal']") for n in range(8)
    ]
    root, draw = download(tmp_path / "set", rows), np.random.default_rng(0)
    for line in rows:
        assert cv2.imwrite(str(root / place(line)), draw.integers(0, 4096, (40, 32), np.uint16))
    broken = root / place(rows[3])
    broken.write_bytes(broken.read_bytes()[:600])
    output = tmp_path / "cxr"
    code, _, err = run_here("prepare", "padchest", root, "-o", output, "--size", "16", "--workers", "0")
    assert code == 4, err
    rejected = pl.read_csv(output / "rejected.csv")
    assert rejected.width == 2
    assert rejected.row(0)[0].endswith("0/3.png")
    assert "cut off or damaged" in rejected.row(0)[1]
    manifest = pl.read_parquet(output / "manifest.parquet")
    assert sorted(manifest["id"].to_list()) == [f"0/{n}.png" for n in range(8) if n != 3]
    assert manifest["patient"].n_unique() == 7
