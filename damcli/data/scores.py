"""Tables keyed by scan: scores (`path,status,error,<finding>…`, as predict writes them) and labels (`path,<finding>…`).

Rows are joined by `path`, never by position, and columns by name; other columns do not matter. Two paths are the same
where they differ only in `\\` for `/`, in `./` or doubled `/`, or in how Unicode composes a letter. They differ by
anything else: ids are text, so `007` is not `7`, and `A.png` is not `a.png`. The columns that damcli itself names
(`labels.NO_FINDINGS`) are known in any case: CheXpert has a `Path`.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli import files
from damcli.data.labels import NO_FINDINGS, is_finding
from damcli.data.sources import need, parse_labels, read_csv
from damcli.errors import DataError, UsageError

# Predict puts a quote before a name that a spreadsheet would take for a formula.
QUOTED_FORMULA = r"^'([=+\-@\t\r])"
DECIMAL_COMMA = r"[-+]?\d*,\d+"


class Joined(NamedTuple):
    """Scores float64 (n, K) of the scans asked for; nan in the rows whose scan `failed`, bool (n,), to be scored.

    `unused` counts the rows of the table that no scan asked for.
    """

    scores: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    unused: int


@dataclass(frozen=True)
class ScanTable:
    """A table with a row per scan; `frame` holds its columns, `path` unique and never blank.

    `rows` int64 (n,) are the rows' places in the file, the first below the header being 1.
    """

    path: Path
    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> ScanTable:
        """Read a CSV (UTF-8, or UTF-16 as Excel's "Unicode text"; comma, semicolon or tab) or a Parquet file.

        Rows with the status `skipped` (no image) are left out. Raises `UsageError` if there is no such file,
        `DataError` if it is no table, has no column `path`, the header twice, or a path that is blank or there twice.
        """
        return cls.of(path, read_table(path))

    @classmethod
    def of(cls, path: Path, frame: pl.DataFrame) -> ScanTable:
        """Return the table that `frame`, read from `path`, is. Raises `DataError` as `read`."""
        need(frame, ["path"], path, fix="name the column of scan paths `path`, as damcli predict does")
        for name in ("path", *(column for column in ("patient", "study") if column in frame.columns)):
            ids = text(frame[name], path)
            frame = frame.with_columns(ids if path.suffix == ".parquet" else ids.str.replace(QUOTED_FORMULA, "$1"))
        rows = np.arange(1, len(frame) + 1)
        if "status" in frame.columns:
            status = text(frame["status"], path).str.strip_chars().str.to_lowercase()
            kept = status.ne_missing(pl.Series(["skipped"])).to_numpy()
            frame, rows = frame.with_columns(status).filter(kept), rows[kept]
        refuse_repeated([spelled(name or "") for name in frame["path"]], rows, "path", "scans", path)
        return cls(path, frame, rows)

    @property
    def ids(self) -> list[str]:
        """The scan ids, in the order of the table."""
        return self.frame["path"].to_list()

    @property
    def names(self) -> list[str]:
        """The columns that may be findings."""
        return list(filter(is_finding, self.frame.columns))

    @property
    def patients(self) -> list[str] | None:
        """The patient ids, "" where blank; None without a column `patient`."""
        return id_column(self.frame, "patient", self.path)

    def named(self, findings: Sequence[str]) -> ScanTable:
        """Return the table with its columns named as `findings` are, where they differ in case or blanks around alone.

        A column of the very name goes before others. Raises `DataError` where it is not clear which one is meant.
        """
        new: dict[str, str] = {}
        for finding in findings:
            meant = [] if finding in self.names else [name for name in self.names if _plain(name) == _plain(finding)]
            twins = [other for other in findings if _plain(other) == _plain(finding)]
            if meant and len(meant) + len(twins) > 2:
                listed = ", ".join(map(repr, meant))
                raise DataError(f"which is the column of {finding!r} is not clear: {listed}", where=self.path)
            new |= dict.fromkeys(meant, finding)
        return replace(self, frame=self.frame.rename(new))

    def labels(self, findings: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return raw labels, float64 (n, K): 1, 0, -1 (uncertain) or nan (blank). Raises `DataError` for others."""
        return raw_labels(self.frame, findings, self.path, self.rows)

    def scores(self, ids: Sequence[str], findings: Sequence[str], files: Sequence[str] = ()) -> Joined:
        """Return the scores of the scans `ids`, as float64.

        A row with the status `failed` has none, whatever its cells hold. Where the table has none of the ids, it may
        have the paths of their `files` below the folder that was scored. Raises `DataError` if a scan has no row, or
        shares it with another, or a score is no finite number: `True` is none, and neither is `0,73`, which may be
        a decimal or two cells.
        """
        need(self.frame, findings, self.path)
        place = {spelled(name): row for row, name in enumerate(self.ids)}
        keys = [spelled(name) for name in ids]
        if ids and files and not any(key in place for key in keys):
            keys = _below([spelled(file) for file in files], place) or keys
        missing = [name for name, key in zip(ids, keys, strict=True) if key not in place]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} scans have no row, first {missing[0]}"
                + (f" (the table's first is {self.ids[0]})" if len(missing) == len(ids) and place else ""),
                where=self.path,
                fix="score them all; `path` must be the scan's id in the dataset, or the labels' path",
            )
        rows = np.array([place[key] for key in keys], np.int64)
        if len(set(keys)) < len(keys):
            shared = next(key for key in keys if keys.count(key) > 1)
            raise DataError(
                f"a row may be of {keys.count(shared)} scans: {shared}",
                where=f"{self.path}, row {self.rows[place[shared]]} below the header",
                fix="rename the scans whose paths differ only in how they are written",
            )
        wanted = self.frame[rows]
        failed = np.zeros(len(rows), bool)
        if "status" in wanted.columns:
            failed = wanted["status"].eq_missing(pl.Series(["failed"])).to_numpy()
        scores = np.full((len(rows), len(findings)), np.nan)
        for column, name in enumerate(findings):
            numbers = _numbers(wanted[name], self.path)
            wrong = np.flatnonzero(~np.isfinite(numbers) & ~failed)
            if len(wrong):
                first = wanted[name][int(wrong[0])]
                comma = re.fullmatch(DECIMAL_COMMA, str(first).strip())
                raise DataError(
                    f"{len(wrong)} scores are no finite numbers, first {first!r}",
                    where=f"{self.path}, row {self.rows[rows[wrong[0]]]} below the header, column {name!r}",
                    fix="write decimals with a point" if comma else "give every scan a score, or the status `failed`",
                )
            scores[~failed, column] = numbers[~failed]
        return Joined(scores, failed, len(self.frame) - len(rows))


