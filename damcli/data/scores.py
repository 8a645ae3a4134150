"""Tables keyed by scan: scores (`path,status,error,<finding>…`, as predict writes them) and labels (`path,<finding>…`).

Rows are joined by `path`, never by position, and columns by name; other columns do not matter.
"""

from __future__ import annotations

import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli import files
from damcli.data.sources import need, parse_labels, read_csv
from damcli.errors import DataError, UsageError

NO_FINDINGS = ("path", "status", "error", "patient", "study")
# Predict puts a quote before a name that a spreadsheet would take for a formula.
QUOTED_FORMULA = r"^'([=+\-@\t\r])"


class Joined(NamedTuple):
    """Scores float64 (n, K) of the scans asked for; nan in the rows whose scan `failed`, bool (n,), to be scored.

    `unused` counts the rows of the table that no scan asked for.
    """

    scores: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    unused: int


@dataclass(frozen=True)
class ScanTable:
    """A table with a row per scan; `frame` holds its columns, `path` unique and never blank."""

    path: Path
    frame: pl.DataFrame

    @classmethod
    def read(cls, path: Path) -> ScanTable:
        """Read a CSV (UTF-8, with or without BOM; comma, semicolon or tab) or a Parquet file.

        Rows with the status `skipped` (no image) are left out. Raises `UsageError` if there is no such file,
        `DataError` if it is no table, has no column `path`, or a path is blank or there twice.
        """
        frame = _parquet(path) if path.suffix == ".parquet" else read_csv(path)
        need(frame, ["path"], path, fix="name the column of scan paths `path`, as damcli predict does")
        names = frame["path"].cast(pl.String)
        if path.suffix != ".parquet":
            names = names.str.replace(QUOTED_FORMULA, "$1")
        frame = frame.with_columns(names.alias("path"))
        if "status" in frame.columns:
            frame = frame.filter(pl.col("status").ne_missing("skipped"))
        if frame["path"].fill_null("").eq("").any():
            row = int(frame["path"].fill_null("").eq("").arg_true()[0])
            raise DataError("a row has no path", where=f"{path}, row {row + 1} below the header")
        twice = frame.filter(pl.col("path").is_duplicated())["path"].unique(maintain_order=True)
        if len(twice):
            raise DataError(
                f"{len(twice)} scans are there more than once, first {twice[0]}",
                where=path,
                fix="keep one row per scan",
            )
        return cls(path, frame)

    @property
    def ids(self) -> list[str]:
        """The scan ids, in the order of the table."""
        return self.frame["path"].to_list()

    @property
    def names(self) -> list[str]:
        """The columns that may be findings."""
        return [name for name in self.frame.columns if name not in NO_FINDINGS]

    @property
    def patients(self) -> list[str] | None:
        """The patient ids, "" where blank; None without a column `patient`."""
        if "patient" not in self.frame.columns:
            return None
        return self.frame["patient"].cast(pl.String).fill_null("").to_list()

    def labels(self, findings: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return raw labels, float64 (n, K): 1, 0, -1 (uncertain) or nan (blank). Raises `DataError` for others."""
        need(self.frame, findings, self.path)
        columns = [parse_labels(self.frame[name].cast(pl.String), self.path) for name in findings]
        return np.column_stack([column.fill_null(np.nan).to_numpy() for column in columns])

    def scores(self, ids: Sequence[str], findings: Sequence[str], files: Sequence[str] = ()) -> Joined:
        """Return the scores of the scans `ids`. Raises `DataError` if one is missing, or is no finite number.

        Where the table has none of the ids, it may have the paths of their `files` below the folder that was scored.
        """
        need(self.frame, findings, self.path)
        place = {name: row for row, name in enumerate(self.ids)}
        if ids and files and not any(name in place for name in ids):
            ids = _below(files, place) or ids
        missing = [name for name in ids if name not in place]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} scans have no row, first {missing[0]}"
                + (f" (the table's first is {self.ids[0]})" if len(missing) == len(ids) and place else ""),
                where=self.path,
                fix="score them all; `path` must be the scan's id in the dataset, or the labels' path",
            )
        rows = np.array([place[name] for name in ids], np.int64)
        wanted = self.frame[rows]
        failed = np.zeros(len(rows), bool)
        if "status" in wanted.columns:
            failed = wanted["status"].eq_missing("failed").to_numpy()
        scores = np.full((len(rows), len(findings)), np.nan)
        for column, name in enumerate(findings):
            numbers = wanted[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
            wrong = np.flatnonzero(~np.isfinite(numbers) & ~failed)
            if len(wrong):
                raise DataError(
                    f"{len(wrong)} scores are no finite numbers, first {wanted[name][int(wrong[0])]!r}",
                    where=f"{self.path}, row {rows[wrong[0]] + 1} below the header, column {name!r}",
                    fix="give every scan a score, or the status `failed`",
                )
            scores[~failed, column] = numbers[~failed]
        return Joined(scores, failed, len(self.frame) - len(rows))


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


def write(path: Path, ids: Sequence[str], findings: Sequence[str], scores: npt.NDArray[np.floating]) -> None:
    """Write scores (n, K) as a Parquet file with the columns `path` and one per finding, whole or not at all."""
    columns = {name: scores[:, column] for column, name in enumerate(findings)}
    # In memory first: then it is the operating system, not polars, that says when the disk is full.
    buffer = io.BytesIO()
    pl.DataFrame({"path": list(ids), **columns}).write_parquet(buffer)
    with files.replacing(path) as draft:
        draft.write_bytes(buffer.getvalue())


def _parquet(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise UsageError("this table cannot be read: there is no such file", where=path)
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError("this is no Parquet file, or it is damaged", where=path) from error
