"""Kaggle's DDSM tiles: TFRecords and arrays written here byte by byte."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from damcli.commands import prepare
from damcli.data.images import Contract, resize
from damcli.data.sources import Source, ddsm, tfrecord
from damcli.errors import DamcliError, DataError, UsageError

SIDE = 299


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, appendix B.4, bit by bit on one whole number: the remainder of a division."""
    flipped = int("".join(f"{byte:08b}"[::-1] for byte in data), 2) << 32
    flipped ^= 0xFFFFFFFF << 8 * len(data)
    for bit in range(flipped.bit_length() - 1, 31, -1):
        if flipped >> bit & 1:
            flipped ^= 0x11EDC6F41 << bit - 32
    return int(f"{flipped ^ 0xFFFFFFFF:032b}"[::-1], 2)


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    number %= 2**64
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def integers(*values: int, packed: bool = True) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(field(1, value) for value in values))


def example(**features: bytes) -> bytes:
    entries = (field(1, field(1, name.encode()) + field(2, feature)) for name, feature in features.items())
    return field(1, b"".join(entries))


def frame(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    # Nothing checks the data's own checksum, which for 90,000 bytes takes long.
    return head + masked(head) + data + b"\0\0\0\0"


def tiles(number: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (number, SIDE, SIDE)).astype(np.uint8)


def record(image: NDArray, label: int, packed: bool = True, name: str | None = None) -> bytes:
    features = {
        "label": integers(label, packed=packed), "label_normal": integers(int(label > 0), packed=packed),
        "image": field(1, field(1, image.tobytes())),
    }  # fmt: skip
    if name is not None:
        features["filename"] = field(1, field(1, np.array(name).tobytes()))  # UTF-32, as NumPy has text
    return frame(example(**features))


def write_records(folder: Path, number: int, labels: Sequence[int], below: bool = True, **how: object) -> NDArray:
    images = tiles(len(labels), number)
    file = folder / (f"training10_{number}" if below else "") / f"training10_{number}.tfrecords"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(record(image, label, **how) for image, label in zip(images, labels, strict=True)))
    return images


def write_array(folder: Path, kind: str, labels: Sequence[int], inside: bool = False) -> NDArray:
    images = tiles(len(labels), 100 + len(kind))
    (folder / f"{kind}10_data").mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{kind}10_data" / f"{kind}10_data.npy", images[..., None])
    np.save((folder / f"{kind}10_data" if inside else folder) / f"{kind}10_labels.npy", np.array(labels))
    return images


@pytest.fixture
def download(tmp_path: Path) -> tuple[Path, NDArray]:
    """Two files to train on and both arrays, and all tiles in the order of the scans."""
    return tmp_path, np.concatenate([
        write_records(tmp_path, 0, [0, 1, 2, 3, 4]),
        write_records(tmp_path, 1, [4, 0], packed=False, name="P_00001_LEFT_CC_1.png"),
        write_array(tmp_path, "cv", [1, 0, 3]),
        write_array(tmp_path, "test", [0, 2, 4, 0], inside=True),
    ])  # fmt: skip


def test_what_the_records_and_arrays_say(download: tuple[Path, NDArray]) -> None:
    folder, _ = download
    source = ddsm.read(folder)
    scans = source.scans
    assert source.name == "ddsm:tiles"
    assert source.findings == ["abnormal"]
    assert source.refused == []
    assert scans["id"].to_list() == [
        *(f"training10_0/0000{n}" for n in range(5)), "training10_1/00000", "training10_1/00001",
        *(f"cv10_data/0000{n}" for n in range(3)), *(f"test10_data/0000{n}" for n in range(4)),
    ]  # fmt: skip
    assert scans["label:abnormal"].to_list() == [0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0]
    assert scans["split"].to_list() == ["train"] * 7 + ["test"] * 7
    assert scans["class"][:5].to_list() == [
        "negative", "benign calcification", "benign mass", "malignant calcification", "malignant mass",
    ]  # fmt: skip
    assert scans["patient"].null_count() == len(scans)
    assert any("no patient is known" in note for note in source.notes)
    assert any("13,900" in note for note in source.notes)
    assert not any("only one of" in note or "not there" in note for note in source.notes)
    assert {Path(path).name for path in scans["path"]} == {
        "training10_0.tfrecords", "training10_1.tfrecords", "cv10_data.npy", "test10_data.npy",
    }  # fmt: skip


