"""RSNA's screening mammograms as Kaggle has them (FORMATS section 11.1), to the pixels that a dataset holds."""

import struct
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from damcli.data import audit, metadata
from damcli.data.sources import Source, rsna_mammography
from damcli.errors import DamcliError, DataError, UsageError

HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
    "difficult_negative_case"
)
ABOUT = ["age", "implant", "density", "site", "machine"]


def row(
    patient: str,
    image: object,
    side: str = "L",
    view: str = "CC",
    cancer: object = 0,
    age: str = "61.0",
    about: str = "0,,29",
) -> str:
    found = "1,1,0" if cancer == 1 else "0,0,"
    return f"2,{patient},{image},{side},{view},{age},{cancer},{found},{about},False"


def table(folder: Path, *rows: str, name: str = "train.csv", header: str = HEADER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def touch(*files: Path) -> None:
    """What lies there is not looked at by the reader."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def kaggle(folder: Path) -> Path:
    """Three breasts of two patients, the first of which has cancer in one; and what is to be scored."""
    table(
        folder,
        row("10006", 462822612, "L", "CC"),
        row("10006", 1459541791, "L", "MLO"),
        row("10006", 1864590858, "R", "MLO", 1, about="1,B,29"),
        row("10011", 220375232, "L", "CC", age="", about="0,D,48"),
    )
    for name in ("10006/462822612", "10006/1459541791", "10006/1864590858", "10011/220375232"):
        touch(folder / "train_images" / f"{name}.dcm")
    return folder


def refused(folder: Path, kind: type[DamcliError], *said: str) -> None:
    with pytest.raises(kind) as caught:
        rsna_mammography.read(folder)
    for text in said:
        assert text in str(caught.value)


def said(source: Source, text: str) -> bool:
    return any(text in note for note in source.notes)


def test_kaggles_tree(tmp_path: Path) -> None:
    source = rsna_mammography.read(kaggle(tmp_path))
    scans = source.scans
    assert scans["id"].to_list() == [
        "train_images/10006/462822612.dcm", "train_images/10006/1459541791.dcm", "train_images/10006/1864590858.dcm",
        "train_images/10011/220375232.dcm",
    ]  # fmt: skip
    assert scans["path"][3] == str(tmp_path / "train_images" / "10011" / "220375232.dcm")
    assert scans["patient"].to_list() == ["10006", "10006", "10006", "10011"]
    assert scans["study"].to_list() == ["10006_L", "10006_L", "10006_R", "10011_L"]
    assert scans["view"].to_list() == ["cc", "mlo", "mlo", "cc"]
    assert scans["label:cancer"].to_list() == [0, 0, 1, 0]
    assert scans["age"].to_list() == [61, 61, 61, None]
    assert scans["implant"].to_list() == ["0", "0", "1", "0"]
    assert scans["density"].to_list() == [None, None, "B", "D"]
    assert scans["machine"].to_list() == ["29", "29", "29", "48"]
    assert scans["site"].to_list() == ["2"] * 4
    assert scans["split"].null_count() == 4
    assert (source.name, source.findings, source.refused) == ("rsna-mammography", ["cancer"], [])
    assert said(source, "4 films of 3 breasts")


def test_what_tells_the_label_is_no_metadata_and_what_is_may_be_used(tmp_path: Path) -> None:
    rows = [row(f"{n}", n, "L", "CC", n % 2, age=f"{40 + n % 3}", about=f"0,A,{20 + n % 3}") for n in range(40)]
    table(tmp_path, *(text[:-5] + str(n % 3 == 0) for n, text in enumerate(rows)))
    touch(*(tmp_path / f"{n}" / f"{n}.dcm" for n in range(40)))
    source = rsna_mammography.read(tmp_path)
    scans = source.scans.with_columns(split=pl.lit("train"))
    assert scans.columns[7:] == ABOUT
    assert (
        metadata.choose(
            ABOUT,
            scans,
        )
        == ABOUT
    )
    assert metadata.leaks(scans, ABOUT, ["cancer"]) == {}
    assert [concern.text for concern in audit.of_table(scans, ["cancer"])] == []
    assert said(source, "biopsy, invasive, BIRADS, difficult_negative_case")


def test_films_of_one_breast_with_two_labels(tmp_path: Path) -> None:
    touch(*(tmp_path / "7" / f"{n}.dcm" for n in range(3)))
    table(tmp_path, row("7", 0, "L", cancer=1), row("7", 1, "R", cancer=0), row("7", 2, "L", cancer=0))
    refused(tmp_path, DataError, "the films of one breast have two labels", "train.csv, row 3 below the header")
    table(tmp_path, row("7", 0, "L", cancer=1), row("7", 1, "R", cancer=0), row("7", 2, "L", cancer=""))
    refused(tmp_path, DataError, "the films of one breast have two labels", "row 3")
    table(tmp_path, row("7", 0, "L", cancer=""), row("7", 1, "R", cancer=1), row("7", 2, "L", cancer=""))
    assert rsna_mammography.read(tmp_path).scans["label:cancer"].to_list() == [None, 1, None]


@pytest.mark.parametrize(
    ("bad", "column"),
    [
        (row("", 1), "patient_id"), (row("7.0", 1), "patient_id"), (row("../7", 1), "patient_id"),
        (row("7", ""), "image_id"), (row("7", 1, "B"), "laterality"), (row("7", 1, ""), "laterality"),
        (row("7", 1, cancer=2), "cancer"), (row("7", 1, cancer="yes"), "cancer"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(tmp_path: Path, bad: str, column: str) -> None:
    touch(tmp_path / "6" / "1.dcm", tmp_path / "7" / "1.dcm")
    table(tmp_path, row("6", 1), bad)
    refused(tmp_path, DataError, f"train.csv, row 2 below the header, column '{column}'")


def test_ids_are_text(tmp_path: Path) -> None:
    """Zeros in front, and more digits than a float holds."""
    patients = ["0106", "106", "90071992547409921", "90071992547409922"]
    table(tmp_path, *(row(patient, 1, cancer=n % 2) for n, patient in enumerate(patients)))
    touch(*(tmp_path / patient / "1.dcm" for patient in patients))
    assert rsna_mammography.read(tmp_path).scans["patient"].to_list() == patients


def test_ages_that_are_none(tmp_path: Path) -> None:
    table(tmp_path, *(row(str(n), n, age=age) for n, age in enumerate(["26", "89.0", "", "nan", "411", "old"])))
    touch(*(tmp_path / f"{n}" / f"{n}.dcm" for n in range(6)))
    source = rsna_mammography.read(tmp_path)
    assert source.scans["age"].to_list() == [26, 89, None, None, None, None]
    assert said(source, "2 ages are above 100 or none")


def test_films_without_labels_are_left_out(tmp_path: Path) -> None:
    kaggle(tmp_path)
    few = "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id"
    table(tmp_path, "2,10008,736471439,L,MLO,81,0,21,10008_L", name="test.csv", header=few)
    source = rsna_mammography.read(tmp_path)
    assert said(source, "test.csv out: it has no labels")
    # A film of the same name as one of train's is another one all the same.
    touch(tmp_path / "test_images" / "10008" / "736471439.dcm", tmp_path / "test_images" / "10011" / "220375232.dcm")
    source = rsna_mammography.read(tmp_path)
    assert len(source.scans) == 4
    assert not any("test_images" in path for path in source.scans["path"])
    assert said(source, "left test_images out: 2 films without labels")
    assert not said(source, "more than once")
    (tmp_path / "train.csv").unlink()
    refused(tmp_path, DataError, "there is no train.csv")


@pytest.mark.parametrize("form", ["{0}_{1}.png", "images_512/{0}/{1}.png", "{0}/{0}_{1}.PNG", "a/b/{0}_{1}.jpg"])
def test_pictures_that_others_made(tmp_path: Path, form: str) -> None:
    table(tmp_path, row("10006", 462822612), row("10006", 1459541791, "R", cancer=1), row("10011", 462822613))
    touch(*(tmp_path / form.format(*names) for names in (("10006", 462822612), ("10006", 1459541791))))
    touch(tmp_path / "10006" / "462822612_mask.png", tmp_path / "sample_462822613.png")
    source = rsna_mammography.read(tmp_path)
    assert source.scans["id"].to_list() == [form.format("10006", 462822612), form.format("10006", 1459541791)]
    assert source.scans["label:cancer"].to_list() == [0, 1]
    assert source.refused == [("10011/462822613", "the image is not in this download")]
    assert said(source, "2 images are pictures that were made of the DICOM files")


def test_dicom_comes_before_what_was_made_of_it(tmp_path: Path) -> None:
    kaggle(tmp_path)
    touch(tmp_path / "a" / "10006_462822612.png", tmp_path / "a" / "10011_220375232.jpg")
    (tmp_path / "train_images" / "10011" / "220375232.dcm").unlink()
    source = rsna_mammography.read(tmp_path)
    assert source.scans["id"][0] == "train_images/10006/462822612.dcm"
    assert source.scans["id"][3] == "a/10011_220375232.jpg"
    assert said(source, "1 images are there more than once: DICOM comes before PNG")
    assert said(source, "1 images are pictures")


def test_a_table_without_what_is_only_metadata(tmp_path: Path) -> None:
    table(tmp_path, "5,6,R,1", header="patient_id,image_id,laterality,cancer")
    touch(tmp_path / "5_6.png")
    source = rsna_mammography.read(tmp_path)
    assert source.scans.columns[6:] == ["label:cancer"]
    assert source.scans["view"].to_list() == [None]
    assert not said(source, "biopsy")
    table(tmp_path, "5,6,1", header="patient_id,image_id,cancer")
    refused(tmp_path, DataError, "no column 'laterality'")


def test_folders_that_hold_none(tmp_path: Path) -> None:
    refused(tmp_path / "absent", UsageError, "no such folder")
    refused(tmp_path, DataError, "there is no train.csv")
    table(tmp_path, row("5", 6))
    refused(tmp_path, DataError, "none of their images")
    table(tmp_path, row("5", 6), row("5", 6))
    touch(tmp_path / "5" / "6.dcm")
    refused(tmp_path, DataError, "more than once")


MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"  # for presentation
SHAPE = (64, 48)
BITS = 12


def stored(seed: int) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 2**BITS, SHAPE).astype(np.uint16)


def film(file: Path, pixels: NDArray[np.uint16], syntax: str, photometric: str, **elements: object) -> None:
    """Write a mammogram, compressed by OpenJPEG or GDCM, as the set's files are."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = MAMMOGRAM, "2.25.7"
    image.PatientID, image.Modality = file.parent.name, "MG"
    image.Rows, image.Columns, image.SamplesPerPixel = *pixels.shape, 1
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, BITS, BITS - 1, 0
    image.PhotometricInterpretation = photometric
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW"
    file.parent.mkdir(parents=True, exist_ok=True)
    if syntax != ExplicitVRLittleEndian:
        image.save_as(file, enforce_file_format=True)
        frame = jp2(pixels) if syntax == JPEG2000Lossless else lossless_jpeg(file)
        image.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
        image["PixelData"].VR = "OB"
        image.file_meta.TransferSyntaxUID = syntax
    image.save_as(file, enforce_file_format=True)


def jp2(pixels: NDArray[np.uint16]) -> bytes:
    """A JP2 file, as the set's fragments are: not a bare codestream."""
    frame = encode_array(pixels, BITS, 2, codec_format=1)
    assert frame.startswith(bytes.fromhex("0000000c6a502020"))
    return frame


def lossless_jpeg(file: Path) -> bytes:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    frame = next(generate_frames(dcmread(file).PixelData, number_of_frames=1))
    at = frame.index(b"\xff\xda")
    assert b"\xff\xc3" in frame[:at]  # SOF3: lossless
    assert struct.unpack_from(">B", frame, at + 7) == (1,)  # selection value
    return frame


def shown(pixels: NDArray[np.uint16], function: str, center: float, width: float, inverted: bool) -> NDArray[np.uint8]:
    """The formulas of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, padded to the square that is prepared."""
    x = pixels.astype(np.float64)
    if function == "SIGMOID":
        y = 1 / (1 + np.exp(-4 * (x - center) / width))
    else:
        y = np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    grey = np.rint(65535 * y)
    grey = 65535 - grey if inverted else grey
    whole = np.zeros((64, 64), np.uint8)
    whole[:, 8:56] = (grey + 128) // 257
    return whole


FILMS = [
    (JPEG2000Lossless, "MONOCHROME1", "SIGMOID", 2000, 1600),
    (JPEG2000Lossless, "MONOCHROME2", "LINEAR", 2047, 4096),
    (JPEGLosslessSV1, "MONOCHROME2", "SIGMOID", 2400, 900),
    (JPEGLosslessSV1, "MONOCHROME1", "LINEAR", 1500, 2000),
    (ExplicitVRLittleEndian, "MONOCHROME1", "SIGMOID", 2000, 1600),
]


def test_prepared_to_the_pixel(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    rows, expected = [], {}
    for n in range(20):
        syntax, photometric, function, center, width = FILMS[n % len(FILMS)]
        patient, side = str(10000 + n // 4), "LR"[n // 2 % 2]
        rows.append(row(patient, n, side, cancer=n // 2 % 2))
        pixels = stored(n)
        several = n % 2 == 1  # windows, of which the first counts
        window = {"WindowCenter": [center, 100][: 1 + several], "WindowWidth": [width, 50][: 1 + several]}
        if n != 1:  # which says LINEAR by saying nothing
            window["VOILUTFunction"] = function
        name = f"train_images/{patient}/{n}.dcm"
        film(root / name, pixels, syntax, photometric, **window)
        expected[name] = shown(pixels, function, center, width, photometric == "MONOCHROME1")
        if function == "SIGMOID":  # which a line is not: the test would see it
            line = shown(pixels, "LINEAR", center, width, photometric == "MONOCHROME1")
            assert np.abs(expected[name].astype(int) - line).max() > 20
    table(root, *rows)
    code, _, err = run_here("prepare", "rsna-mammography", root, "-o", out, "--size", 64, "--workers", 0)
    assert code == 0, err
    manifest = pl.read_parquet(out / "manifest.parquet")
    (shard,) = [np.load(file) for file in out.rglob("*.npy")]
    assert len(manifest) == 20
    for scan, made in zip(manifest.rows(named=True), shard, strict=True):
        np.testing.assert_array_equal(made, expected[scan["id"]], scan["id"])
        assert ("windows" in (scan["remark"] or "")) == (int(Path(scan["id"]).stem) % 2 == 1)
    assert set(manifest["split"]) == {"train", "valid"}
    for unit in ("patient", "study"):
        assert manifest.group_by(unit).agg(pl.col("split").n_unique())["split"].max() == 1
    assert manifest["study"].n_unique() == 10


def test_pictures_are_prepared_as_they_are(tmp_path: Path, run_here: Callable[..., tuple[int, str, str]]) -> None:
    grey = {n: np.random.default_rng(n).integers(0, 256, (32, 32)).astype(np.uint8) for n in range(8)}
    for n, pixels in grey.items():
        Image.fromarray(pixels).save(tmp_path / f"{n}_{n}.png")
    table(tmp_path, *(row(str(n), n, cancer=n % 2) for n in grey))
    out = tmp_path / "out"
    code, _, err = run_here("prepare", "rsna-mammography", tmp_path, "-o", out, "--size", 32, "--workers", 0)
    assert code == 0, err
    assert "made of the DICOM files" in err
    manifest = pl.read_parquet(out / "manifest.parquet")
    (shard,) = [np.load(file) for file in out.rglob("*.npy")]
    for scan, pixels in zip(manifest["id"], shard, strict=True):
        np.testing.assert_array_equal(pixels, grey[int(scan[0])])
