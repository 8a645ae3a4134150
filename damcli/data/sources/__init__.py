"""Readers of downloads, one module per format. Each returns a `Source`: what lies there, and nothing decoded."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from damcli.data.labels import Policy
from damcli.errors import DataError, UsageError


@dataclass(frozen=True)
class Source:
    """The scans of a download, as its tables describe them.

    `scans` has a row per scan: id (unique, relative to `root`, with /), path (absolute), patient, study, view, split
    (text, null where not known), one float column "label:<finding>" (1, 0, -1, a share of readers between 0 and 1,
    null = blank) per finding, then metadata columns. `refused` holds (path as written, reason) of rows that name no
    scan inside `root`. `size`, `channels` and `fit` are what the source is prepared at unless another is asked for.
    Where a file holds many scans, `path` is that file and `pixels(first)` yields the scans in the order of `scans` from
    row `first` on, uint8 (H, W) or (H, W, 3), or the `DataError` that says why one cannot be shown. A column "fold"
    (0, 1, … or null) gives folds; where it gives none, `folds` is how many are made unless another number is asked for.
    `url` says where `root` lies, where it is a mirror of that (`data.remote`).
    """

    name: str
    root: Path
    scans: pl.DataFrame
    findings: list[str]
    policies: dict[str, Policy]
    notes: list[str]
    refused: list[tuple[str, str]] = field(default_factory=list)
    size: int = 224
    channels: Literal[1, 3] = 1
    fit: Literal["pad", "stretch", "crop"] = "pad"
    folds: int | None = None
    pixels: Callable[[int], Iterator[NDArray[np.uint8] | DataError]] | None = None
    url: str | None = None


def read_csv(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a CSV, also one packed as `.gz`, as text columns, blanks as "".

    UTF-8, Latin-1, or UTF-16 with its mark (Excel's "Unicode text"); comma, semicolon or tab. Rows of blank cells and
    further columns without a name, which spreadsheets leave behind, are passed over. `columns` names those to keep, as
    far as they are there: others may hold gigabytes of text.

    Raises `UsageError` if there is no such file, `DataError` if it has no header, a name twice, no row, or a row of
    another length (with its line).
    """
    try:
        with _opened(path, _encoding(path)) as text:
            return _parsed(text, path, columns)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("this .gz file is cut off or damaged", where=path, fix="fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError("this text is cut off or damaged: it says that it is UTF-16", where=path) from error
    except OSError as error:
        raise UsageError(f"this table cannot be read: {error.strerror}", where=path) from error


def _opened(path: Path, encoding: str) -> TextIO:
    opening = gzip.open if path.suffix.lower() == ".gz" else open
    return cast(TextIO, opening(path, "rt", encoding=encoding, newline=""))


def _encoding(path: Path) -> str:
    """Return what a file of text is written in: UTF-8 if all of it is; UTF-16 if it says so; else Latin-1."""
    with _opened(path, "latin-1") as text:
        if text.read(2) in ("\xff\xfe", "\xfe\xff"):
            return "utf-16"
    try:
        with _opened(path, "utf-8") as text:
            while text.read(2**20):
                pass
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _parsed(text: TextIO, path: Path, wanted: Sequence[str] | None) -> pl.DataFrame:
    first = text.readline()
    text.seek(0)
    rows = csv.reader(text, delimiter=max(",;\t", key=first.count), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise DataError(
                f"the header names a column twice: {', '.join(twice)}", where=path, fix="rename one of them"
            )
        kept = {name: at for at, name in enumerate(header) if wanted is None or name in wanted}
        columns: dict[str, list[str]] = {name: [] for name in kept}
        empty = True
        for row in rows:
            if len(row) not in (0, len(header)):
                what = f"line {rows.line_num} has {len(row)} fields, the header {len(header)}"
                raise DataError(what, where=path, fix=AS_GIVEN)
            if any(cell.strip() for cell in row):
                empty = False
                for name, at in kept.items():
                    columns[name].append(row[at].strip())
    except csv.Error as error:
        raise DataError(f"this is no CSV: {error}", where=f"{path}, line {rows.line_num}") from error
    if not header or empty:
        raise DataError("this table is empty", where=path, fix="fetch it again")
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


# What mends most tables that are refused.
AS_GIVEN = "correct it, or take the table as it was given out"


def need(table: pl.DataFrame, columns: Sequence[str], path: Path, fix: str | None = None) -> None:
    """Raise `DataError` naming the first of `columns` that `table`, read from `path`, has not."""
    for name in columns:
        if name not in table.columns:
            known = ", ".join(column for column in table.columns if column)
            raise DataError(f"the table has no column {name!r}; it has: {known}", where=path, fix=fix or AS_GIVEN)


def check_rows(good: pl.Series, what: str, path: Path, column: str | None = None, fix: str | None = None) -> None:
    """Raise `DataError` naming the first row of a table, read from `path`, that is not `good` (null is not).

    >>> check_rows(pl.Series([True, None]), "the age is none", Path("a.csv"), "age")
    Traceback (most recent call last):
    ...
    damcli.errors.DataError: the age is none
      where: a.csv, row 2 below the header, column 'age'
      fix: correct it, or take the table as it was given out
    """
    bad = (~good.fill_null(False)).arg_true()
    if len(bad):
        where = f"{path}, row {int(bad[0]) + 1} below the header"
        raise DataError(what, where=where if column is None else f"{where}, column {column!r}", fix=fix or AS_GIVEN)


def check_same(cells: pl.Series, unit: pl.Series, what: str, path: Path, column: str | None = None) -> None:
    """Raise `DataError` naming the first row whose cell is another than that of its `unit`'s first row.

    Rows without a unit (null) are each one of their own. Rows and message are those of `check_rows`.
    """
    rows = pl.DataFrame({"cell": cells, "unit": unit})
    same = pl.col("unit").is_null() | pl.col("cell").eq_missing(pl.col("cell").first().over("unit"))
    check_rows(rows.select(same).to_series(), what, path, column)


def parse_labels(cells: pl.Series, path: Path) -> pl.Series:
    """Turn the text of a label column into 1, 0, -1 or null (blank). Raises `DataError` with the row otherwise."""
    blank = cells.is_null() | (cells == "") | (cells.str.to_lowercase() == "nan")
    values = cells.cast(pl.Float64, strict=False)
    check_rows(
        blank | values.is_in([-1.0, 0.0, 1.0]).fill_null(False),
        "a label is neither 1, 0, -1 (uncertain) nor blank",
        path,
        cells.name,
        fix="write the labels so, or name other label columns",
    )
    return pl.select(pl.when(~blank).then(values).alias(cells.name)).to_series()


def place(names: Sequence[str], root: Path) -> tuple[list[str | None], list[str]]:
    """Return each name's id inside `root`, None where it leaves it, and a reason ("" where it does not).

    >>> place(["a/x.png", "/etc/passwd", "../x.png", ""], Path("/data"))[0]
    ['a/x.png', None, None, None]
    """
    top = os.path.abspath(root)  # noqa: PTH100  (symlinks stay as they are)
    inside = top.rstrip(os.sep) + os.sep
    ids: list[str | None] = []
    reasons: list[str] = []
    for name in names:
        full = os.path.normpath(os.path.join(top, name))  # noqa: PTH118
        if not name or "\0" in name:
            ids.append(None)
            reasons.append("the row names no file")
        elif not full.startswith(inside):
            ids.append(None)
            reasons.append("the path leaves the folder of scans")
        else:
            ids.append(full[len(inside) :].replace(os.sep, "/"))
            reasons.append("")
    return ids, reasons


def assemble(names: Sequence[str], root: Path, columns: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
    """Return (scans, refused): `columns` under each scan's id and path, without the rows that leave `root`.

    Raises `DataError` if two rows name one scan.
    """
    ids, reasons = place(names, root)
    refused = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
    top = os.path.abspath(root)  # noqa: PTH100
    scans = columns.select(
        pl.Series("id", ids, pl.String),
        pl.Series("path", [None if i is None else os.path.join(top, i) for i in ids], pl.String),  # noqa: PTH118
        pl.all(),
    ).filter(pl.col("id").is_not_null())
    refuse_twice(scans)
    return scans, refused


def table_of(
    ids: Sequence[str],
    paths: Sequence[str | Path],
    labels: Mapping[str, Sequence[float | None] | pl.Series],
    *,
    patient: Sequence[str | None] | pl.Series | None = None,
    study: Sequence[str | None] | pl.Series | None = None,
    view: Sequence[str | None] | pl.Series | None = None,
    split: Sequence[str | None] | pl.Series | None = None,
    **metadata: Sequence[object] | pl.Series,
) -> pl.DataFrame:
    """Return the scans as `Source` has them; what is not given is not known. Raises `DataError` for an id given twice.

    >>> table_of(["a"], ["/a.png"], {"Edema": [1]}, age=[60]).columns
    ['id', 'path', 'patient', 'study', 'view', 'split', 'label:Edema', 'age']
    """
    texts = {"patient": patient, "study": study, "view": view, "split": split}
    unknown = [None] * len(ids)
    scans = pl.DataFrame([
        pl.Series("id", ids, pl.String),
        pl.Series("path", [str(path) for path in paths], pl.String),
        *(pl.Series(name, unknown if cells is None else cells, pl.String) for name, cells in texts.items()),
        *(pl.Series(f"label:{finding}", cells, pl.Float64, strict=False) for finding, cells in labels.items()),
        *(pl.Series(name, cells) for name, cells in metadata.items()),
    ])  # fmt: skip
    refuse_twice(scans)
    return scans


def refuse_twice(scans: pl.DataFrame) -> None:
    """Raise `DataError` if two rows name one scan."""
    twice = scans.filter(pl.col("id").is_duplicated())
    if len(twice):
        raise DataError(
            f"{twice['id'].n_unique()} scans are in the table more than once",
            where=twice["id"][0],
            fix="keep one row per scan",
        )


def files_below(root: Path) -> Iterator[Path]:
    """Yield every file below a folder, folder by folder, sorted; links to folders are followed, none is visited twice.

    Links that lead above the folder are not followed: what lies beside it is not below it. Raises `UsageError` for a
    folder that cannot be read: its scans would be missed.
    """

    def refuse(problem: OSError) -> None:
        raise UsageError(f"this folder cannot be read: {problem.strerror}", where=problem.filename) from problem

    above = (os.stat(folder) for folder in Path(root).resolve().parents)  # noqa: PTH116
    visited = {(status.st_dev, status.st_ino) for status in above}
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def locate(path: str) -> Path:
    """Return the file that `path` means; a name that exists only in Latin-1 (an old archive's) is found too."""
    if not os.path.lexists(path):
        try:
            older = os.fsdecode(path.encode("latin-1"))
        except UnicodeEncodeError:
            return Path(path)
        if os.path.lexists(older):
            return Path(older)
    return Path(path)


def as_text(name: str) -> str:
    """Return a file's name as text; one in Latin-1 as that, by which `locate` finds the file.

    >>> as_text(os.fsdecode(b"R\\xf6ntgen.png"))
    'Röntgen.png'
    """
    try:
        return name.encode().decode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")


# What tables write where something is not known.
UNKNOWN = ("", "nan", "none", "null", "n/a", "na", "unknown", "-1", "-1.0")


def known(cells: pl.Series) -> pl.Series:
    """Return ids or facts with null where they are not known: scans without a patient must not become one patient.

    >>> known(pl.Series(["p1", "NaN", ""])).to_list()
    ['p1', None, None]
    """
    return pl.select(pl.when(~cells.str.to_lowercase().is_in(UNKNOWN)).then(cells).alias(cells.name)).to_series()


# Days in what ages are counted in.
UNITS = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}


def years(cells: pl.Series) -> pl.Series:
    """Return ages, such as 58, 58.0, 58,0, 058Y or 006M (DICOM PS3.5, AS), in years; null if none or not in 0 to 100.

    >>> years(pl.Series(["058Y", "58,5", "006M", "411", ""])).to_list()
    [58.0, 58.5, 0.5, None, None]
    """
    parts = (
        cells.str.to_uppercase()
        .str.replace(",", ".", literal=True)
        .str.extract_groups(r"^(?<number>[0-9]+(?:\.[0-9]+)?)(?<unit>[YMWD]?)$")
        .struct.unnest()
    )
    days = parts["unit"].replace("", "Y").replace_strict(UNITS, default=None, return_dtype=pl.Float64)
    ages = parts["number"].cast(pl.Float64) * days / UNITS["Y"]
    return pl.select(pl.when(ages <= 100).then(ages).alias(cells.name)).to_series()


def strange_ages(ages: pl.Series, cells: pl.Series) -> list[str]:
    """Return, as a note, how many `cells` say something that is no age in years, or nothing where all do.

    >>> strange_ages(years(pl.Series(["58", "411", ""])), pl.Series(["58", "411", ""]))
    ['1 ages are above 100 or none: they count as not known']
    """
    strange = int((ages.is_null() & known(cells).is_not_null()).sum())
    return [f"{strange} ages are above 100 or none: they count as not known"] if strange else []


def blank_to_null(cells: pl.Series) -> pl.Series:
    """Return text with "" as null.

    >>> blank_to_null(pl.Series(["a", ""])).to_list()
    ['a', None]
    """
    return cells.replace("", None)
