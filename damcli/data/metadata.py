"""Metadata of scans, such as age, sex and site, as numbers: which columns may be used, and how cells are encoded.

Needs no torch: `predict` encodes with what lies in the model. Cells count as text or number whatever type a table has
them in; blanks and words such as "unknown" are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from damcli.config import Strict
from damcli.errors import DataError

if TYPE_CHECKING:
    import polars as pl

# With more values than this, text tells scans apart and not groups of them.
MOST_VALUES = 50
# In standard deviations: a slip of the pen such as an age of 6500 must not swamp the other columns.
FARTHEST = 10.0
# Columns of a manifest that are no metadata.
OWN = ("id", "path", "patient", "study", "split", "fold", "shard", "row", "remark")
# Words in the name of a column that tells of something else than the patient.
WORDS = {
    "the file": ("file", "files", "filename", "filesize", "path", "bytes"),
    "the scan": ("scan", "scans", "image", "images", "nimages", "img", "imgs", "pixels", "dicom"),
    "a name or number given to it": ("id", "ids", "uid", "accession"),
    "the label itself": ("label", "labels", "target", "class", "diagnosis", "pathology", "benign", "malignant"),
}
# Names that, alone, are the image's shape or the file's size; tumour_size is another thing.
SHAPES = ("width", "height", "rows", "columns", "cols", "size")

Rows = npt.NDArray[np.float32]


class Numbers(Strict):
    """A column of numbers as (standardised value, or 0 where missing; 1 where missing)."""

    kind: Literal["numbers"] = "numbers"
    column: str = Field(min_length=1)
    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)
    leak: str | None = Field(default=None, description="why it may tell of the label, where that was let pass")

    @property
    def width(self) -> int:
        return 2

    def encode(self, cells: pl.Series, where: object) -> Rows:
        values = _numbers(cells, where)
        known = ~np.isnan(values)
        with np.errstate(over="ignore"):
            scaled = ((np.where(known, values, self.mean) - self.mean) / self.std).clip(-FARTHEST, FARTHEST)
        return np.column_stack([scaled, ~known]).astype(np.float32)


class Categories(Strict):
    """A column of text as one-hot: a place for each of `values`, one for any other text, and one for none."""

    kind: Literal["categories"] = "categories"
    column: str = Field(min_length=1)
    values: tuple[str, ...] = Field(min_length=1, max_length=MOST_VALUES)
    leak: str | None = Field(default=None, description="as of numbers")

    @property
    def width(self) -> int:
        return len(self.values) + 2

    def encode(self, cells: pl.Series, where: object) -> Rows:
        place = {value: at for at, value in enumerate(self.values)} | {None: len(self.values) + 1}
        places = [place.get(cell, len(self.values)) for cell in _texts(cells)]
        return np.eye(self.width, dtype=np.float32)[places]


class Doubt(NamedTuple):
    """How many scans have nothing in a column, and how many a category that was not met in training."""

    column: str
    missing: int
    unseen: int


class Encoding(Strict):
    """How the columns become float32 (N, `width`), side by side; fitted by `fit` on the scans that are trained on."""

    columns: tuple[Annotated[Numbers | Categories, Field(discriminator="kind")], ...] = Field(min_length=1)

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [part.column for part in self.columns]

    @property
    def leaks(self) -> list[str]:
        """Why the figures may flatter: columns that were let pass though they may tell of the label."""
        texts = [f"{part.leak} (--allow-leaks): the figures flatter" for part in self.columns if part.leak]
        return list(dict.fromkeys(texts))

    @property
    def width(self) -> int:
        """The number of values that a scan has."""
        return sum(part.width for part in self.columns)

    @property
    def spans(self) -> list[slice]:
        """Where each column's values lie."""
        ends = np.cumsum([part.width for part in self.columns]).tolist()
        return [slice(end - part.width, end) for end, part in zip(ends, self.columns, strict=True)]

    def encode(self, table: pl.DataFrame, where: object = None) -> Rows:
        """Return the rows of `table` as float32 (N, width); a column that it has not is missing for all.

        Raises `DataError`, with `where` and the row, for text in a column of numbers.
        """
        rows = np.repeat(self.nothing[None], len(table), axis=0)
        for part, span in zip(self.columns, self.spans, strict=True):
            if part.column in table.columns:
                rows[:, span] = part.encode(table[part.column], where)
        return rows

    @property
    def nothing(self) -> Rows:
        """The values (width,) of a scan of which nothing is known."""
        row = np.zeros(self.width, np.float32)
        row[[span.stop - 1 for span in self.spans]] = 1
        return row

    def doubts(self, rows: Rows) -> list[Doubt]:
        """Count, for each column, the encoded rows (N, width) that are missing or unseen there.

        A column that is there for several networks is counted once, by the one that has seen least.
        """
        found: dict[str, Doubt] = {}
        for part, span in zip(self.columns, self.spans, strict=True):
            missing, unseen = int(rows[:, span.stop - 1].sum()), 0
            if isinstance(part, Categories):
                unseen = int(rows[:, span.stop - 2].sum())
            found[part.column] = max(
                found.get(part.column, Doubt(part.column, 0, 0)), Doubt(part.column, missing, unseen)
            )
        return list(found.values())


