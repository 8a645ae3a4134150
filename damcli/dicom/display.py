"""From decoded values to what is shown, by what the DICOM header says: LUTs, windows, padding, palettes."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut

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
        try:
            stored = apply_color_lut(stored, dataset)[..., :3]
        except Exception as error:
            raise DataError("the colour palette is missing or damaged") from error
        bits = 8 * stored.dtype.itemsize
    elif photometric != "RGB" or stored.ndim != 3 or stored.dtype.kind != "u":
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
    """Which stored values are padding (PS3.3 C.7.5.1.1.2)."""
    first = number(dataset, "PixelPaddingValue")
    if first is None:
        first = number(dataset, "FloatPixelPaddingValue")
    if first is None:
        return np.zeros(codes.shape, bool)
    last = number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(value, codes) for value in (first, first if last is None else last))
    return (codes >= low) & (codes <= high)


def _as_stored(value: float, codes: NDArray) -> float:
    """A value of the header in the type of the pixels: writers mix up the signed and the unsigned form."""
    if codes.dtype.kind == "u" and value < 0:
        return value + 2.0 ** (8 * codes.dtype.itemsize)
    if codes.dtype.kind == "i" and value >= 2.0 ** (8 * codes.dtype.itemsize - 1):
        return value - 2.0 ** (8 * codes.dtype.itemsize)
    return float(codes.dtype.type(value)) if codes.dtype.kind == "f" else value


def _modality(dataset: Dataset, codes: NDArray) -> NDArray[np.float64]:
    """Stored values to the values of the modality (PS3.3 C.11.1)."""
    if table := _table(dataset, "ModalityLUTSequence"):
        return lookup(codes, *table[:2])
    slope = number(dataset, "RescaleSlope")
    if slope == 0:
        raise DataError("the DICOM element RescaleSlope is 0")
    intercept = number(dataset, "RescaleIntercept") or 0.0
    return codes.astype(np.float64) * (1.0 if slope is None else slope) + intercept


def _voi(dataset: Dataset, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The values of interest over [0, 1] (PS3.3 C.11.2), or None where the header names none."""
    if table := _table(dataset, "VOILUTSequence"):
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


def _table(dataset: Dataset, keyword: str) -> tuple[int, NDArray, float] | None:
    """The first lookup table of a sequence as (first value mapped, entries, largest possible entry)."""
    items = element(dataset, keyword)
    if not items:
        return None
    try:
        size, first, bits = (int(value) for value in items[0].LUTDescriptor)
        size = size or 2**16
        data = items[0].LUTData
        if isinstance(data, bytes):
            order = "<" if dataset.original_encoding[1] is not False else ">"
            data = np.frombuffer(data, "u1" if len(data) < 2 * size else f"{order}u2")
        entries = np.atleast_1d(np.asarray(data, np.float64))[:size]
        if len(entries) < size:
            raise ValueError("fewer entries than its descriptor says")
    except Exception as error:
        raise DataError(f"the lookup table of {keyword} is damaged") from error
    if first >= 2**15 and dataset.get("PixelRepresentation") == 1:
        first -= 2**16
    return first, entries, max(2.0 ** min(bits, 16) - 1, entries.max())
