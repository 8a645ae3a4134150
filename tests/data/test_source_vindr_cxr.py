"""VinDr-CXR: rows of several readers, in Kaggle's and PhysioNet's tables, and DICOM black on white or broken."""

import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from damcli.commands.prepare.reading import read as prepared
from damcli.data.images import Contract, read_scan
from damcli.data.sources.vindr_cxr import CHALLENGE, NOTHING, read
from damcli.data.store import Dataset
from damcli.errors import DamcliError, DataError, UsageError

KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
ANNOTATIONS = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"
NUMBER = {name: number for number, name in enumerate(CHALLENGE)}
# What each reader lists of each image: nothing at all is a row of "No finding".
ONE, TWO, THREE, FOUR, FIVE = (letter * 32 for letter in "1a2bc")
READINGS = {
    ONE: {"R9": ["Cardiomegaly"], "R10": ["Cardiomegaly", "Cardiomegaly"], "R8": []},
    TWO: {"R9": [], "R10": [], "R17": ["Nodule/Mass"]},
    THREE: {"R9": [], "R10": [], "R8": []},
    FOUR: {"R9": ["Nodule/Mass", "ILD"], "R10": ["Nodule/Mass"], "R8": ["Nodule/Mass"]},
    FIVE: {"R1": ["ILD"], "R2": []},  # a tie
}
FINDINGS = ["Cardiomegaly", "Nodule/Mass", NOTHING]


def boxes(readings: dict[str, dict[str, list[str]]], header: str = KAGGLE) -> str:
    """The rows of a table of boxes, those of an image not one after another."""
    rows = []
    for image, by in readings.items():
        for reader, listed in by.items():
            for number, finding in enumerate(listed or [NOTHING]):
                box = [""] * 4 if finding == NOTHING else [f"{900 + number}.0", "587", "1500", "900.5"]
                cells = {"image_id": image, "class_name": finding, "class_id": NUMBER.get(finding, 0), "rad_id": reader}
                cells |= dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
                rows.append(",".join(str(cells[name]) for name in header.split(",")))
    return "\n".join([header, *rows[::2], *rows[1::2]]) + "\n"


def picture(image: str) -> NDArray[np.uint16]:
    """A smooth picture of 12 bits, another for each image."""
    r, c = np.mgrid[:40, :48]
    turn = zlib.crc32(image.encode()) / 2**32 * 6
    return np.rint((np.sin(r / 9 + turn) * np.cos(c / 11) + 1) * 2047).astype(np.uint16)


