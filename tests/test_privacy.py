"""No identifier of a header gets out: scans with a planted text wherever there can be one, and a search of all written.

What is searched is everything: stdout and stderr down to those of the processes that decode, tables, names of files,
the journal of a run that was cut off, heat maps, datasets. The planted texts are those that a value of each kind can
have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ComprehensiveSRStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from damcli.cli import main
from damcli.dicom import privacy
from tests.data.test_overlays import chunks

SIDE = 64
SECRET = "a secret for this test"
PATIENT, STUDY = "ZQPLANT-0815", "1.2.3.86420975.1"
# By the kind of value (PS3.5, table 6.2-1) what is planted; in each stands one of the marks.
MARKS = ("zqplant", "86420975", "86.420975", "19340217", "1934-02-17", "031415.926535", "093y")
BY_KIND = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"), "ZQPLANT"),
    **{"PN": "Zqplant^Anna=Zqplant", "UI": "1.2.3.86420975", "DS": "86.420975", "IS": "86420975"},
    **{"DA": "19340217", "TM": "031415.926535", "DT": "19340217031415.926535", "AS": "093Y"},
}
PATHS = ("whole", "notes", "more.zip", ".dcm", ".pgm")  # of the names of the files
# Elements that decide how the pixels are shown: in `spoiled` they are planted one by one.
SHOWN = (
    "BurnedInAnnotation", "ImagerPixelSpacing", "NumberOfFrames", "PhotometricInterpretation", "PixelAspectRatio",
    "PixelSpacing", "PresentationIntentType", "RescaleIntercept", "RescaleSlope", "SOPClassUID", "SpecificCharacterSet",
    "VOILUTFunction", "WindowCenter", "WindowWidth",
)  # fmt: skip


def image(number: int) -> Dataset:
    """A radiograph, with identifiers where every one has them."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = f"{BY_KIND['UI']}.2.{number}"
    made.file_meta.SourceApplicationEntityTitle = "ZQPLANT"
    made.preamble = b"ZQPLANT".ljust(128)
    made.PatientName, made.PatientID, made.StudyInstanceUID = BY_KIND["PN"], PATIENT, STUDY
    made.PatientBirthDate, made.PatientAge, made.AccessionNumber = BY_KIND["DA"], BY_KIND["AS"], "ZQPLANT"
    pixels = np.random.default_rng(number).integers(0, 4096, (SIDE, SIDE), np.uint16)
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = SIDE, SIDE, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    return made


def everywhere(made: Dataset) -> Dataset:
    """The image with a planted text in every element of the standard that holds one, in items and private ones too."""
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
        if kind in BY_KIND and keyword not in SHOWN and Tag(tag) not in made and Tag(tag).group > 2:
            made.add(DataElement(tag, kind, BY_KIND[kind], validation_mode=pydicom.config.IGNORE))
    table = Dataset()
    table.LUTDescriptor, table.LUTExplanation, table.LUTData = [4096, 0, 16], "ZQPLANT", bytes(range(256)) * 32
    table["LUTData"].VR = "OW"
    made.VOILUTSequence = Sequence([table])
    item = Dataset()
    item.PatientID, item.IssuerOfPatientID = "ZQPLANT", "ZQPLANT"
    made.OtherPatientIDsSequence = made.RequestAttributesSequence = Sequence([item])
    block = made.private_block(0x0009, "ZQPLANT", create=True)
    block.add_new(1, "LO", "ZQPLANT")
    block.add_new(2, "UN", b"ZQPLANT ")
    made.DataSetTrailingPadding = b"ZQPLANT "
    return made


def spoiled() -> Iterator[tuple[str, Dataset]]:
    """Images that cannot be shown, or not as they should, with the planted text in the very element in the way."""
    for number, keyword in enumerate((*SHOWN, "PatientBirthDate", "StudyInstanceUID", "PatientID")):
        made = image(100 + number)
        made[keyword] = DataElement(keyword, "LO", "ZQPLANT", validation_mode=pydicom.config.IGNORE)
        # As its own kind, so that whoever reads it takes it for a number or a date.
        made[keyword].VR = pydicom.datadict.dictionary_VR(keyword)
        yield keyword, made
    for keyword in ("Rows", "BitsAllocated", "PixelData"):
        made = image(200)
        del made[keyword]
        yield f"no{keyword}", made
    made = image(201)
    made.file_meta.TransferSyntaxUID = f"{BY_KIND['UI']}.9"
    yield "syntax", made
    made = image(202)
    made.PixelData = made.PixelData[:100]
    yield "cut", made
    report = image(203)
    for keyword in ("PixelData", "Rows", "Columns"):
        del report[keyword]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    yield "report", report


