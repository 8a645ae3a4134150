"""Compressed streams: what they say of themselves, and decoding them whole or not at all.

What a JPEG stream lacks, libjpeg and its heirs fill up, and most decoders built on them say nothing. So does OpenJPH
with JPEG 2000, and it trusts the sizes that a stream claims. Pixels that were never in the file must not count.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

END = b"\xff\xd9"  # EOI of JPEG (ITU-T T.81, table B.1), EOC of JPEG 2000 (T.800, table A.2)
SCAN = 0xDA  # SOS
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF, and that of JPEG-LS (T.87); between are tables
SOC_SIZ, SOT = b"\xff\x4f\xff\x51", b"\xff\x90"
# No marker in it, and in any Huffman code more than a few equal pixels.
OTHER_DATA = bytes(range(1, 255))


class CutOff(ValueError):  # noqa: N818
    """A stream ends before its pixels do: no other decoder can know them either."""


def check_jpeg(stream: bytes, rows: int, columns: int, samples: int) -> None:
    """Raise `ValueError` where JPEG or JPEG-LS has another size or damaged markers, `CutOff` where it has no end.

    That keeps decoders in C off what makes them hang or end the process.
    """
    position, frame = 2, None
    while True:
        start, marker, length = struct.unpack_from(">BBH", stream, position)
        if start != 0xFF or not 0xC0 <= marker <= 0xFE:
            raise ValueError("a marker is damaged")
        if marker in FRAMES:
            frame = struct.unpack_from(">BHHB", stream, position + 4)
        if marker == SCAN:
            break
        position += 2 + length
    if frame is None or frame[0] > 16 or frame[1:] != (rows, columns, samples):
        raise ValueError("the stream has another size")
    if stream.rfind(END) < position:
        raise CutOff("the stream has no end")


def whole(decode: Callable[[bytes], NDArray[Any]], stream: bytes) -> NDArray[Any]:
    """Decode a JPEG stream with a decoder that fills up what is missing. Raises `CutOff` where it had to."""
    pixels = decode(stream)
    # What changes with the bytes behind the stream's data was never in it.
    if not np.array_equal(pixels, decode(stream[: stream.rfind(END)] + OTHER_DATA + END)):
        raise CutOff("the stream ends early")
    return pixels


def htj2k(stream: bytes, rows: int, columns: int) -> NDArray[Any]:
    """Decode a High-Throughput JPEG 2000 codestream of one component with OpenJPH, into its own type.

    Raises `ValueError` where it has another size, several tiles or boxes around it, `CutOff` where a tile-part is not
    as long as it says, and what imagecodecs raises.
    """
    import imagecodecs

    # Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz, YTOsiz, Csiz (T.800, A.5.1)
    width, height, *offset, tile_width, tile_height, tile_x, tile_y, components = struct.unpack_from(">8IH", stream, 8)
    if not stream.startswith(SOC_SIZ) or (height, width, components) != (rows, columns, 1):
        raise ValueError("the stream has another size")
    if any((*offset, tile_x, tile_y)) or tile_width < width or tile_height < height:
        raise ValueError("the stream has several tiles")
    position = stream.index(SOT)
    while stream.startswith(SOT, position):
        (length,) = struct.unpack_from(">I", stream, position + 6)  # Psot (A.4.2)
        if not length:
            raise ValueError("the length of the last tile-part is left open")
        position += length
    if not stream.startswith(END, position):
        raise CutOff("the stream is shorter or longer than its tile-parts")
    return imagecodecs.htj2k_decode(stream)
