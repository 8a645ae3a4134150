"""DDSM's `.LJPEG` files: lossless JPEG as the Stanford PVRG encoder wrote it, which other decoders get wrong.

The standard predicts the first row from the left only (ITU-T T.81, H.1.2.1); PVRG uses the predictor that the file
names there too, and takes a constant for the missing row above. Predictors 1, 4 and 5 do not notice; with 2, 3, 6 and
7 nearly every pixel of an ordinary decoder is wrong. The differences that the Huffman code holds do not depend on the
predictor: they are taken out of an ordinary decoder's hands, and the predictor is applied here. FORMATS section 5.4.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli.dicom import PIXEL_LIMIT, pixels
from damcli.errors import DataError

SOI, EOI, SOF3, DHT, SOS, DRI = 0xD8, 0xD9, 0xC3, 0xC4, 0xDA, 0xDD
ALONE = {SOI, 0x01, *range(0xD0, 0xD8)}  # markers without a segment
_MARKER = re.compile(rb"\xff+([^\0\xff])")  # among coded pixels: 0xFF is followed by 0 there
# With these an ordinary decoder is right.
ORDINARY = (1, 4, 5)


class Frame(NamedTuple):
    """A lossless JPEG taken apart: its sizes, sample precision P and predictor Ss, its Huffman table, coded pixels."""

    rows: int
    columns: int
    precision: int
    predictor: int
    table: bytes
    scan: bytes


def decode(stream: bytes) -> NDArray[np.uint16]:
    """Decode a stream of one component into uint16 (rows, columns) as its frame header gives them.

    Raises `DataError` if it is no lossless JPEG of one component, cut off or damaged.
    """
    frame = parse(stream)
    if frame.predictor in ORDINARY:
        return _decode(frame)
    # With predictor 1 the decoder sums the differences up along the rows, modulo 2¹⁶.
    summed = _decode(frame._replace(precision=16, predictor=1))
    differences = np.empty_like(summed)
    np.subtract(summed[:, 1:], summed[:, :-1], out=differences[:, 1:])
    np.subtract(summed[1:, 0], summed[:-1, 0], out=differences[1:, 0])
    differences[0, 0] = summed[0, 0] ^ 2**15  # which is minus 2¹⁵, modulo 2¹⁶
    return predict(differences, frame.predictor, 2 ** (frame.precision - 1))


def parse(stream: bytes) -> Frame:
    """Take a lossless JPEG of one component apart (T.81 B.2).

    Raises `DataError` where it is damaged, and for restart intervals and point transforms: PVRG's rule for them is not
    known, and DDSM has none.
    """
    position, frame = 2, None
    tables: dict[int, bytes] = {}
    try:
        while True:
            if stream[position] != 0xFF:
                raise DataError("the lossless JPEG is damaged: a marker is missing")
            marker = stream[position + 1]
            if marker in ALONE or marker == 0xFF:
                position += 1 if marker == 0xFF else 2
                continue
            [length] = struct.unpack_from(">H", stream, position + 2)
            content = stream[position + 4 : position + 2 + length]
            position += 2 + length
            if marker == SOF3:
                frame = struct.unpack_from(">BHHB", content)
            elif marker == DHT:
                tables.update(_tables(content))
            elif marker == DRI and any(content):
                raise DataError("the lossless JPEG has restart intervals, which DDSM's films have not")
            elif marker == SOS:
                break
        scanned, _, selector, predictor, _, transform = struct.unpack_from(">6B", content)
    except (IndexError, struct.error) as error:
        raise DataError("the lossless JPEG is cut off") from error
    if frame is None or selector >> 4 not in tables:
        raise DataError("this JPEG is not lossless, or has no Huffman table")
    precision, rows, columns, components = frame
    if not components == scanned == 1 or not 0 < rows * columns <= PIXEL_LIMIT or not 2 <= precision <= 16:
        raise DataError(f"the lossless JPEG claims {columns} x {rows} pixels of {components} x {precision} bits")
    if not 1 <= predictor <= 7 or transform:
        raise DataError(f"the lossless JPEG names the predictor {predictor} and the point transform {transform}")
    end = _MARKER.search(stream, position)
    if end is None or end[1][0] != EOI:
        raise DataError("the lossless JPEG is cut off, or damaged among its pixels")
    return Frame(rows, columns, precision, predictor, tables[selector >> 4], stream[position : end.start()])


def _tables(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the Huffman tables of a DHT segment by their number: 16 counts of codes, then the categories."""
    position = 0
    while position < len(content):
        end = position + 17 + sum(content[position + 1 : position + 17])
        yield content[position], content[position + 1 : end]
        position = end


def _decode(frame: Frame) -> NDArray[np.uint16]:
    """Hand an ordinary decoder a clean stream: on some damaged headers it ends the whole process."""
    header = struct.pack(">BHHBBBB", frame.precision, frame.rows, frame.columns, 1, 1, 0x11, 0)
    contents = ((SOF3, header), (DHT, b"\0" + frame.table), (SOS, bytes([1, 1, 0, frame.predictor, 0, 0])))
    segments = (struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in contents)
    stream = b"".join([bytes([0xFF, SOI]), *segments, frame.scan, bytes([0xFF, EOI])])
    return pixels.lossless_jpeg(stream, frame.rows, frame.columns)


def predict(differences: NDArray[np.uint16], predictor: int, start: int) -> NDArray[np.uint16]:
    """Return the pixels of differences (rows, columns) for PVRG's predictors 2, 3, 6 and 7, modulo 2¹⁶.

    `start` stands for the row above the first; the first column is predicted from above.

    >>> predict(np.array([[1, 2], [3, 4]], np.uint16), 7, 100)
    array([[101, 102],
           [104, 107]], dtype=uint16)
    """
    rows, columns = differences.shape
    # A row of the constant on top. Unsigned sums wrap round as they should.
    found = np.full((rows + 1, columns), start, np.uint16)
    found[1:, 0] = np.uint16(start) + np.cumsum(differences[:, 0], dtype=np.uint16)
    if predictor == 2:
        found[1:] = np.uint16(start) + np.cumsum(differences, axis=0, dtype=np.uint16)
    elif predictor == 3:
        for row in range(rows):
            np.add(found[row, :-1], differences[row, 1:], out=found[row + 1, 1:])
    else:
        _along_diagonals(found, differences, predictor)
    return found[1:]


def _along_diagonals(found: NDArray[np.uint16], differences: NDArray[np.uint16], predictor: int) -> None:
    """Fill in all but the first row and column: pixels on an anti-diagonal do not depend on each other."""
    rows, columns = differences.shape
    flat, coming = found.reshape(-1), differences.reshape(-1)
    step = columns - 1
    for diagonal in range(1, rows + columns - 1 if columns > 1 else 1):
        top, bottom = max(0, diagonal - columns + 1), min(rows - 1, diagonal - 1)
        # Of the pixel (row, column) the flat position is row * columns + column, and column = diagonal - row.
        here = slice(diagonal + top * step, diagonal + bottom * step + 1, step)
        up = flat[here].astype(np.int32)  # `found` has one more row on top
        left = flat[here.start + columns - 1 : here.stop + columns - 1 : step]
        if predictor == 7:
            guess = (left + up) >> 1
        else:
            guess = up + ((left - flat[here.start - 1 : here.stop - 1 : step].astype(np.int32)) >> 1)
        flat[here.start + columns : here.stop + columns : step] = guess + coming[here]
