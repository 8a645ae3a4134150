"""RSNA's pneumonia challenge as Kaggle has it (FORMATS section 10.5): whose images these are is in no table of it."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

from damcli.data import audit
from damcli.data.sources import Source, rsna_pneumonia
from damcli.errors import DamcliError, DataError, UsageError

HEADER = "patientId,x,y,width,height,Target"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
CLASSES = "stage_2_detailed_class_info.csv"


def uuid(number: int) -> str:
    return f"0004cfab-14fd-4e49-80ba-{number:012x}"


def table(folder: Path, *rows: str, name: str = "stage_2_train_labels.csv", header: str = HEADER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def none(number: int) -> str:
    return f"{uuid(number)},,,,,0"


def box(number: int, x: float = 264.0) -> str:
    return f"{uuid(number)},{x},152.0,213.0,379.0,1"


def touch(folder: Path, *numbers: int, suffix: str = ".dcm") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{uuid(number)}{suffix}").touch()


def xray(file: Path, seed: int = 0, side: int = 64, **elements: object) -> bytes:
    """Write a chest X-ray as the set's are: baseline JPEG, no window, ages without Y; returns the JPEG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image, jpeg = Dataset(), io.BytesIO()
    grey = (
        np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    )
    Image.fromarray(grey).save(jpeg, "JPEG", quality=90)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.7"
    image.Modality, image.ConversionType, image.PatientID = "CR", "WSD", file.stem
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = side, side, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.LossyImageCompression = "01"
    about = {"PatientAge": "43", "PatientSex": "F", "ViewPosition": "PA", **elements}
    frame = jpeg.getvalue()
    image.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    image["PixelData"].VR = "OB"
    with warnings.catch_warnings(action="ignore"):  # some of it is not as the standard has it
        for keyword, value in about.items():
            setattr(image, keyword, value)
        image.save_as(file, enforce_file_format=True)
    return frame


def mapped(folder: Path, patients: dict[int, int]) -> None:
    """RSNA's file: the number of an image, and its patient at NIH."""
    entries = [
        {
            "SOPInstanceUID": f"1.2.276.{image}",
            "subset_img_id": uuid(image),
            "img_id": f"{patient:08}_{image:03}.png",
            "orig_labels": ["Mass"],
            "subset_init_label": 1,
        }
        for image, patient in patients.items()
    ]
    (folder / MAPPING).write_text(json.dumps(entries))


def kaggle(folder: Path) -> Path:
    """Five images, one of which has two boxes."""
    table(folder, none(0), none(1), box(2), box(3, 264.0), box(3, 562.0), none(4))
    touch(folder / "stage_2_train_images", *range(5))
    return folder


def refused(folder: Path, kind: type[DamcliError], *said: str, findings: Sequence[str] | None = None) -> None:
    with pytest.raises(kind) as caught:
        rsna_pneumonia.read(folder, findings=findings)
    for text in said:
        assert text in str(caught.value)


def said(source: Source, text: str) -> bool:
    return any(text in note for note in source.notes)


def test_a_row_per_image_positive_where_any_box_is(tmp_path: Path) -> None:
    source = rsna_pneumonia.read(kaggle(tmp_path))
    scans = source.scans
    assert scans["id"].to_list() == [f"stage_2_train_images/{uuid(n)}.dcm" for n in range(5)]
    assert scans["label:Pneumonia"].to_list() == [0, 0, 1, 1, 0]
    assert set(scans["view"]) == {"frontal"}
    assert scans["split"].null_count() == scans["study"].null_count() == 5
    assert (source.name, source.findings, source.refused) == ("rsna-pneumonia", ["Pneumonia"], [])
    assert said(source, "5 images, 3 boxes")


def test_an_image_is_no_patient(tmp_path: Path) -> None:
    table(tmp_path, *(none(n) for n in range(4)))
    for n in range(4):  # in the header it is the image's name too
        xray(tmp_path / f"{uuid(n)}.dcm")
    source = rsna_pneumonia.read(tmp_path)
    assert source.scans["patient"].to_list() == [None] * 4
    assert said(source, "patientId is one per image, so leakage cannot be excluded")
    assert said(source, MAPPING)
    assert said(source, "the images come from NIH ChestX-ray14")
    (concern,) = audit.of_table(source.scans.with_columns(split=pl.lit("train")), source.findings)
    assert concern.kind == "unknown"


def test_rsnas_mapping_tells_nihs_patients(tmp_path: Path) -> None:
    kaggle(tmp_path)
    mapped(tmp_path, {0: 1, 1: 28173, 2: 1, 3: 30805, 4: 28173, 77: 5})
    source = rsna_pneumonia.read(tmp_path)
    assert source.scans["patient"].to_list() == ["00000001", "00028173", "00000001", "00030805", "00028173"]
    assert said(source, "NIH's patient of 5 images")
    assert not said(source, "leakage cannot be excluded")
    # Its patients being known, the images are NIH's all the same.
    assert said(source, "the images come from NIH ChestX-ray14")