def save(made: Dataset, file: Path) -> None:
    with pydicom.config.disable_value_validation(), warnings.catch_warnings(action="ignore"):
        made.save_as(file, implicit_vr=False, little_endian=True, force_encoding=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted scans; none of their names says anything."""
    folder = tmp_path_factory.mktemp("planted") / "scans"
    folder.mkdir()
    for number in range(2):
        save(everywhere(image(number)), folder / f"whole{number}.dcm")
    for name, made in spoiled():
        save(made, folder / f"{name}.dcm")
    whole = (folder / "whole0.dcm").read_bytes()
    for cut in (200, 1000, len(whole) // 2):
        (folder / f"cut{cut}.dcm").write_bytes(whole[:cut])
    pixels = Image.fromarray(np.random.default_rng(9).integers(0, 256, (SIDE, SIDE), np.uint8))
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "ZQPLANT")
    pixels.save(folder / "text.png", pnginfo=text)
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = "ZQPLANT"
    pixels.save(folder / "exif.jpg", exif=exif, comment=b"ZQPLANT")
    pixels.save(folder / "described.tif", description="ZQPLANT")
    (folder / "comment.pgm").write_bytes(b"P5 # ZQPLANT\n64 ZQPLANT 255\n" + bytes(64 * 64))
    (folder / "cut.png").write_bytes((folder / "text.png").read_bytes()[:200])
    (folder / "cut.jpg").write_bytes((folder / "exif.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("ZQPLANT, born 1934-02-17\n")
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.comment = b"ZQPLANT"
        archive.write(folder / "whole0.dcm", "whole.dcm")
        archive.write(folder / "syntax.dcm", "syntax.dcm")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model written by hand that gives maps, and knows what the scans it was made on are like."""
    from onnx import TensorProto, helper, numpy_helper

    from damcli.bundle import container
    from damcli.bundle.schema import CAMS, INPUT, OUTPUT, Cams, MemberInfo, ModelInfo, Parity
    from damcli.data.images import Contract
    from damcli.metrics.drift import Reference, Sample, pixel_statistics

    names = ("Edema", "Fracture")
    constants = {"weight": np.array([[[[0.01]]], [[[-0.01]]]], np.float32), "flat": np.array([-1, 2])}
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["coarse"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Conv", ["coarse", "weight"], [CAMS]),
        helper.make_node("GlobalAveragePool", [CAMS], ["mean"]),
        helper.make_node("Reshape", ["mean", "flat"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [OUTPUT]),
    ]
    port, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "toy",
        [port(INPUT, TensorProto.UINT8, ["N", SIDE, SIDE, 1])],
        [port(OUTPUT, floats, ["N", 2]), port(CAMS, floats, ["N", 2, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    member = MemberInfo(
        run="run-0", recipe="toy", backbone="toy", loss="ce", seed=0, dataset="d", weights_sha256="a", findings=names,
        size=SIDE,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE), np.uint8)
    reference = Reference(
        scans=6,
        scores={name: Sample.of(np.linspace(0, 1, 6)) for name in names},
        pixels={name: Sample.of(values) for name, values in pixel_statistics(images).items()},
    )
    info = ModelInfo(
        damcli="0.1", created="2026-01-01T00:00:00+00:00", findings=names, contract=Contract(size=SIDE, channels=1),
        members=(member,), parity=Parity(scans=6, max_difference=0, tolerance=1e-4, auroc_difference=None),
        cams=Cams(height=4, width=4), reference=reference,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    opset = helper.make_opsetid("", 20)
    container.write(path, helper.make_model(graph, opset_imports=[opset], ir_version=10), info)
    return path


@pytest.fixture
def damcli(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Returns `damcli(*arguments)`: the exit code, stdout and stderr, also what its processes wrote to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAMCLI_SECRET", SECRET)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def searched(*said: str, folder: Path | None = None, marks: tuple[str, ...] = MARKS) -> None:
    """Fail where a mark stands in what was said, or below a folder: in names, in files, in the cells of tables."""
    texts = {f"said {number}": text for number, text in enumerate(said)}
    for path in sorted(folder.rglob("*")) if folder else ():
        name = path.relative_to(folder or Path()).as_posix()
        texts[f"name of {name}"] = name
        if path.is_file():
            texts[name] = path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                texts[f"cells of {name}"] = str(pl.read_parquet(path).to_dicts())
            if path.suffix == ".png":
                assert set(chunks(path.read_bytes())) == {"IHDR", "IDAT", "IEND"}
    found = [f"{mark} in {place}" for place, text in texts.items() for mark in marks if mark in text.lower()]
    assert not found, found


def test_what_is_planted_can_be_found(scans: Path) -> None:
    found = (scans / "whole0.dcm").read_bytes().decode("latin-1").lower()
    assert [mark for mark in MARKS if mark not in found] == ["1934-02-17"], "dates are not written so in DICOM"
    assert found.count("zqplant") > 1000
    with pytest.raises(AssertionError, match="zqplant in name of ZQPLANT.dcm"):
        (scans.parent / "names").mkdir()
        (scans.parent / "names" / "ZQPLANT.dcm").touch()
        searched(folder=scans.parent / "names")


@pytest.mark.parametrize(
    "options",
    [
        ["--by", "study", "-v", "--heatmaps", "maps", "-o", "scores.csv"],
        ["--by", "patient", "--json", "-o", "scores.parquet", "--metadata", "whose.csv"],
        ["--hide-paths", "-o", "-", "--export", "jsonl", "--heatmaps", "maps"],
    ],
    ids=["study", "patient", "stdout"],
)
def test_predict(options: list[str], scans: Path, model: Path, damcli: Callable, tmp_path: Path) -> None:
    whose = tmp_path / "whose.csv"
    whose.write_text("path,patient,study\nwhole0.dcm,ZQPLANT,ZQPLANT\nnobody.dcm,86420975,86420975\n")
    code, out, err = damcli("predict", scans, "--model", model, "--workers", 1, "--device", "cpu", *options)
    whose.unlink()
    assert code == 4, err
    searched(out, err, folder=tmp_path)
    secret = SECRET.encode()
    written = out + "".join(str(path.read_bytes()) for path in tmp_path.glob("scores*"))
    if "study" in options:
        assert privacy.pseudonym(secret, "study", STUDY) in written
        assert len(list((tmp_path / "maps").rglob("*.png"))) >= 2 * 5
    if "--hide-paths" in options:
        searched(out, err, folder=tmp_path, marks=PATHS)
        assert all(json.loads(line)["path"] for line in out.splitlines())


def test_predict_without_processes_of_its_own(scans: Path, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "damcli", "predict", scans, "--model", model, "--workers", "0", "-v", "-o", "-"]
    done = subprocess.run(
        [*map(str, command), "--by", "study"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "default", "DAMCLI_SECRET": SECRET},
        capture_output=True,
    )
    assert done.returncode == 4, done.stderr
    searched(done.stdout.decode(), done.stderr.decode(), folder=tmp_path)


def test_the_journal_of_a_run_that_was_cut_off(
    scans: Path, model: Path, damcli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("damcli.bundle.table.write", cut_off)
        code, out, err = damcli("predict", scans, "--model", model, "--workers", 1, "--by", "study", "--hide-paths")
    assert code == 130
    journal = next(path for path in tmp_path.iterdir() if "journal" in path.name)
    assert privacy.pseudonym(SECRET.encode(), "study", STUDY) in journal.read_text()
    assert journal.stat().st_mode & 0o077 == 0
    searched(out, err, folder=tmp_path)
    searched(out, err, folder=tmp_path, marks=PATHS)


def test_ids_that_are_kept_stand_in_their_columns_alone(
    scans: Path, model: Path, damcli: Callable, tmp_path: Path
) -> None:
    _, out, err = damcli("predict", scans, "--model", model, "--workers", 1, "--by", "study", "--keep-ids")
    searched(out, err)
    tables = [pl.read_csv(path, infer_schema=False) for path in sorted(tmp_path.glob("scores*.csv"))]
    assert len(tables) == 2
    for table in tables:
        ids = [name for name in ("patient", "study") if name in table.columns]
        searched(table.drop(ids).write_csv())
        kept = {cell for name in ids for cell in table[name] if cell and any(mark in cell.lower() for mark in MARKS)}
        # Of `spoiled`, one has ZQPLANT for its patient and one for its study.
        assert {part for cell in kept for part in cell.split("/")} == {PATIENT, STUDY, "ZQPLANT"}


def test_drift(scans: Path, model: Path, damcli: Callable, tmp_path: Path) -> None:
    code, out, err = damcli("evaluate", model, "--drift", scans, "-o", "told", "-v")
    assert code == 4, err
    searched(out, err, folder=tmp_path)


def test_prepare(scans: Path, damcli: Callable, tmp_path: Path) -> None:
    names = sorted(path.name for path in scans.iterdir())
    rows = [f"{name},p{number},{number % 2}" for number, name in enumerate(names)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,patient,sick", *rows]))
    options = [
        "--images",
        scans,
        "--label-columns",
        "sick",
        "--patient-column",
        "patient",
        "--size",
        32,
        "--workers",
        1,
    ]
    code, out, err = damcli(
        "prepare", "table", "scans.csv", *options, "--max-rejected", 1, "--allow-leaks", "-o", "made"
    )
    assert code == 4, err
    searched(out, err, folder=tmp_path)
