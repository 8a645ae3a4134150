"""The films of the original DDSM: `.LJPEG` images with their case description (`.ics`) and annotations (`.OVERLAY`).

FORMATS section 5. An image alone does not say its own shape or scanner; the case description beside it does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli.data import ljpeg
from damcli.dicom.greyscale import quantise, spread, through
from damcli.errors import DataError

# DDSM's optical densities are good in this range; what lies outside is clipped.
DENSITY = (0.05, 3.0)
# Neighbours of a film differ by about a hundredth of the range (median): more than this share of it, along the rows or
# down the columns, and a wrong predictor was used.
ROUGH = 1 / 32
STEPS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # (row, column), 0 = north, clockwise
NAME = re.compile(r"(?P<case>[A-D]_\d{4}_\d)\.(?P<view>(?:LEFT|RIGHT)_(?:CC|MLO))\.(?:LJPEG|OVERLAY)", re.IGNORECASE)


class View(NamedTuple):
    """A film of a case: `lines` of `pixels` values of `bits`, and whether lesions are annotated."""

    lines: int
    pixels: int
    bits: int
    overlay: bool


class Case(NamedTuple):
    """What an `.ics` says: the films by view (LEFT_CC …), the scanner, age and density 1 to 4 (None: blank)."""

    views: dict[str, View]
    scanner: str
    age: int | None
    density: int | None


class Lesion(NamedTuple):
    """An abnormality of an `.OVERLAY`: its pathology, types, and the box of its boundary (x, y, width, height)."""

    pathology: str
    types: tuple[str, ...]
    box: tuple[int, int, int, int]


def read(data: bytes, file: Path, scale: Literal["grey", "density"]) -> NDArray[np.uint16]:
    """Return a film as shown, uint16 (lines, pixels) over 0 … 65535, from its `.LJPEG` and the `.ics` beside it.

    "grey": the stored values between their percentiles, as deep pictures without a header are shown. "density": the
    optical density on the scanner's curve, 0.05 white and 3.0 black, so that scanners agree. Raises `DataError` where
    the case is not described, or the pixels cannot be right.
    """
    stored, case = stored_values(data, file)
    if scale == "grey":
        return spread(stored)
    low, high = DENSITY
    curve = optical_density(np.arange(2**16), case.scanner, file.name[0])
    return through(quantise((high - np.clip(curve, low, high)) / (high - low)), stored)


def stored_values(data: bytes, file: Path) -> tuple[NDArray[np.uint16], Case]:
    """Return a film's values as they were digitised, uint16 (lines, pixels), and its case. Raises `DataError`.

    Some files have width and height exchanged in their header, while their pixels are in order: the case
    description counts.
    """
    name = NAME.fullmatch(file.name)
    if name is None:
        raise DataError("a lossless JPEG by itself: only DDSM's, named like A_1614_1.LEFT_CC.LJPEG, can be read")
    case = read_case(beside(file, name["case"]))
    view = case.views.get(name["view"].upper())
    if view is None:
        raise DataError("the case description (.ics) does not list this film")
    frame = ljpeg.parse(data)
    if frame.rows * frame.columns != view.lines * view.pixels:
        raise DataError(
            f"the file has {frame.columns} x {frame.rows} pixels, its case description {view.pixels} x {view.lines}"
        )
    found = ljpeg.decode(data).reshape(view.lines, view.pixels)
    if int(found.max()) >= 2**view.bits:
        raise DataError(f"the film has values above its {view.bits} bits: it is not decoded rightly")
    if max(_roughness(found), _roughness(found.T)) > ROUGH * 2**view.bits:
        raise DataError("the film's neighbouring pixels do not resemble each other: it is not decoded rightly")
    return found, case


def _roughness(values: NDArray[np.uint16]) -> float:
    """The median absolute difference of neighbours along the rows; some hundred rows tell."""
    some = values[:: max(1, len(values) // 512)].astype(np.int32)
    return float(np.median(np.abs(np.diff(some, axis=1)))) if some.shape[1] > 1 else 0.0


def beside(file: Path, case: str) -> Path:
    """Return where the case description of a film lies: A_1614_1 is described in A-1614-1.ics."""
    return file.with_name(case.replace("_", "-").upper() + ".ics")


def optical_density(grey: NDArray[np.integer], scanner: str, site: str) -> NDArray[np.float64]:
    """Return the optical density of grey values on a scanner; `site` is the first letter of a case's name.

    The curves are the owner's calibrations (FORMATS section 5.5). Raises `DataError` for an unknown scanner.

    >>> optical_density(np.array([0, 4000]), "HOWTEK", "A").round(3)
    array([3.789, 0.006])
    """
    values = grey.astype(np.float64)
    if scanner.startswith("DBA"):
        # The value 0 occurs, and has no logarithm.
        return np.asarray((np.log10(values + 1) - 4.80662) / -1.07553)
    if scanner.startswith("LUMISYS"):
        return (values - 4096.99) / -1009.01
    if scanner.startswith("HOWTEK"):
        return 3.96604095240593 - 0.00099055807612 * values if site.upper() == "D" else 3.789 - 0.00094568 * values
    raise DataError("the case description names no scanner with a known density curve")


def read_case(path: Path) -> Case:
    """Read a case description. Raises `DataError` if it is missing or describes no film."""
    lines = [line.split() for line in _text(path, "case description (.ics)").splitlines() if line.strip()]
    views = {}
    for words in lines:
        if "LINES" not in words:
            continue
        try:
            lines_, pixels, bits = (
                int(words[words.index(key) + 1]) for key in ("LINES", "PIXELS_PER_LINE", "BITS_PER_PIXEL")
            )
        except (ValueError, IndexError) as error:
            raise DataError(f"the case description of {words[0]} cannot be read", where=path) from error
        if not (lines_ > 0 < pixels and 0 < bits <= 16):
            raise DataError(f"the case description claims {pixels} x {lines_} pixels of {bits} bits", where=path)
        views[words[0].upper()] = View(lines_, pixels, bits, "OVERLAY" in words)
    if not views:
        raise DataError("the case description lists no film", where=path)
    said = {words[0]: words[1:] for words in lines}
    return Case(
        views, " ".join(said.get("DIGITIZER", [])).upper(), _whole(said.get("PATIENT_AGE")), _whole(said.get("DENSITY"))
    )


def read_overlay(path: Path) -> list[Lesion]:
    """Read the abnormalities of an `.OVERLAY`. Raises `DataError` if it is none, or lists fewer than it announces.

    A chain that leaves the image is kept; the box is cut by whoever reads the image.
    """
    head, *blocks = re.split(r"^ABNORMALITY\s+\d+", _text(path, "annotation (.OVERLAY)"), flags=re.MULTILINE)
    lesions = []
    for block in blocks:
        pathology = re.search(r"^PATHOLOGY[ \t]+(\S+)", block, re.MULTILINE)
        boundary = re.search(r"^BOUNDARY\s+(\d+)\s+(\d+)((?:\s+[0-7])*)\s*#", block, re.MULTILINE)
        if pathology is None or boundary is None:
            raise DataError("an abnormality has no pathology or no boundary", where=path)
        types = re.findall(r"^LESION_TYPE\s+(\S+)", block, re.MULTILINE)
        lesions.append(Lesion(pathology[1].upper(), tuple(types), _box(*boundary.groups())))
    announced = re.search(r"^TOTAL_ABNORMALITIES\s+(\d+)", head, re.MULTILINE)
    if not lesions or (announced is not None and len(lesions) < int(announced[1])):
        raise DataError("the annotation lists no abnormality, or fewer than it announces", where=path)
    return lesions


def _box(column: str, row: str, chain: str) -> tuple[int, int, int, int]:
    """The box around a chain code, which starts at column, then row."""
    moves = np.array([STEPS[int(step)] for step in chain.split()], np.int64).reshape(-1, 2)
    points = np.maximum(np.cumsum(np.vstack([[int(row), int(column)], moves]), axis=0), 0)
    (top, left), (bottom, right) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right - left + 1, bottom - top + 1


def _whole(words: list[str] | None) -> int | None:
    return int(words[0]) if words and words[0].isdigit() else None


def _text(path: Path, kind: str) -> str:
    try:
        return path.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"the {kind} of this film is missing", where=path) from error