def test_a_mapping_of_some_images(tmp_path: Path) -> None:
    kaggle(tmp_path)
    mapped(tmp_path, {0: 1, 2: 1})
    entries = json.loads((tmp_path / MAPPING).read_text())
    entries += [{"subset_img_id": uuid(1)}, {"subset_img_id": uuid(3), "img_id": None}, None, 7, "x", {"img_id": [1]},
                {"subset_img_id": f"{uuid(4)}.dcm", "img_id": "00000009_001"}]  # fmt: skip
    (tmp_path / MAPPING).write_text(json.dumps(entries))
    source = rsna_pneumonia.read(tmp_path)
    assert source.scans["patient"].to_list() == ["00000001", None, "00000001", None, "00000009"]
    assert said(source, "NIH's patient of 3 images; that of 2 is not known, so leakage cannot be excluded")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is no JSON"), (b"<html>not found</html>", "is no JSON"), (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"), (b"9" * 5000, "is no JSON"), (b"{}", "does not list images"),
        (b"[]", "does not list images"), (b'[{"a": NaN}]', "does not list images"), (b"null", "does not list images"),
    ],
)  # fmt: skip
def test_a_mapping_that_is_none(tmp_path: Path, content: bytes, what: str) -> None:
    kaggle(tmp_path)
    (tmp_path / MAPPING).write_bytes(content)
    refused(tmp_path, DataError, what, MAPPING)


def test_an_image_of_two_patients(tmp_path: Path) -> None:
    kaggle(tmp_path)
    mapped(tmp_path, {0: 1, 1: 2})
    entries = json.loads((tmp_path / MAPPING).read_text())
    (tmp_path / MAPPING).write_text(json.dumps([*entries, {**entries[0], "img_id": "00000003_000.png"}]))
    refused(tmp_path, DataError, "an image belongs to two patients", f"{MAPPING}, entry 3")


def test_headers_tell_age_sex_and_projection(tmp_path: Path) -> None:
    table(tmp_path, *(none(n) for n in range(8)))
    xray(tmp_path / f"{uuid(0)}.dcm")
    xray(tmp_path / f"{uuid(1)}.dcm", PatientAge="058Y", PatientSex="M", ViewPosition="AP")
    xray(tmp_path / f"{uuid(2)}.dcm", PatientAge="006M", PatientSex="", ViewPosition="")
    xray(tmp_path / f"{uuid(3)}.dcm", PatientAge="148", SpecificCharacterSet="ISO_IR 9")
    xray(tmp_path / f"{uuid(4)}.dcm", PatientAge="", PatientSex="X")
    (tmp_path / f"{uuid(5)}.dcm").write_bytes((tmp_path / f"{uuid(0)}.dcm").read_bytes()[:200])
    touch(tmp_path, 6)
    touch(tmp_path, 7, suffix=".png")
    with warnings.catch_warnings(action="error"):  # pydicom warns of that character set, and quotes it
        source = rsna_pneumonia.read(tmp_path)
    scans = source.scans
    assert scans["age"].to_list()[:5] == [43, 58, 0.5, None, None]
    assert scans["sex"].to_list()[:5] == ["Female", "Male", None, "Female", None]
    assert scans["projection"].to_list()[:5] == ["PA", "AP", None, "PA", "PA"]
    assert scans.select("age", "sex", "projection").rows()[5:] == [(None, None, None)] * 3
    assert said(source, "1 ages are above 100 or none")


def test_images_without_labels_are_left_out(tmp_path: Path) -> None:
    kaggle(tmp_path)
    touch(tmp_path / "stage_2_test_images", 3, 90, 91)
    table(
        tmp_path,
        f"{uuid(90)},0.5 0 0 100 100",
        name="stage_2_sample_submission.csv",
        header="patientId,PredictionString",
    )
    source = rsna_pneumonia.read(tmp_path)
    assert len(source.scans) == 5
    assert not any("test" in Path(path).parent.name for path in source.scans["path"])
    assert said(source, "left stage_2_test_images out: 3 images without labels")
    (tmp_path / "stage_2_train_labels.csv").unlink()
    refused(tmp_path, DataError, "there is no stage_2_train_labels.csv")


def test_pictures_that_others_made(tmp_path: Path) -> None:
    table(tmp_path, none(0), box(1), none(2))
    touch(tmp_path / "png", 0, 1, suffix=".png")
    touch(tmp_path / "stage_2_train_images", 1)
    source = rsna_pneumonia.read(tmp_path)
    assert source.scans["id"].to_list() == [f"png/{uuid(0)}.png", f"stage_2_train_images/{uuid(1)}.dcm"]
    assert source.refused == [(uuid(2), "the image is not in this download")]
    assert said(source, "DICOM comes before PNG")
    assert said(source, "age, sex and projection of 2 images are not known")


