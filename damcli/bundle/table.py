"""The table of scores on disk: one row per input, written as the rows come, as CSV, JSON, JSON lines or Parquet.

Columns: `path` (or `study`, `patient`), `status` (ok, failed, skipped), `error`, then one per finding, and behind them
what `Columns` adds; the scores of a row that is not ok are empty (null). A score is written as the shortest number
that is read back as the same float32. Text is UTF-8: a file name that is none has its odd bytes written as `\\udcff`
and the like. In CSV, text that a spreadsheet would take for a formula has a quote before it.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli import files
from damcli.data.labels import CALLS


class Row(NamedTuple):
    """One input: `scores` is float32 (findings,) where `status` is ok, else None, and `error` says why.

    `remark` is what is remarkable of a file that did not fail; it stays out of the table. `patient` and `study` are ""
    where not known. In the row of a study or patient `path` is its key, and `scans` and `failed` count its scans.
    """

    path: str
    status: str
    error: str
    scores: NDArray[np.float32] | None
    remark: str = ""
    patient: str = ""
    study: str = ""
    scans: int = 1
    failed: int = 0


@dataclass(frozen=True)
class Columns:
    """The columns of a table, in order: `key`, status, error, the findings, then what is asked for.

    `thresholds`, by finding, add `<finding>:positive` (score >= threshold: 1 or 0 in CSV, else true or false); `ids`
    add `patient` and `study`; `counts` adds `scans` and `scans_failed`. No finding has one of these names
    (`labels.check_findings`).

    >>> Columns(("Edema", "Mass"), thresholds={"Mass": 0.5}, ids=("patient",)).names
    ('path', 'status', 'error', 'Edema', 'Mass', 'Mass:positive', 'patient')
    """

    findings: tuple[str, ...]
    key: Literal["path", "study", "patient"] = "path"
    thresholds: Mapping[str, float] | None = None
    ids: tuple[str, ...] = ()
    counts: bool = False

    @property
    def typed(self) -> list[tuple[str, type]]:
        """The names of all columns and what their cells are; a cell may also be empty."""
        positives = ((finding + CALLS, bool) for finding in self._called)
        counts = (("scans", int), ("scans_failed", int)) if self.counts else ()
        texts, ids = ((name, str) for name in (self.key, "status", "error")), ((name, str) for name in self.ids)
        return [*texts, *((finding, float) for finding in self.findings), *positives, *ids, *counts]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(name for name, _ in self.typed)

    def cells(self, row: Row) -> list[str | float | bool | None]:
        """Return a row's cells, one per column; None where empty."""
        scores: list[float | None] = [None] * len(self.findings)
        positives: list[bool | None] = [None] * len(self._called)
        if row.scores is not None:
            # str() of a float32 is its shortest exact form; float() of the float32 itself would show 17 digits.
            scores = [float(str(score)) for score in row.scores]
            exact = dict(zip(self.findings, row.scores.tolist(), strict=True))
            positives = [exact[finding] >= threshold for finding, threshold in self._called.items()]
        ids = [_utf8(getattr(row, name)) or None for name in self.ids]
        counts = [row.scans, row.failed] if self.counts else []
        return [_utf8(row.path), row.status, _utf8(row.error) or None, *scores, *positives, *ids, *counts]

    @property
    def _called(self) -> dict[str, float]:
        """The thresholds, in the order of the findings."""
        given = self.thresholds or {}
        return {finding: given[finding] for finding in self.findings if finding in given}


def write(path: Path | None, form: str, columns: Columns, rows: Iterable[Row]) -> None:
    """Write the rows to `path` whole or not at all; `form` is a key of `FORMS`.

    None writes to stdout, every row as it comes (Parquet: when all are there).
    """
    pieces = FORMS[form](columns, rows)
    if path is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    with files.replacing(path) as draft, draft.open("wb") as file:
        file.writelines(pieces)


def _csv(columns: Columns, rows: Iterable[Row]) -> Iterator[bytes]:
    # It quotes the characters of its line end alone: so that a return is quoted too, which some readers take for one.
    writer = csv.writer(_Given(), lineterminator="\r\n")
    for cells in chain([columns.names], map(columns.cells, rows)):
        line: str = writer.writerow(map(_cell, cells))
        yield line.removesuffix("\r\n").encode() + b"\n"


class _Given:
    """A file for `csv.writer`, whose `writerow` returns what this `write` does."""

    def write(self, line: str) -> str:
        return line


def _cell(cell: str | float | bool | None) -> str | float | None:
    if isinstance(cell, bool):
        return int(cell)
    return _harmless(cell) if isinstance(cell, str) else cell


def _harmless(text: str) -> str:
    """Return `text` so that no spreadsheet takes it for a formula: with a quote before = + - @, tab or return.

    >>> _harmless("=cmd.jpg"), _harmless("scan.jpg")
    ("'=cmd.jpg", 'scan.jpg')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json_lines(columns: Columns, rows: Iterable[Row]) -> Iterator[bytes]:
    names = columns.names
    for row in rows:
        document = dict(zip(names, columns.cells(row), strict=True))
        yield json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _json(columns: Columns, rows: Iterable[Row]) -> Iterator[bytes]:
    separator = b"[\n"
    for line in _json_lines(columns, rows):
        yield separator + line.removesuffix(b"\n")
        separator = b",\n"
    yield b"\n]\n" if separator == b",\n" else b"[\n]\n"


def _parquet(columns: Columns, rows: Iterable[Row]) -> Iterator[bytes]:
    import tempfile

    import polars as pl

    types = {str: pl.String, float: pl.Float32, bool: pl.Boolean, int: pl.UInt32}
    schema = {name: types[cell] for name, cell in columns.typed}
    # Parquet is written by column: the rows lie on disk until all are there, so that memory stays flat.
    with tempfile.TemporaryDirectory() as folder:
        spool, table = Path(folder, "rows.jsonl"), Path(folder, "table.parquet")
        with spool.open("wb") as file:
            file.writelines(_json_lines(columns, rows))
        pl.scan_ndjson(spool, schema=schema).sink_parquet(table)
        with table.open("rb") as file:
            yield from iter(partial(file.read, 1 << 20), b"")


def _utf8(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold written out.

    >>> _utf8("a\\udcff.png")
    'a\\\\udcff.png'
    """
    return text.encode("utf-8", "backslashreplace").decode()


FORMS: dict[str, Callable[[Columns, Iterable[Row]], Iterator[bytes]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _json_lines,
    "parquet": _parquet,
}