def spelled(path: str) -> str:
    """Return a path in the one way to write it in which paths are compared.

    >>> spelled(".\\\\a\\\\b.png"), spelled("a//./b.png"), spelled("Ro\\u0308ntgen") == "R\\u00f6ntgen"
    ('a/b.png', 'a/b.png', True)
    """
    return unicodedata.normalize("NFC", PurePosixPath(path.replace("\\", "/")).as_posix()) if path.strip() else ""


def write(path: Path, ids: Sequence[str], findings: Sequence[str], scores: npt.NDArray[np.floating]) -> None:
    """Write scores (n, K) as a Parquet file with the columns `path` and one per finding, whole or not at all."""
    columns = {name: scores[:, column] for column, name in enumerate(findings)}
    # In memory first: then it is the operating system, not polars, that says when the disk is full.
    buffer = io.BytesIO()
    pl.DataFrame({"path": list(ids), **columns}).write_parquet(buffer)
    with files.replacing(path) as draft:
        draft.write_bytes(buffer.getvalue())


def _below(files: Sequence[str], known: Container[str]) -> list[str]:
    """Return the files' paths below the one folder below which all of them are known, or nothing.

    >>> _below(["/data/a/1.png", "/data/b/1.png"], {"a/1.png", "b/1.png", "1.png"})
    ['a/1.png', 'b/1.png']
    """
    parts = files[0].split("/")
    for length in range(len(parts) - 1, 0, -1):
        root = "/".join(parts[:-length]) + "/"
        names = [file.removeprefix(root) for file in files if file.startswith(root)]
        if len(names) == len(files) and all(name in known for name in names):
            return names
    return []