def test_contradictions_in_the_table(tmp_path: Path) -> None:
    touch(tmp_path, 0, 1)
    where = "stage_2_train_labels.csv, row 2 below the header"
    table(tmp_path, none(0), f"{uuid(1)},,,,,1")
    refused(tmp_path, DataError, "the box and the Target contradict one another", where)
    table(tmp_path, none(0), box(1)[:-1] + "0")
    refused(tmp_path, DataError, "the box and the Target contradict one another", where)
    table(tmp_path, none(0), box(0))
    refused(tmp_path, DataError, "the rows of one image have two labels", where)
    table(tmp_path, none(0), none(1)[:-1] + "2")
    refused(tmp_path, DataError, "neither 1, 0, -1", where)
    table(tmp_path, none(0), ",,,,,0")
    refused(tmp_path, DataError, "the row names no image", where)
    table(tmp_path, f"{uuid(0)},1", header="patientId,class")
    refused(tmp_path, DataError, "no column 'Target'")


def test_labels_without_boxes(tmp_path: Path) -> None:
    table(tmp_path, f"{uuid(0)},1", f"{uuid(1)},0", header="patientId,Target")
    touch(tmp_path, 0, 1)
    assert rsna_pneumonia.read(tmp_path).scans["label:Pneumonia"].to_list() == [1, 0]


def classes(folder: Path, *names: tuple[int, str]) -> None:
    table(folder, *(f"{uuid(n)},{name}" for n, name in names), name=CLASSES, header="patientId,class")


def test_normal_is_a_finding_where_asked_for(tmp_path: Path) -> None:
    kaggle(tmp_path)
    refused(tmp_path, DataError, f"there is no {CLASSES}", findings=["Normal"])
    # A row per box here too, in another order, and not all of the images.
    classes(tmp_path, (3, "Lung Opacity"), (1, "No Lung Opacity / Not Normal"), (0, "Normal"), (3, "Lung Opacity"),
            (2, "Lung Opacity"), (88, "Normal"))  # fmt: skip
    source = rsna_pneumonia.read(tmp_path, findings=["normal", "Pneumonia"])
    assert source.findings == ["Normal", "Pneumonia"]
    assert source.scans["label:Normal"].to_list() == [1, 0, 0, 0, None]
    assert source.scans["label:Pneumonia"].to_list() == [0, 0, 1, 1, 0]
    # It is the label under another name, and so no metadata.
    assert rsna_pneumonia.read(tmp_path).scans.columns[6:] == ["label:Pneumonia", "age", "sex", "projection"]
    refused(tmp_path, UsageError, "there is no finding 'Edema'", findings=["Edema"])


def test_classes_that_contradict(tmp_path: Path) -> None:
    kaggle(tmp_path)
    for rows, what in (
        (((0, "Normal"), (2, "Normal")), "the class and the Target of stage_2_train_labels.csv contradict one another"),
        (((0, "Normal"), (1, "Lung Opacity")), "contradict one another"),
        (((0, "Normal"), (1, "Opacity")), "the class is none of Normal, No Lung Opacity / Not Normal, Lung Opacity"),
        (((0, "Normal"), (0, "No Lung Opacity / Not Normal")), "the rows of one image have two classes"),
    ):
        classes(tmp_path, *rows)
        refused(tmp_path, DataError, what, f"{CLASSES}, row 2 below the header", findings=["Normal"])


def test_prepared_by_patient_to_the_pixel(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    table(root, *(box(n) if n % 3 == 0 else none(n) for n in range(30)))
    frames = {uuid(n): xray(root / "stage_2_train_images" / f"{uuid(n)}.dcm", seed=n) for n in range(30)}
    mapped(root, {n: n // 3 for n in range(30)})
    code, _, err = run_here("prepare", "rsna-pneumonia", root, "-o", out, "--size", 64, "--workers", 0)
    assert code == 0, err
    manifest = pl.read_parquet(out / "manifest.parquet")
    (shard,) = [np.load(file) for file in out.rglob("*.npy")]
    for scan, pixels in zip(manifest["id"], shard, strict=True):
        # 8 bits without a window are shown as they are.
        with Image.open(io.BytesIO(frames[Path(scan).stem])) as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture))
    assert set(manifest["split"]) == {"train", "valid"}
    assert manifest.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
    assert manifest["patient"].n_unique() == 10


def test_a_download_cut_off_is_refused_by_its_images(
    tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    table(tmp_path, *(box(n) if n % 2 else none(n) for n in range(8)))
    for n in range(8):
        xray(tmp_path / f"{uuid(n)}.dcm", seed=n)
    broken = tmp_path / f"{uuid(3)}.dcm"
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out"
    code, _, err = run_here("prepare", "rsna-pneumonia", tmp_path, "-o", out, "--size", 16, "--workers", 0)
    assert code == 4, err
    assert pl.read_csv(out / "rejected.csv")["path"].to_list() == [f"{uuid(3)}.dcm"]
