"""What writes DDSM's films and archives, for the tests that read them."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def pvrg() -> Callable[..., bytes]:
    """Returns `encode(image, selection, precision, exchanged=False)`: a stream as PVRG's encoder writes it."""
    return encode


@pytest.fixture(scope="session")
def segments() -> Callable[..., bytes]:
    """Returns `segments(rows, columns, precision, selection, …)`: all of such a stream before its coded pixels."""
    return headers


@pytest.fixture(scope="session")
def zipped() -> Callable[..., Path]:
    """Returns `zipped(path, files, method)`: a zip there, of `FILES` unless others are given."""
    return _zipped


@pytest.fixture(scope="session")
def tarred() -> Callable[..., Path]:
    """Returns `tarred(path, files, packed, layout)`: a tar there, of `FILES` unless others are given."""
    return _tarred


@pytest.fixture(scope="session")
def add() -> Callable[..., None]:
    """Returns `add(archive, name, data, **fields)`: puts a member into an open tar, its header with these fields."""
    return _add


def encode(image: NDArray, selection: int, precision: int, exchanged: bool = False) -> bytes:
    """Encode as PVRG does: the named predictor on the first row too, the row above it being 2^(P-1) everywhere.

    `exchanged` tells the encoder width and height the wrong way round, as half of DDSM's headers have them.
    """
    x = image.astype(np.int64).reshape(image.shape[::-1] if exchanged else image.shape)
    rows, columns = x.shape
    above = np.vstack([np.full((1, columns), 2 ** (precision - 1)), x[:-1]])
    left, up, corner = x[:, :-1], above[:, 1:], above[:, :-1]
    guess = above.copy()  # which is right for the first column
    guess[:, 1:] = {
        1: left, 2: up, 3: corner, 4: left + up - corner, 5: left + ((up - corner) >> 1),
        6: up + ((left - corner) >> 1), 7: (left + up) >> 1,
    }[selection]  # fmt: skip
    bits = []
    for difference in ((x - guess) % 2**16).ravel().tolist():
        signed = difference if difference <= 2**15 else difference - 2**16
        category = abs(signed).bit_length()
        bits.append(format(category, "05b"))  # the code of each of 17 categories is its number in five bits
        if 0 < category < 16:
            bits.append(format(signed if signed > 0 else signed + 2**category - 1, f"0{category}b"))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    return headers(rows, columns, precision, selection) + scan + b"\xff\xd9"


def headers(
    rows: int, columns: int, precision: int, selection: int, components: int = 1, transform: int = 0, extra: bytes = b""
) -> bytes:
    frame = struct.pack(">BHHBBBB", precision, rows, columns, components, 1, 0x11, 0)
    table = bytes([0, *(17 if length == 5 else 0 for length in range(1, 17)), *range(17)])
    scan = bytes([1, 1, 0, selection, 0, transform])
    parts = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
        for marker, content in ((0xC3, frame), (0xC4, table))
    )
    return b"\xff\xd8" + parts + extra + b"\xff\xda\0\x08" + scan


FILES = {"a/1.dcm": b"one", "a/2.dcm": bytes(range(256)) * 40, "b.png": b"", "c/d/e": b"x" * 1024}


def _zipped(path: Path, files=FILES, method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _tarred(path: Path, files=FILES, packed: str = "", layout: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, f"w:{packed}", format=layout) as archive:
        for name, data in files.items():
            _add(archive, name, data)
    return path


def _add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))
