"""From decoded values to what is shown, by what the DICOM header says: LUTs, windows, padding, palettes."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from damcli.dicom.greyscale import (
    FULL_RANGE_BITS,
    levels,
    lookup,
    occurrences,
    percentile_range,
    quantise,
    stretch,
    through,
    window,
)
from damcli.errors import DataError


def grey(dataset: Dataset, stored: NDArray, inverted: bool) -> NDArray[np.uint16]:
    """Return stored values (H, W) as shown, 0 … 65535; `inverted` is for MONOCHROME1."""
    codes, which = levels(stored)
    padded = _padding(dataset, codes) | ~np.isfinite(codes)
    values = _modality(dataset, codes)
    shown = _voi(dataset, values)
    if shown is None:
        low, high = _range(dataset, codes, values, which, padded)
        shown = stretch(values, low, high)
    table = quantise(np.where(padded, 0, shown))
    if inverted:
        # After rounding, so that an image and its inverted twin add up to 65535 everywhere.
        table = np.where(padded, 0, 65535 - table).astype(np.uint16)
    return through(table, which)


def colour(dataset: Dataset, stored: NDArray, photometric: str) -> NDArray[np.uint8]:
    """Return decoded colours (H, W, 3) or palette indices (H, W) as RGB, 0 … 255."""
    bits = int(number(dataset, "BitsStored") or 8)
    if photometric == "PALETTE COLOR":
        codes, which = levels(stored)
        return np.stack([through(table, which) for table in _palette(dataset, codes)], axis=-1)
    if photometric != "RGB" or stored.ndim != 3 or stored.dtype.kind != "u":
        raise DataError("the colours cannot be converted to RGB")
    if bits == 8 and stored.dtype == np.uint8:
        return stored
    possible = np.arange(2 ** (8 * stored.dtype.itemsize) if stored.dtype.itemsize <= 2 else 0)
    if not len(possible):
        raise DataError(f"colours of {8 * stored.dtype.itemsize} bits cannot be shown")
    return through(np.rint(np.clip(possible / (2.0**bits - 1), 0, 1) * 255).astype(np.uint8), stored)


def element(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, or None if it is absent or empty. Raises `DataError` if it cannot be read."""
    try:
        value = dataset.get(keyword)
    except Exception as error:  # pydicom converts values when they are asked for, and raises what that raises
        raise DataError(f"the DICOM element {keyword} cannot be read") from error
    return None if value is None or (isinstance(value, str | bytes | MultiValue) and not len(value)) else value


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's first value as a finite number, or None if it is absent or empty."""
    value = element(dataset, keyword)
    if isinstance(value, MultiValue):
        value = value[0]
    if value is None or value == "":
        return None
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"the DICOM element {keyword} is no number") from error
    if not math.isfinite(result):
        raise DataError(f"the DICOM element {keyword} is no finite number")
    return result


def of_frame(dataset: Dataset, frame: int) -> Dataset:
    """Return the data set with the rescale and window that an enhanced object gives a frame (PS3.3 C.7.6.16.2).

    They lie in the functional groups of all frames or of one; a data set without such is returned as it is.
    """
    groups = []
    for keyword, item in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = element(dataset, keyword) or ()
        if item < len(items):
            groups.append(items[item])
    if not groups:
        return dataset
    found = copy(dataset)
    for group in groups:
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for macro in (element(group, keyword) or ())[:1]:
                found.update(macro)
    return found


def _padding(dataset: Dataset, codes: NDArray) -> NDArray[np.bool_]:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2, C.7.6.24 and C.7.6.25 for floats)."""
    kind = {"f4": "Float", "f8": "DoubleFloat"}.get(codes.dtype.str[1:], "")
    first = number(dataset, f"{kind}PixelPaddingValue")
    if first is None:
        return np.zeros(codes.shape, bool)
    last = number(dataset, f"{kind}PixelPaddingRangeLimit")
    bits = int(number(dataset, "BitsStored") or 0)
    low, high = sorted(_as_stored(value, codes, bits) for value in (first, first if last is None else last))
    return (codes >= low) & (codes <= high)


def _as_stored(value: float, codes: NDArray, bits: int) -> float:
    """A value of the header in the type of the pixels: writers mix up the signed and the unsigned form."""
    allocated = 8 * codes.dtype.itemsize
    if codes.dtype.kind == "u" and value < 0:
        return value + 2.0**allocated
    if codes.dtype.kind == "i" and value >= 2.0 ** (bits - 1):
        # The unsigned form of the stored bits or, with the sign in all bits above them, of the allocated ones.
        return value - 2.0 ** (bits if value < 2.0**bits else allocated)
    return float(codes.dtype.type(value)) if codes.dtype.kind == "f" else value


def _modality(dataset: Dataset, codes: NDArray) -> NDArray[np.float64]:
    """Stored values to the values of the modality (PS3.3 C.11.1)."""
    if table := _table(dataset, "ModalityLUTSequence", codes):
        return lookup(codes, *table[:2])
    slope = number(dataset, "RescaleSlope")
    if slope == 0:
        raise DataError("the DICOM element RescaleSlope is 0")
    intercept = number(dataset, "RescaleIntercept") or 0.0
    return codes.astype(np.float64) * (1.0 if slope is None else slope) + intercept


def _voi(dataset: Dataset, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The values of interest over [0, 1] (PS3.3 C.11.2), or None where the header names none."""
    if table := _table(dataset, "VOILUTSequence", values):
        return lookup(values, *table[:2]) / table[2]
    center, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    function = str(element(dataset, "VOILUTFunction") or "LINEAR").strip().upper()
    if center is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    try:
        return window(values, center, width, function)
    except ValueError as error:
        raise DataError("the VOI LUT function is none of LINEAR, LINEAR_EXACT, SIGMOID") from error


