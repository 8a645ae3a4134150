"""Pictures of kinds that openers get wrong."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from damcli.data.images import Contract, read_scan
from damcli.errors import DataError

CONTRACT = Contract(size=4, channels=1, fit="stretch")


def tiff(file: Path, values: np.ndarray, sample_format: int, photometric: int = 1, order: str = "<") -> Path:
    """Write a plain TIFF of one strip: TIFF 6.0, sections 2 and 3."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8 * values.dtype.itemsize), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)]  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'Hxx' if kind == 3 else 'I'}", value)
        for tag, kind, value in tags
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    file.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return file


def test_tiff_of_unsigned_32_bits_does_not_wrap(tmp_path):
    values = np.linspace(0, 2**32 - 1, 16).reshape(4, 4).astype(np.uint32)
    shown = read_scan(tiff(tmp_path / "a.tif", values, 1), CONTRACT)
    assert np.abs(shown.astype(int) - np.round(np.linspace(0, 255, 16)).reshape(4, 4)).max() <= 1


def test_tiff_of_signed_32_bits_keeps_its_sign(tmp_path):
    values = np.linspace(-1000, 1000, 16).reshape(4, 4).astype(np.int32)
    shown = read_scan(tiff(tmp_path / "a.tif", values, 2), CONTRACT)
    assert np.abs(shown.astype(int) - np.round(np.linspace(0, 255, 16)).reshape(4, 4)).max() <= 1


def test_what_could_only_be_shown_wrongly_is_refused(tmp_path):
    with pytest.raises(DataError, match="signed 8-bit"):
        read_scan(tiff(tmp_path / "a.tif", np.arange(16, dtype=np.int8).reshape(4, 4) - 8, 2), CONTRACT)
    with pytest.raises(DataError, match="of a kind that is not read"):
        read_scan(tiff(tmp_path / "b.tif", np.arange(16, dtype=np.uint16).reshape(4, 4), 1, 0, ">"), CONTRACT)


def test_deep_grey_png_with_alpha_is_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">8H", *(v for n in range(4) for v in (n * 1000, 65535))) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 4, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(DataError, match="alpha channel"):
        read_scan(tmp_path / "a.png", CONTRACT)