def test_malignant_is_another_finding_than_abnormal(download: tuple[Path, NDArray]) -> None:
    source = ddsm.read(download[0], findings=["malignant", "abnormal"])
    assert source.findings == ["malignant", "abnormal"]
    assert source.scans["label:malignant"].to_list() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert source.scans["label:abnormal"].sum() == 9
    with pytest.raises(UsageError, match="did you mean malignant"):
        ddsm.read(download[0], findings=["malignent"])
    with pytest.raises(UsageError, match="crops already"):
        ddsm.read(download[0], crops=True)


def shown(source: Source, first: int) -> list[NDArray]:
    assert source.pixels is not None
    return [image for image in source.pixels(first) if isinstance(image, np.ndarray)]


def test_pixels_come_in_the_order_of_the_scans_from_where_asked(download: tuple[Path, NDArray]) -> None:
    folder, images = download
    source = ddsm.read(folder)
    for first in range(len(images) + 1):
        found = shown(source, first)
        assert len(found) == len(images) - first
        assert all(image.dtype == np.uint8 for image in found)
        assert all(map(np.array_equal, found, images[first:]))


def test_files_in_the_folder_itself(tmp_path: Path) -> None:
    images = write_records(tmp_path, 3, [0, 1], below=False)
    write_array(tmp_path, "test", [1])
    (tmp_path / "test10_data" / "test10_data.npy").rename(tmp_path / "test10_data.npy")
    source = ddsm.read(tmp_path)
    assert source.scans["split"].to_list() == ["train", "train", "test"]
    assert np.array_equal(shown(source, 1)[0], images[1])


@pytest.mark.parametrize("kind", ["test", "cv"])
def test_one_array_only_does_not_compare(tmp_path: Path, kind: str) -> None:
    write_records(tmp_path, 0, [0, 1])
    write_array(tmp_path, kind, [1, 0])
    notes = ddsm.read(tmp_path).notes
    assert any(note.startswith("only one of test10 and cv10 is there") for note in notes)


def test_records_only_and_arrays_only(tmp_path: Path) -> None:
    write_records(tmp_path / "one", 0, [0, 1])
    source = ddsm.read(tmp_path / "one")
    assert source.scans["split"].to_list() == [None, None]
    assert source.scans["split"].dtype == pl.String
    assert any("split off at random" in note for note in source.notes)
    write_array(tmp_path / "two", "test", [1, 0])
    source = ddsm.read(tmp_path / "two")
    assert source.scans["split"].to_list() == ["test", "test"]
    assert any("only test" in note for note in source.notes)


def refused(folder: Path, said: str, kind: type[DamcliError] = DataError) -> None:
    with pytest.raises(kind, match=said):
        ddsm.read(folder)