def fit(scans: pl.DataFrame, columns: Sequence[str], leaks: Mapping[str, str] = MappingProxyType({})) -> Encoding:
    """Return the encoding of `columns`, from the scans that are trained on and no others; `leaks` goes with them.

    Numbers are standardised by the mean and the standard deviation of those known; other columns are categories.
    Raises `DataError` for a column that says nothing (empty, or the same for every scan), holds lists, or has more
    than 50 categories.

    >>> import polars as pl
    >>> encoding = fit(pl.DataFrame({"age": [40, 60, None], "sex": ["f", "m", "f"]}), ["age", "sex"])
    >>> encoding.encode(pl.DataFrame({"age": ["70", ""], "sex": ["F", "x"]}))
    array([[2., 0., 1., 0., 0., 0.],
           [0., 1., 0., 0., 1., 0.]], dtype=float32)
    """
    fitted = [_fit(scans[name]).model_copy(update={"leak": leaks.get(name)}) for name in columns]
    return Encoding(columns=tuple(fitted))


def _fit(cells: pl.Series) -> Numbers | Categories:
    name = cells.name
    if cells.dtype.is_nested() or str(cells.dtype) in ("Binary", "Object"):
        raise DataError(f"the column {name!r} holds {cells.dtype} values, neither numbers nor text", fix=LEAVE_OUT)
    values = _numbers(cells, None) if cells.dtype.is_numeric() else np.array(_texts(cells), object)
    known = [value for value in values.tolist() if value is not None and value == value]
    distinct = sorted(set(known))
    if not distinct or (len(distinct) == 1 and len(known) == len(values)):
        what = "is empty" if not distinct else "is the same for every scan"
        raise DataError(f"the column {name!r} {what} in train: there is nothing to learn from it", fix=LEAVE_OUT)
    if cells.dtype.is_numeric():
        # Of one number and blanks, the blanks are what there is to learn from.
        return Numbers(column=name, mean=float(np.mean(known)), std=float(np.std(known)) or 1.0)
    if len(distinct) > MOST_VALUES:
        raise DataError(
            f"the column {name!r} has {len(distinct)} different values in train, of which {MOST_VALUES} are the most",
            fix="group them, or " + LEAVE_OUT,
        )
    return Categories(column=name, values=tuple(distinct))


LEAVE_OUT = "leave it out of metadata.columns"


def choose(columns: Sequence[str], manifest: pl.DataFrame) -> list[str]:
    """Return the names of metadata columns, spelled as in `manifest`.

    Raises `UsageError`, with the nearest name, for one that is not there or no metadata, and for one given twice.
    """
    from damcli.data import labels

    usable = [name for name in manifest.columns if name not in OWN and not name.startswith(("label:", "target:"))]
    return labels.choose(columns, usable, "metadata column", "metadata.columns")