def dicom(file: Path, image: str, inverted: bool, broken: str = "") -> None:
    """The same picture with either photometric interpretation; `broken` names what is missing of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "DX"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = 40, 48, 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    if broken != "PixelData":
        pixels = b"" if broken == "pixels" else (4095 - picture(image) if inverted else picture(image)).tobytes()
        dataset.PixelData = pixels
        dataset["PixelData"].VR = "OW"
    if broken == "TransferSyntaxUID":
        del meta.TransferSyntaxUID
        dataset.save_as(file, implicit_vr=False, little_endian=True)
        return
    dataset.save_as(file, enforce_file_format=True)


def images(root: Path, names: Iterable[str], folder: str = "train") -> None:
    for number, name in enumerate(names):
        dicom(root / folder / f"{name}.dicom", name, inverted=number % 2 == 1)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    root = tmp_path / "vinbigdata"
    images(root, READINGS)
    images(root, ["d" * 32, "e" * 32], "test")
    (root / "train.csv").write_text(boxes(READINGS))
    (root / "sample_submission.csv").write_text(f"image_id,PredictionString\n{'d' * 32},14 1 0 0 1 1\n")
    return root


def labels(source, finding: str) -> dict[str, float | None]:
    return {Path(path).stem: label for path, label in source.scans.select("path", f"label:{finding}").iter_rows()}


@pytest.mark.parametrize(
    ("rule", "cardiomegaly", "nodule", "nothing"),
    [
        ("any", [1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]),
        ("majority", [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 0, -1]),
        ("mean", [2 / 3, 0, 0, 0, 0], [0, 1 / 3, 0, 1, 0], [1 / 3, 2 / 3, 1, 0, 0.5]),
    ],
)
def test_kaggles_readers_by_each_rule(kaggle: Path, rule, cardiomegaly, nodule, nothing) -> None:
    source = read(kaggle, readers_rule=rule)
    assert source.findings == ["Cardiomegaly", "ILD", "Nodule/Mass", NOTHING]  # those of the challenge that are there
    for finding, expected in zip(FINDINGS, (cardiomegaly, nodule, nothing), strict=True):
        assert labels(source, finding) == dict(zip(READINGS, expected, strict=True))
    assert source.scans["id"].to_list()[0].startswith("train/")
    assert source.size == 320  # as of the other chest sets
    assert source.scans["patient"].null_count() == source.scans["split"].null_count() == len(READINGS)
    said = "\n".join(source.notes)
    assert f"train: 5 scans, each read by 2 or 3 of 6 readers, combined by {rule}; they disagree on 4" in said
    assert ("2 labels are ties: uncertain" in said) == (rule != "any")
    assert "no labels of test" in said
    assert "2 images without a label" in said
    assert "no patient is known" in said
    assert "leakage cannot be excluded" in said


def test_a_reader_who_lists_something_has_not_said_no_finding(kaggle: Path) -> None:
    table = (kaggle / "train.csv").read_text()
    (kaggle / "train.csv").write_text(table + f"{FOUR},no Finding,14,R10,,,,\n")
    source = read(kaggle)
    assert labels(source, NOTHING)[FOUR] == 0
    assert labels(source, "Nodule/Mass")[FOUR] == 1


def test_findings_by_name(kaggle: Path) -> None:
    assert read(kaggle, findings=["ild", "no finding"]).findings == ["ILD", NOTHING]
    with pytest.raises(UsageError, match="Cardiomegaly"):
        read(kaggle, findings=["Cardiomegly"])


def test_black_on_white_is_turned(kaggle: Path) -> None:
    """To the pixel: y = (x - (c - 0.5)) / (w - 1) + 0.5 (PS3.3 C.11.2.1.2.1), as 16 bits and then as 8."""
    contract = Contract(size=48, channels=1)
    for path in read(kaggle).scans["path"]:
        deep = np.rint(((picture(Path(path).stem) - (2048 - 0.5)) / (4096 - 1) + 0.5) * 65535)
        made = read_scan(Path(path), contract)
        np.testing.assert_array_equal(made[4:44], np.floor(deep / 257 + 0.5))
        assert not made[:4].any()
        assert not made[44:].any()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("TransferSyntaxUID", "the transfer syntax is missing: the file is broken"),
        ("PixelData", "the DICOM file has no pixel data"),
        ("pixels", "the pixel data is cut off or damaged"),
    ],
)
def test_downloads_that_are_broken_in_one_way_each(tmp_path: Path, missing: str, reason: str) -> None:
    contract = Contract(size=48, channels=1)
    dicom(tmp_path / "whole.dicom", ONE, inverted=False)
    assert read_scan(tmp_path / "whole.dicom", contract).any()
    dicom(tmp_path / "broken.dicom", ONE, inverted=False, broken=missing)
    with pytest.raises(DataError, match=reason):
        read_scan(tmp_path / "broken.dicom", contract)


@pytest.fixture
def physionet(tmp_path: Path) -> Path:
    """Both pairs of tables; diseases are in those of readings only, and test calls one of them otherwise."""
    root = tmp_path / "vindr-cxr" / "1.0.0"
    images(root, READINGS)
    tested = {"d" * 32: ["Cardiomegaly"], "e" * 32: []}
    images(root, tested, "test")
    (root / "annotations").mkdir()
    (root / "annotations" / "annotations_train.csv").write_text(boxes(READINGS, ANNOTATIONS))
    table = boxes({image: {"": listed} for image, listed in tested.items()}, ANNOTATIONS.replace("rad_id,", ""))
    (root / "annotations" / "annotations_test.csv").write_text(table)
    columns = ["Cardiomegaly", "ILD", "Nodule/Mass", "Pneumonia", "Other diseases", NOTHING]
    rows = [
        f"{image},{reader}," + ",".join(str(int(c in (listed or [NOTHING]) or c == "Other diseases")) for c in columns)
        for image, by in READINGS.items()
        for reader, listed in by.items()
    ]
    readings = "\n".join(["image_id,rad_id," + ",".join(columns), *rows])
    (root / "annotations" / "image_labels_train.csv").write_text(readings)
    consensus = f"image_id,{','.join(columns)}\n{'d' * 32},1,0,0,1,0,0\n{'e' * 32},,,,,,1\n"
    consensus = consensus.replace("Other diseases", "Other disease")
    (root / "annotations" / "image_labels_test.csv").write_text(consensus)
    return root


def test_physionets_readings_and_their_consensus(physionet: Path) -> None:
    source = read(physionet, findings=["Cardiomegaly", "Other diseases", "Pneumonia", NOTHING])
    assert labels(source, "Cardiomegaly") == dict(
        zip([*READINGS, "d" * 32, "e" * 32], [1, 0, 0, 0, 0, 1, 0], strict=True)
    )
    assert labels(source, "Other diseases") == dict.fromkeys(READINGS, 1) | {"d" * 32: 0, "e" * 32: 0}
    assert labels(source, "Pneumonia")["d" * 32] == 1
    # What the column says does not count where another finding is listed.
    assert labels(source, NOTHING) == dict.fromkeys(READINGS, 0) | {"d" * 32: 0, "e" * 32: 1}
    assert source.scans["split"].to_list() == [None] * 5 + ["test"] * 2
    assert "test: 2 scans, labelled once" in source.notes
    usual = read(physionet)
    assert usual.findings == ["Cardiomegaly", "ILD", "Nodule/Mass", NOTHING]
    assert "findings are the challenge's 4 of 6: name others with --findings" in usual.notes


def test_physionets_boxes_say_the_same_where_readings_are_not_there(physionet: Path) -> None:
    for file in physionet.glob("annotations/image_labels_*"):
        file.unlink()
    source = read(physionet, readers_rule="mean")
    assert labels(source, "Nodule/Mass") == dict(
        zip([*READINGS, "d" * 32, "e" * 32], [0, 1 / 3, 0, 1, 0, 0, 0], strict=True)
    )
    assert labels(source, NOTHING)["e" * 32] == 1
    assert source.scans["split"].to_list() == [None] * 5 + ["test"] * 2


def test_test_alone(physionet: Path) -> None:
    (physionet / "annotations" / "image_labels_train.csv").unlink()
    source = read(physionet)
    assert set(source.scans["split"]) == {"test"}
    (said,) = [note for note in source.notes if "annotations_train.csv" in note]
    assert (
        said
        == "left annotations_train.csv out, which has boxes and no readings: image_labels_train.csv would give train"
    )
    (physionet / "annotations" / "annotations_train.csv").unlink()
    assert "there are no labels of train: its images are left out" in read(physionet).notes


def test_train_without_its_readers_is_refused(kaggle: Path) -> None:
    """Rows of three readers, not told apart, would be one reader who lists what any of them does."""
    rows = [line.split(",") for line in (kaggle / "train.csv").read_text().splitlines()]
    (kaggle / "train.csv").write_text("\n".join(",".join(row[:3] + row[4:]) for row in rows))
    with pytest.raises(DataError, match="no column 'rad_id'"):
        read(kaggle)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (f"{ONE},,0,R9,1,1,2,2", "names no finding"),
        (f"{ONE},Cardiomegaly,3,,1,1,2,2", "names no reader"),
        (",Cardiomegaly,3,R9,1,1,2,2", "names no image"),
        (f"{ONE},Cardiomegaly,14,R9,1,1,2,2", "class 14"),
        (f"{ONE},No finding,3,R9,,,,", "class 14"),
    ],
)
def test_rows_that_say_nothing_or_contradict_themselves(kaggle: Path, row: str, what: str) -> None:
    with (kaggle / "train.csv").open("a") as table:
        table.write(row + "\n")
    with pytest.raises(DataError) as error:
        read(kaggle)
    assert re.search(what, str(error.value))
    assert "row 17 below the header" in str(error.value)


def test_tables_that_are_none(kaggle: Path, physionet: Path) -> None:
    readings = physionet / "annotations" / "image_labels_train.csv"
    text = readings.read_text()
    for broken, what in (
        (text + f"\n{ONE},R9,0,0,0,0,0,1", "this reader has read this scan before"),
        (text.replace(f"{ONE},R9,1", f"{ONE},R9,2"), "a label is neither"),
        (text.replace(f"{ONE},R9,1", f"{ONE},R9,-1"), "row 1 below"),
        (text.replace(f"{ONE},R9,1,0,0,0,1,0", f"{ONE},R9,,,,,,"), "this reading is blank"),
        (text.replace(NOTHING, "Normal"), "has no column 'No finding'"),
    ):
        readings.write_text(broken)
        with pytest.raises(DataError, match=what):
            read(physionet)
    (kaggle / "train.csv").write_text("study_id,label\n1,0\n")
    with pytest.raises(DataError, match="no column"):
        read(kaggle)
    (kaggle / "train.csv").unlink()
    with pytest.raises(DataError, match=r"there is no image_labels_train.csv or .* or train.csv"):
        read(kaggle)
    with pytest.raises(DamcliError):
        read(kaggle / "nowhere")


def test_an_image_that_is_in_train_and_test(physionet: Path) -> None:
    table = physionet / "annotations" / "image_labels_test.csv"
    table.write_text(table.read_text().replace("e" * 32, ONE))
    with pytest.raises(DataError, match="more than once"):
        read(physionet)


def test_prepared_by_the_mean_of_readers_with_broken_downloads_rejected(tmp_path: Path, run_here, monkeypatch) -> None:
    """Targets are shares; figures and counts are those of what most readers say, ties left out."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{number:032x}" for number in range(24)]
    readings = {
        name: {f"R{reader}": ["ILD"] if reader < ill else [] for reader in range(4 if ill == 2 else 3)}
        for name, ill in zip(names, np.resize([0, 3, 1, 2, 0, 3], 24), strict=True)
    }
    # A share of 2 is 2 of 4: a tie.
    images(tmp_path / "cxr", names)
    dicom(tmp_path / "cxr" / "train" / f"{names[0]}.dicom", names[0], inverted=False, broken="PixelData")
    (tmp_path / "cxr" / "train.csv").write_text(boxes(readings))
    arguments = ("vindr-cxr", "cxr", "--findings", "ILD", "--size", "32", "--workers", "0")
    for rule in ("mean", "majority"):
        code, _, err = run_here("prepare", *arguments, "-o", rule, "--readers-rule", rule)
        assert code == 4, err  # some scan was refused
    rejected = pl.read_csv("mean/rejected.csv")
    assert rejected["path"].to_list() == [f"train/{names[0]}.dicom"]
    assert "no pixel data" in rejected["reason"][0]
    mean, majority = Dataset.open(Path("mean")), Dataset.open(Path("majority"))
    rows = np.arange(23)
    shares = [sum("ILD" in listed for listed in readings[Path(i).stem].values()) / len(readings[Path(i).stem])
              for i in mean.ids(rows)]  # fmt: skip
    np.testing.assert_array_equal(mean.targets(rows)[:, 0], np.array(shares, np.float32))
    truth = np.array([np.nan if share == 0.5 else share > 0.5 for share in shares])
    np.testing.assert_array_equal(mean.truth(rows)[:, 0], truth)
    np.testing.assert_array_equal(majority.truth(rows)[:, 0], truth)
    assert mean.uncertain(rows)[:, 0].tolist() == majority.uncertain(rows)[:, 0].tolist() == np.isnan(truth).tolist()
    assert mean.info.counts == majority.info.counts
    assert mean.info.splits == majority.info.splits
    assert sum(counts["ILD"].uncertain for counts in mean.info.counts.values()) == 4
    pl.DataFrame({"path": mean.ids(rows), "ILD": rng.random(23)}).write_csv("scores.csv")
    outs = []
    for name in ("mean", "majority"):
        code, out, err = run_here("evaluate", "scores.csv", name, "--split", "train", "--json", "-o", f"{name}-figures",
                                  "--draws", "200")  # fmt: skip
        assert code == 0, err
        outs.append(json.loads(out)["findings"]["ILD"])
    assert outs[0] == outs[1]


def test_by_the_command(kaggle: Path) -> None:
    source = prepared("vindr-cxr", kaggle, readers_rule="any", findings=["ILD"])
    (said,) = [note for note in source.notes if note.startswith("no official split")]
    assert "single scans, since no patient is known and leaks cannot be excluded" in said
    assert "whole patients" not in said
    assert set(source.scans["split"]) == {"train", "valid"}
    assert labels(source, "ILD") == dict(zip(READINGS, [0, 0, 0, 1, 1], strict=True))
