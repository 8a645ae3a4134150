"""The grey scale pipeline on plain numbers: lookup tables, windows, percentiles (DICOM PS3.3 C.11).

Everything here works on the distinct values that a pixel can take (at most 65,536 for 16 bits), not on the pixels:
the result is a table, exact and fast, through which the image is sent once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

# Where a header gives neither VOI LUT nor window: up to this many stored bits are shown as they are, over their full
# range, like an ordinary 8-bit picture …
FULL_RANGE_BITS = 8
# … and more bits between these fractions of the pixels that are no padding: narrow enough to ignore dead pixels,
# wide enough to keep the brightest calcifications of a mammogram apart from dense tissue.
PERCENTILES = (0.001, 0.999)


def levels(stored: NDArray) -> tuple[NDArray, NDArray]:
    """Return the values that a pixel can take (L,) and which of them each pixel has (same shape as `stored`).

    For 8 and 16 bits these are all values of the type, in the order of their bit patterns; for wider integers and
    floats the distinct values of the image, ascending.

    >>> values, which = levels(np.array([[-1, 3]], np.int8))
    >>> values[which], len(values)
    (array([[-1,  3]], dtype=int8), 256)
    """
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        which = native.view(f"u{native.dtype.itemsize}")
        return np.arange(2 ** (8 * native.dtype.itemsize), dtype=which.dtype).view(native.dtype), which
    values, inverse = np.unique(stored, return_inverse=True)
    return values, inverse.reshape(stored.shape)


def through(table: NDArray, which: NDArray) -> NDArray:
    """Return `table[which]` for integers `which` (H, …) from 0; of 8 and 16 bits, `table` needs all 2⁸ or 2¹⁶ entries.

    >>> through(np.array([5, 7] + 254 * [0], np.uint8), np.array([[1, 0]], np.uint8))
    array([[7, 5]], dtype=uint8)
    """
    if which.dtype == np.uint8 or (which.dtype == np.uint16 and _opencv_looks_16_bits_up()):
        return cv2.LUT(which, table).reshape(which.shape)
    found = np.empty(which.shape, table.dtype)
    # Block by block: NumPy widens indices to 64 bits.
    for block in _blocks(which, 2**18):
        np.take(table, which[block], out=found[block], mode="clip")
    return found


def occurrences(which: NDArray, number: int) -> NDArray[np.int64]:
    """Return how often each of 0 … `number` - 1 occurs in `which` (H, W).

    >>> occurrences(np.array([[1, 0], [1, 1]], np.uint8), 3).tolist()
    [1, 3, 0]
    """
    counts = np.zeros(number, np.int64)
    # OpenCV counts in float32, which is exact up to 2²⁴.
    for block in _blocks(which, 2**24):
        part = which[block]
        if part.dtype in (np.uint8, np.uint16) and part.shape[1] <= 2**24:
            counts += cv2.calcHist([part], [0], None, [number], [0, number]).ravel().astype(np.int64)
        else:
            counts += np.bincount(part.ravel(), minlength=number)
    return counts


def _blocks(image: NDArray, pixels: int) -> Iterator[slice]:
    rows = max(1, pixels * len(image) // max(image.size, 1))
    return (slice(start, start + rows) for start in range(0, len(image), rows))


@cache
def _opencv_looks_16_bits_up() -> bool:
    """Whether this OpenCV has tables of 65,536 entries, as 5.0 does: 2.5 times as fast as NumPy's."""
    try:
        return int(cv2.LUT(np.full((1, 1), 2, np.uint16), np.arange(2**16, dtype=np.uint16))[0, 0]) == 2
    except cv2.error:
        return False


def lookup(values: NDArray, first: int, entries: NDArray) -> NDArray[np.float64]:
    """Send `values` through a lookup table whose first entry stands for `first` (PS3.3 C.11.1.1, C.11.2.1.1).

    Values before the table give its first entry, values behind it its last.

    >>> lookup(np.array([0, 10, 11, 99]), 10, np.array([5, 7, 9]))
    array([5., 5., 7., 9.])
    """
    # Compared as floats: a value outside the integers' range must not wrap round.
    position = np.clip(np.asarray(values, np.float64) - first, 0, len(entries) - 1).astype(np.int64)
    return entries[position].astype(np.float64)


def window(values: NDArray, center: float, width: float, function: str = "LINEAR") -> NDArray[np.float64]:
    """Apply a window and return [0, 1] (PS3.3 C.11.2.1.2 LINEAR, C.11.2.1.3 SIGMOID and LINEAR_EXACT).

    `width` must be at least 1 for LINEAR and positive for the others. Raises `ValueError` for another function.

    >>> window(np.array([0, 128, 255]), 128, 256).round(3)
    array([0.   , 0.502, 1.   ])
    >>> window(np.array([0, 128, 256]), 128, 256, "LINEAR_EXACT")
    array([0. , 0.5, 1. ])
    """
    x = np.asarray(values, np.float64)
    if function == "SIGMOID":
        # Clipped where exp overflows; the result is 0 or 1 there to the last bit of 16.
        return 1 / (1 + np.exp(np.clip(-4 * (x - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"function must be LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}")
    return stretch(x, center - width / 2, center + width / 2)


def stretch(values: NDArray, low: float, high: float) -> NDArray[np.float64]:
    """Map [low, high] to [0, 1] and clip; without a range between them it is a threshold: 1 above `low`.

    >>> stretch(np.array([0, 5, 10, 20]), 5, 15)
    array([0. , 0. , 0.5, 1. ])
    """
    x = np.asarray(values, np.float64)
    if not high > low:
        return (x > low).astype(np.float64)
    return np.clip((x - low) / (high - low), 0, 1)


def percentile_range(values: NDArray, counts: NDArray) -> tuple[float, float]:
    """Return the values at the two `PERCENTILES` of an image that has `counts[i]` pixels of `values[i]`.

    A percentile is the smallest value that at least that fraction of the pixels does not exceed: exact, and a value of
    the image. Where both are the same (a mask with few pixels set) the smallest and the largest value are returned.

    >>> percentile_range(np.arange(1000), np.ones(1000, int))
    (0.0, 998.0)
    >>> percentile_range(np.array([0, 1]), np.array([9999, 1]))
    (0.0, 1.0)
    """
    here = counts > 0
    if not here.any():
        return 0.0, 0.0
    ascending = np.argsort(values[here], kind="stable")
    values, counts = values[here][ascending], counts[here][ascending]
    at = np.searchsorted(np.cumsum(counts), np.array(PERCENTILES) * counts.sum())
    low, high = float(values[at[0]]), float(values[min(at[1], len(values) - 1)])
    return (low, high) if high > low else (float(values[0]), float(values[-1]))


def spread(stored: NDArray) -> NDArray[np.uint16]:
    """Return an image without a header to go by (16-bit PNG, TIFF, PGM) over 0 … 65535, between its `PERCENTILES`.

    What is not finite is black.

    >>> spread(np.array([[0, 1000], [2000, 4000]], np.uint16))
    array([[    0, 16384],
           [32768, 65535]], dtype=uint16)
    """
    values, which = levels(stored)
    finite = np.isfinite(values)
    counts = occurrences(which, len(values)) * finite
    return through(quantise(np.where(finite, stretch(values, *percentile_range(values, counts)), 0)), which)


def quantise(shown: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round [0, 1] to 0 … 65535."""
    return np.rint(shown * 65535).astype(np.uint16)