def leaks(scans: pl.DataFrame, columns: Sequence[str], findings: Sequence[str]) -> dict[str, str]:
    """Return the columns that tell of the label and not of the patient, with the reason in words: by the name, as the
    number of a patient's scans, or because the column alone ranks a finding's scans (`audit`).

    `scans` are the rows of a manifest that are trained on.
    """
    import polars as pl

    from damcli.data import audit

    known = ["id", "patient", "study", "split", *(f"label:{finding}" for finding in findings)]
    found: dict[str, str] = {}
    for name in columns:
        # Trained on is what a fold leaves, too, and the audit looks at train alone.
        trained = scans.select(*known, name).with_columns(split=pl.lit("train"))
        if about := _about(name):
            found[name] = f"the column {name!r} tells of {about} by its name, not of the patient"
        elif _counts_scans(scans, name):
            found[name] = f"the column {name!r} is the number of the patient's scans"
        elif texts := [concern.text for concern in audit.of_table(trained, findings) if concern.kind == "column"]:
            found[name] = texts[0]
    return found


def refusal(leak: str) -> DataError:
    """Return the error of a column that `leaks` found."""
    return DataError(
        f"{leak}: a network may learn how the data were gathered",
        fix=f"{LEAVE_OUT} (rename it where it is the patient's), or use it all the same: --allow-leaks",
    )


def _about(column: str) -> str | None:
    """Return what a column tells of by its name, None where that is the patient.

    >>> _about("ImageCount"), _about("height"), _about("tumour_size"), _about("patient_id")
    ('the scan', "the image's shape or the file's size", None, 'a name or number given to it')
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
    if len(words) == 1 and words[0] in SHAPES:
        return "the image's shape or the file's size"
    return next((what for what, telling in WORDS.items() if not set(words).isdisjoint(telling)), None)


def _counts_scans(scans: pl.DataFrame, column: str) -> bool:
    """Whether a column of numbers is how many scans the patient has here; so it is for too many to be by chance."""
    import polars as pl

    if not scans[column].dtype.is_numeric():
        return False
    counted = scans.select(column, "patient", n=pl.len().over("patient")).filter(
        pl.col("patient").is_not_null() & pl.col(column).is_not_null()
    )
    return counted["n"].n_unique() > 1 and bool((counted[column] == counted["n"]).mean() > 0.9)  # type: ignore[operator]


def _texts(cells: pl.Series) -> list[str | None]:
    """Return cells as text in lower case, None where missing."""
    import polars as pl

    from damcli.data.sources import UNKNOWN

    text = cells.cast(pl.String).str.strip_chars().str.to_lowercase()
    # -1 is a number or a code here; whose table means "not known" by it, reads it so.
    missing = text.is_in([word for word in UNKNOWN if not word.startswith("-")])
    return pl.select(pl.when(~missing).then(text)).to_series().to_list()


def _numbers(cells: pl.Series, where: object) -> npt.NDArray[np.float64]:
    """Return cells as numbers, NaN where missing."""
    import polars as pl

    if cells.dtype.is_numeric():
        values = cells.cast(pl.Float64).fill_null(np.nan).to_numpy()
        return np.where(np.isfinite(values), values, np.nan)
    texts = pl.Series(_texts(cells), dtype=pl.String)
    numbers = texts.cast(pl.Float64, strict=False)
    wrong = (texts.is_not_null() & ~numbers.is_finite().fill_null(False)).arg_true()
    if len(wrong):
        row = f"row {int(wrong[0]) + 1} below the header, column {cells.name!r}"
        raise DataError(
            f"{len(wrong)} cells of a column of numbers are no numbers",
            where=f"{where}, {row}" if where else row,
            fix="write numbers, and nothing where it is not known",
        )
    return numbers.fill_null(np.nan).to_numpy()