def test_records_that_are_damaged(tmp_path: Path) -> None:
    write_records(tmp_path, 0, [0, 1])
    file = tmp_path / "training10_0" / "training10_0.tfrecords"
    good = file.read_bytes()
    one = len(good) // 2
    for length in (1, 11, 12, 5000, one - 1, one + 1, one + 20, len(good) - 4, len(good) - 1):
        file.write_bytes(good[:length])
        refused(tmp_path, "cut off")
    file.write_bytes(good[:one])
    assert len(ddsm.read(tmp_path).scans) == 1
    for position in (0, 7, 8, 11, one, one + 8):
        damaged = bytearray(good)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        refused(tmp_path, "no TFRecord file, or a damaged one")
    file.write_bytes(b"")
    refused(tmp_path, "empty")
    head = struct.pack("<Q", 2**62)
    file.write_bytes(head + masked(head) + good)
    refused(tmp_path, "damaged")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (example(label=integers(1)), "record 0 has no image"),
        (example(label=integers(1), image=field(1, field(1, bytes(SIDE**2 - 1)))), "record 0 has no image"),
        (example(label=integers(1), image=field(1, field(1, bytes(3 * SIDE**2)))), "record 0 has no image"),
        (example(label=integers(1), image=integers(5)), "record 0 has no image"),
        (example(image=field(1, field(1, bytes(SIDE**2)))), "no label"),
        (example(label=integers(5), image=field(1, field(1, bytes(SIDE**2)))), "no label"),
        (example(label=integers(-1), image=field(1, field(1, bytes(SIDE**2)))), "no label"),
        (example(label=integers(1, 2), image=field(1, field(1, bytes(SIDE**2)))), "no label"),
        (example(label=field(1, field(1, b"1")), image=field(1, field(1, bytes(SIDE**2)))), "no label"),
        (b"", "no label"),
        (b"\xff" * 30, "no Example"),
        (b"\x0a\x7f", "no Example"),
        (field(1, field(1, field(2, integers(1)))), "no Example"),
        (field(1, field(1, field(1, b"\xff\xfe") + field(2, integers(1)))), "no Example"),
    ],
)
def test_records_of_something_else(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "training10_0.tfrecords").write_bytes(frame(data))
    refused(tmp_path, said)


def test_an_example_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    good = example(label=integers(1), name=field(1, field(1, b"abc")), label_normal=integers(1, packed=False))
    for position in range(len(good)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            damaged = good[:position] + bytes([value]) + good[position + 1 :]
            with suppress(DataError):
                tfrecord.features(damaged, tmp_path)
        with suppress(DataError):
            tfrecord.features(good[:position], tmp_path)
    assert tfrecord.features(good, tmp_path) == {"label": [1], "name": b"abc", "label_normal": [1]}


def test_integers_in_both_forms(tmp_path: Path) -> None:
    for packed in (True, False):
        data = example(label=integers(0, 1, 300, -1, 2**63 - 1, packed=packed))
        assert tfrecord.features(data, tmp_path) == {"label": [0, 1, 300, -1, 2**63 - 1]}


def test_arrays_of_something_else(tmp_path: Path) -> None:
    write_array(tmp_path, "test", [1, 0])
    data, labels = tmp_path / "test10_data" / "test10_data.npy", tmp_path / "test10_labels.npy"
    for wrong, said in (([1, 5], "labels from 0 to 4"), ([1], "as many labels"), ([[1, 0]], "as many labels")):
        np.save(labels, np.array(wrong))
        refused(tmp_path, said)
    np.save(labels, np.array([{}, {}], object), allow_pickle=True)
    refused(tmp_path, "no array of numbers")
    labels.unlink()
    refused(tmp_path, "test10_labels.npy is missing")
    np.save(labels, np.array([1, 0]))
    good = data.read_bytes()
    data.write_bytes(good[:-1])
    refused(tmp_path, "no array of numbers")
    np.save(data, np.zeros((2, SIDE, SIDE), np.uint8))
    refused(tmp_path, "not uint8")
    np.save(data, np.zeros((2, SIDE, SIDE, 1), np.float32))
    refused(tmp_path, "not uint8")


def test_a_download_end_to_end(download: tuple[Path, NDArray], tmp_path: Path) -> None:
    folder, images = download
    source = prepare.read("ddsm", folder)
    out = tmp_path / "dataset"
    for _ in prepare.prepare(source, out, size=32):
        pass
    manifest = pl.read_parquet(out / "manifest.parquet")
    written = np.load(out / "images-00000.npy")
    assert manifest["id"].to_list() == source.scans["id"].to_list()
    for row, image in zip(manifest["row"], images, strict=True):
        assert np.array_equal(written[row], resize(image, Contract(size=32, channels=1)))
