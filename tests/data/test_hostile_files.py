"""Files that are broken, hostile or odd: one line of `rejected.csv` each, no crash, no memory without end."""

import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from damcli.commands.prepare import prepare, read
from damcli.data.decoding import MEMORY_LIMIT, attempt
from damcli.data.images import Contract
from damcli.data.sources import chexpert
from damcli.data.workers import decode
from damcli.errors import DamcliError

SMALL = Contract(size=32, channels=1)


def table(folder: Path, names: list[str]) -> Path:
    text = "path,patient,sick\n" + "".join(f'"{name}",p{n},{n % 2}\n' for n, name in enumerate(names))
    (folder / "scans.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / "scans.csv"


def dicom(file: Path, rows: int, columns: int, frames: int | None = None, data: bytes = b"\0\0") -> Path:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation, image.PixelData = 15, 0, data
    if frames:
        image.NumberOfFrames = frames
    image.save_as(file, enforce_file_format=True)
    return file


def bomb(file: Path) -> Path:
    """A PNG of 50 KB that would unpack to 10 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(50_000_000))))
    return file


def test_every_hostile_file_is_one_line_of_rejected_csv(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    good = [f"good{n}.png" for n in range(8)]
    rng = np.random.default_rng(0)
    for name in good:
        Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).save(scans / name)
    (scans / "empty.dcm").write_bytes(b"")
    dicom(scans / "claims.dcm", 65535, 65535, 1000)
    dicom(scans / "frames.dcm", 4, 4, 3, bytes(96))
    bomb(scans / "bomb.png")
    (scans / "cut.png").write_bytes((scans / good[0]).read_bytes()[:200])
    os.mkfifo(scans / "fifo.dcm")
    (scans / "loop").symlink_to(scans / "loop")
    (scans / "folder.png").mkdir()
    (tmp_path / "secret.png").write_bytes((scans / good[0]).read_bytes())
    long = "x" * 300 + ".png"
    odd = "R\udcf6ntgen.png"  # Latin-1 on disk
    Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(scans / "one.png")
    (scans / "one.png").rename(scans / odd)
    Image.new("L", (1, 1), 7).save(scans / "pixel.png")
    bad = ["empty.dcm", "claims.dcm", "frames.dcm", "bomb.png", "cut.png", "fifo.dcm", "loop", "folder.png", long,
           "gone.png", "../secret.png", str(tmp_path / "secret.png")]  # fmt: skip
    names = [*good, odd, "pixel.png", *bad]
    source = read("table", table(scans, names), label_columns=["sick"], patient_column="patient")
    output = tmp_path / "made"
    list(prepare(source, output, size=32, workers=1, max_rejected=0.6))
    rejected = dict(pl.read_csv(output / "rejected.csv").iter_rows())
    assert set(rejected) == set(bad)
    assert all(rejected.values())
    assert "65535 x 65535" in rejected["claims.dcm"]
    assert "3 frames" in rejected["frames.dcm"]
    assert "leaves the folder" in rejected["../secret.png"]
    assert pl.read_parquet(output / "manifest.parquet").height == len(good) + 2


def test_more_than_the_allowed_share_stops_with_the_commonest_reasons(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 7).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    names = ["good.png", "gone1.png", "empty.png", "gone2.png", "text.png"]
    table(tmp_path, names)
    command = [sys.executable, "-m", "damcli", "prepare", "table", "scans.csv", "--label-columns", "sick", "-o", "made"]
    done = subprocess.run(
        [*command, "--workers", "0", "--max-rejected", "0.5"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "No such file or directory (2)" in done.stderr
    assert "--max-rejected" in done.stderr
    assert not (tmp_path / "made" / "dataset.json").exists()


def test_a_worker_stays_within_its_memory(tmp_path: Path) -> None:
    huge = dicom(tmp_path / "huge.dcm", 9000, 9000, data=bytes(2 * 9000 * 9000))
    Image.fromarray(np.zeros((11_000, 11_000, 3), np.uint8)).save(tmp_path / "colour.png", compress_level=1)
    # In a process of its own, whose children are the workers alone.
    program = f"""
import resource
from pathlib import Path
from damcli.data.images import Contract
from damcli.data.workers import decode
for scan in decode([Path({str(huge)!r}), Path({str(tmp_path / "colour.png")!r})], Contract(size=32, channels=1), 1):
    assert scan.status == "ok" or "1 GiB" in scan.reason, scan.reason
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 300e6 < int(done.stdout) * 1024 <= 1.05 * MEMORY_LIMIT


def test_all_of_pydicoms_own_files_go_through_without_a_crash(tmp_path: Path) -> None:
    files = [Path(name) for name in get_testdata_files() if Path(name).is_file()]
    assert len(files) > 100
    names = []
    for number, file in enumerate(files):
        names.append(f"{number:03}-{file.name}")
        (tmp_path / names[-1]).symlink_to(file)
    source = read("table", table(tmp_path, names), label_columns=["sick"], patient_column="patient")
    list(prepare(source, tmp_path / "made", size=32, workers=1, max_rejected=1, allow_leaks=True))
    manifest = pl.read_parquet(tmp_path / "made" / "manifest.parquet")
    rejected = pl.read_csv(tmp_path / "made" / "rejected.csv")
    assert manifest.height + rejected.height == len(files)
    assert manifest.height > 60
    assert not rejected["reason"].str.contains("crashed|took longer|the decoder failed").any(), rejected


@pytest.fixture(scope="module")
def real(test_data: Path) -> list[bytes]:
    small = ("dog_thorax_DX_MONOCHROME1.dcm", "chest_RSNA_jpegbaseline.dcm", "leg_RG3_J2KI.dcm", "leg_RG3_JLSN")
    return [(test_data / "dicom" / name).read_bytes() for name in small]


def test_mutated_dicom_gives_pixels_or_a_reason(real: list[bytes], tmp_path: Path) -> None:
    """Decoders are native code: damaged streams run in a worker, which may crash, as users' scans do."""
    rng = random.Random(7)
    paths = []
    for number in range(120):
        data = bytearray(rng.choice(real))
        for _ in range(rng.choice((1, 3, 30))):
            # Headers lie in front: half of the damage goes there.
            data[rng.randrange(128, min(len(data), 2000) if rng.random() < 0.5 else len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        (tmp_path / f"{number}.dcm").write_bytes(data)
        paths.append(tmp_path / f"{number}.dcm")
    found = list(decode(paths, SMALL, workers=1, seconds=20))
    assert [scan.index for scan in found] == list(range(120))
    for scan in found:
        assert (scan.pixels is not None) == (scan.status == "ok")
        assert scan.status == "ok" or scan.reason
        assert "took longer" not in scan.reason


STARTS = [b"", b"\xff\xd8\xff\xc3", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"P5\n", b"II*\0", bytes(128) + b"DICM"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), start=st.sampled_from(STARTS))
def test_random_bytes_are_no_image_or_refused(data: bytes, start: bytes, tmp_path: Path) -> None:
    (tmp_path / "A_1000_1.LEFT_CC.LJPEG").write_bytes(start + data)
    pixels, status, reason = attempt(tmp_path / "A_1000_1.LEFT_CC.LJPEG", SMALL)[:3]
    assert (pixels is not None) == (status == "ok")
    assert status == "ok" or (reason and "the decoder failed" not in reason)


HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA,Cardiomegaly,Edema,Consolidation,Atelectasis,Pleural Effusion"
LINE = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,0.0,-1.0,"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=0, max_size=4)), max_size=6))
def test_a_mutated_table_gives_scans_or_a_clear_error(edits: list[tuple[int, bytes]], tmp_path: Path) -> None:
    text = bytearray("\n".join([HEADER, LINE, LINE.replace("00001", "00002")]).encode())
    for place, piece in edits:
        place = min(place, len(text))
        text[place : place + len(piece)] = piece
    (tmp_path / "train.csv").write_bytes(text)
    try:
        source = chexpert.read(tmp_path)
    except DamcliError:  # anything else is a crash
        return
    assert len(source.scans) + len(source.refused) <= 3
    assert all(Path(path).is_relative_to(tmp_path) for path in source.scans["path"])