def read_table(path: Path) -> pl.DataFrame:
    """Read a CSV as text, or a Parquet file. Raises as `ScanTable.read`, of which this is the first half."""
    if path.suffix == ".parquet":
        return _with_own_names(_parquet(path))
    frame = read_csv(path)
    again = np.logical_and.reduce([(frame[name] == name).to_numpy() for name in frame.columns])
    if again.any() and frame.width > 1:
        where = f"{path}, row {int(again.argmax()) + 1} below the header"
        raise DataError("the header is there again", where=where, fix="were two tables put together? delete the row")
    return _with_own_names(frame)


def _with_own_names(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the table with the columns that are no findings named as here, where one is meant and only one."""
    new = {}
    for own in NO_FINDINGS:
        meant = [name for name in frame.columns if _plain(name) == own]
        if len(meant) == 1:
            new[meant[0]] = own
    return frame.rename(new)


def _parquet(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise UsageError("this table cannot be read: there is no such file", where=path)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError("this is no Parquet file, or it is damaged", where=path) from error


def refuse_repeated(keys: Sequence[str], rows: npt.NDArray[np.int64], column: str, what: str, path: Path) -> None:
    """Raise `DataError` for a key that is blank or there twice; `rows` are their places in the file."""
    first: dict[str, int] = {}
    again = []
    for key, row in zip(keys, rows.tolist(), strict=True):
        if not key:
            raise DataError(f"a row has no {column}", where=f"{path}, row {row} below the header")
        if key in first:
            again.append((key, row))
        first.setdefault(key, row)
    if again:
        key, row = again[0]
        raise DataError(
            f"{len({key for key, _ in again})} {what} are there more than once, first {key}",
            where=f"{path}, column {column!r}, rows {first[key]} and {row} below the header",
            fix="keep one row for each",
        )


def text(cells: pl.Series, path: Path) -> pl.Series:
    """Return the cells of a Parquet file's column as text, null where they are."""
    if cells.dtype.is_nested() or cells.dtype in (pl.Binary, pl.Object):
        raise DataError(f"this column holds no text but {cells.dtype}", where=f"{path}, column {cells.name!r}")
    return cells.cast(pl.String)


def id_column(frame: pl.DataFrame, column: str, path: Path) -> list[str] | None:
    """Return a column as text, "" where blank; None where there is none."""
    return text(frame[column], path).fill_null("").to_list() if column in frame.columns else None


def _numbers(cells: pl.Series, path: Path) -> npt.NDArray[np.float64]:
    """Return a column of scores, nan for what is no number; dates and truth values are none either."""
    if isinstance(cells.dtype, pl.String | pl.Categorical | pl.Enum):
        cells = cells.cast(pl.String).str.strip_chars()
    elif not cells.dtype.is_numeric() and cells.dtype != pl.Null:
        raise DataError(f"this column holds no numbers but {cells.dtype}", where=f"{path}, column {cells.name!r}")
    return cells.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def raw_labels(
    frame: pl.DataFrame, findings: Sequence[str], path: Path, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return labels as `ScanTable.labels`; `rows` are the rows' places in the file, which errors name."""
    need(frame, findings, path)
    columns = []
    for name in findings:
        # With nothing where rows were left out: so a wrong label is found at its row in the file.
        cells = np.full(rows.max(initial=0), None, object)
        cells[rows - 1] = text(frame[name], path).to_list()
        values = parse_labels(pl.Series(name, cells.tolist(), pl.String), path)
        columns.append(values.fill_null(np.nan).to_numpy()[rows - 1])
    return np.column_stack(columns)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
