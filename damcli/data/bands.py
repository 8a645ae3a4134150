"""A column of the labels as groups of scans to compare: its values, or bands of numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli.data.sources import UNKNOWN
from damcli.data.units import SEVERAL
from damcli.errors import DataError

# More values of text than this tell scans apart and not groups of them.
MOST_TEXTS = 20
# More numbers than this are put into bands.
MOST_NUMBERS = 10
# An age from here on is a code for one that is not known, such as 999.
OLDEST = 130
AGES = (("0–17", 0, 18), ("18–39", 18, 40), ("40–64", 40, 65), ("65–79", 65, 80), ("80+", 80, OLDEST))
MISSING = "missing"

Mask = npt.NDArray[np.bool_]


class Groups(NamedTuple):
    """The group of each scan (n,), the names of the groups that have a scan, in order, and what to say of them."""

    groups: list[str]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def groups_of(cells: pl.Series, where: object = None) -> Groups:
    """Return the groups of scans by a column of text or numbers, (n,), which is called as the column is.

    Values are groups, in ascending order; then come `SEVERAL`, which stands for a unit whose scans differ, and
    `MISSING`, the scans without a value (blank, "unknown", …). More than 10 numbers become bands: of ages (a column
    called age, in any case) 0–17, 18–39, 40–64, 65–79 and 80+; of others the quarters of the scans that have one, equal
    numbers together. Numbers may be written as text. Raises `DataError`, with `where`, for more than 20 values of text,
    a column without values, and one that holds neither text nor numbers.

    >>> groups_of(pl.Series("sex", ["M", None, "F", "M"])).groups
    ['M', 'missing', 'F', 'M']
    >>> groups_of(pl.Series("Age", [3, 18, 39, 40, 64, 65, 79, 80, 99, 17, 101])).names
    ('0–17', '18–39', '40–64', '65–79', '80+')
    """
    place = f"{where}, column {cells.name!r}" if where else f"column {cells.name!r}"
    if cells.dtype.is_nested() or cells.dtype in (pl.Binary, pl.Object):
        raise DataError(f"this column holds neither text nor numbers but {cells.dtype}", where=place)
    # -1 may be a number here: only a table that means "not known" by it says so, when it is read.
    unknown = [MISSING, *(word for word in UNKNOWN if not word.startswith("-"))]
    texts = cells.cast(pl.String).str.strip_chars()
    texts = pl.select(pl.when(~texts.str.to_lowercase().is_in(unknown)).then(texts)).to_series()
    if texts.null_count() == len(texts):
        raise DataError("this column has no values", where=place, fix="choose another for --subgroups")
    several = texts.eq(SEVERAL).fill_null(False).to_numpy()
    known = texts.is_not_null().to_numpy() & ~several
    values = texts.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    notes: tuple[str, ...] = ()
    if not np.isfinite(values[known]).all():
        bands = _by_text(texts.filter(known), texts, place)
    elif len(np.unique(values[known])) <= MOST_NUMBERS:
        bands = {f"{value:.15g}": values == value for value in np.unique(values[known]).tolist()}
    elif cells.name.strip().lower() == "age":
        bands = {name: (values >= low) & (values < end) for name, low, end in AGES}
        if impossible := int(((values < 0) | (values >= OLDEST)).sum()):
            notes = (f"{impossible} ages are below 0, or {OLDEST} or above: they count as {MISSING}",)
    else:
        bands = _quarters(values)
    groups = np.full(len(texts), MISSING, object)
    for name, held in (bands | {SEVERAL: several}).items():
        groups[held] = name
    there = set(groups.tolist())
    return Groups(groups.tolist(), tuple(name for name in (*bands, SEVERAL, MISSING) if name in there), notes)


def _by_text(known: pl.Series, texts: pl.Series, place: str) -> dict[str, Mask]:
    values = sorted(known.unique().to_list())
    if len(values) > MOST_TEXTS:
        raise DataError(
            f"this column has {len(values)} different values of text, too many for groups of scans",
            where=place,
            fix=f"make a column with at most {MOST_TEXTS} of them",
        )
    return {value: texts.eq(value).fill_null(False).to_numpy() for value in values}


def _quarters(values: npt.NDArray[np.float64]) -> dict[str, Mask]:
    """Return up to four bands with about as many scans; where one ends is a value that is there."""
    known = values[~np.isnan(values)]
    ends = np.unique(np.quantile(known, [0.25, 0.5, 0.75, 1], method="inverted_cdf")).tolist()
    bands = {f"≤ {ends[0]:.15g}": values <= ends[0]}
    for low, high in pairwise(ends):
        name = f"> {low:.15g}" if high == ends[-1] else f"> {low:.15g} to {high:.15g}"
        bands[name] = (values > low) & (values <= high)
    return bands