def _range(
    dataset: Dataset, codes: NDArray, values: NDArray[np.float64], which: NDArray, padded: NDArray[np.bool_]
) -> tuple[float, float]:
    """What is shown from black to white where the header names no values of interest."""
    bits = int(number(dataset, "BitsStored") or 8 * codes.dtype.itemsize)
    if codes.dtype.kind == "f" or bits > FULL_RANGE_BITS:
        return percentile_range(values, occurrences(which, len(codes)) * ~padded)
    lowest = -(2 ** (bits - 1)) if codes.dtype.kind == "i" else 0
    possible = values[(codes >= lowest) & (codes < lowest + 2**bits)]
    return float(possible.min()), float(possible.max())


def _table(dataset: Dataset, keyword: str, values: NDArray) -> tuple[int, NDArray, float] | None:
    """The first lookup table of a sequence, for `values`: (first value mapped, entries, largest possible entry)."""
    items = element(dataset, keyword)
    if not items:
        return None
    try:
        size, first, bits = _descriptor(items[0].LUTDescriptor, values)
        data = items[0].LUTData
        if isinstance(data, bytes):
            data = _words(dataset, data, halves=len(data) < 2 * size)
        entries = np.atleast_1d(np.asarray(data, np.float64))[:size]
        if len(entries) < size:
            raise ValueError("fewer entries than its descriptor says")
    except Exception as error:
        raise DataError(f"the lookup table of {keyword} is damaged") from error
    return first, entries, max(2.0 ** min(bits, 16) - 1, entries.max())


def _descriptor(descriptor: Any, values: NDArray) -> tuple[int, int, int]:
    """A lookup table's number of entries, first of `values` mapped, and bits of an entry (PS3.3 C.11.1.1)."""
    size, first, bits = (int(value) for value in descriptor)
    # Signed where the values are (those of a rescale are although the pixels may not be), whatever its VR was.
    return size or 2**16, first - 2**16 if first >= 2**15 and values.min() < 0 else first, bits


def _words(dataset: Dataset, data: bytes, halves: bool) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """A value of VR OW, which pydicom leaves in the file's byte order; `halves` where each word holds two bytes."""
    order = "<" if dataset.original_encoding[1] is not False else ">"
    words = np.frombuffer(data + b"\0" * (len(data) % 2), f"{order}u2").astype("<u2")
    return words.view(np.uint8) if halves else words


def _palette(dataset: Dataset, codes: NDArray) -> NDArray[np.uint8]:
    """What `codes` (L,) stand for: red, green, blue (3, L), 0 … 255 (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6).

    Not by pydicom: it takes indices above 255 modulo 256 where entries have 8 bits, leaves big endian entries as they
    are, and misses the segments that a 16-bit segmented table repeats.
    """
    colours = []
    narrow = True
    try:
        for name in ("Red", "Green", "Blue"):
            size, first, bits = _descriptor(dataset[f"{name}PaletteColorLookupTableDescriptor"].value, codes)
            if data := dataset.get(f"{name}PaletteColorLookupTableData"):
                entries = _words(dataset, data, halves=len(data) < 2 * size)[:size]
            else:
                data = dataset[f"Segmented{name}PaletteColorLookupTableData"].value
                entries = _expanded(_words(dataset, data, halves=bits == 8), size)
            if len(entries) < size or bits not in (8, 16):
                raise ValueError("the palette is not what its descriptor says")
            # 8 bits may lie in words of their own.
            narrow &= entries.dtype == np.uint8 or (bits == 8 and entries.max() < 2**8)
            colours.append(lookup(codes, first, entries))
    except Exception as error:
        raise DataError("the colour palette is missing or damaged") from error
    return np.rint(np.array(colours) / (1 if narrow else 257)).astype(np.uint8)


def _expanded(data: NDArray, size: int) -> NDArray:
    """The entries of a segmented palette (PS3.3 C.7.9.2): values, ramps, and segments that are repeated."""
    entries: list[int] = []

    def expand(position: int, segments: int, repeats: bool) -> None:
        while segments and len(entries) < size:
            kind, length = data[position : position + 2].tolist()
            position += 2
            segments -= 1
            if kind == 0:
                entries.extend(data[position : position + length].tolist())
                position += length
            elif kind == 1:
                entries.extend(np.rint(np.linspace(entries[-1], data[position], length + 1)[1:]).astype(int).tolist())
                position += 1
            elif kind == 2 and not repeats:  # nothing that repeats is repeated
                offset = data[position : position + 4 // data.itemsize].tobytes()
                expand(int.from_bytes(offset, "little") // data.itemsize, length, repeats=True)
                position += 4 // data.itemsize
            else:
                raise ValueError("no such segment")

    expand(0, len(data), repeats=False)
    return np.array(entries[:size], data.dtype)
