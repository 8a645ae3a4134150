"""The table of scores on disk: one row per input, written as the rows come, as CSV, JSON, JSON lines or Parquet.

Columns: `path`, `status` (ok, failed, skipped), `error`, then one per finding; the scores of a row that is not ok are
empty (null). Text is UTF-8: a file name that is none has its odd bytes written as `\\udcff` and the like.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from damcli import files
from damcli.bundle.schema import RESERVED_COLUMNS

Writer = Callable[[IO[bytes], Sequence[str], Iterable["Row"]], None]


class Row(NamedTuple):
    """One input: `scores` is float32 (findings,) where `status` is ok, else None, and `error` says why.

    `remark` is what is remarkable of a scan that is ok; it stays out of the table.
    """

    path: str
    status: str
    error: str
    scores: np.ndarray | None
    remark: str = ""


def write(path: Path | None, form: str, findings: Sequence[str], rows: Iterable[Row]) -> None:
    """Write the rows to `path` whole or not at all (None: to stdout as they come); `form` is a key of `WRITERS`."""
    if path is None:
        WRITERS[form](sys.stdout.buffer, findings, rows)
        sys.stdout.buffer.flush()
        return
    with files.replacing(path) as draft, draft.open("wb") as file:
        WRITERS[form](file, findings, rows)


def _csv(file: IO[bytes], findings: Sequence[str], rows: Iterable[Row]) -> None:
    with _text(file) as text:
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([*RESERVED_COLUMNS, *map(_harmless, findings)])
        for row in rows:
            scores = [""] * len(findings) if row.scores is None else map(str, row.scores)
            lines.writerow([_harmless(_utf8(row.path)), row.status, _harmless(_utf8(row.error)), *scores])


def _harmless(text: str) -> str:
    """Return `text` so that no spreadsheet takes it for a formula: with a quote before = + - @, tab or return.

    >>> _harmless("=cmd.jpg"), _harmless("scan.jpg")
    ("'=cmd.jpg", 'scan.jpg')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json_lines(file: IO[bytes], findings: Sequence[str], rows: Iterable[Row]) -> None:
    for document in _documents(findings, rows):
        file.write(document + b"\n")


def _json(file: IO[bytes], findings: Sequence[str], rows: Iterable[Row]) -> None:
    file.write(b"[")
    for number, document in enumerate(_documents(findings, rows)):
        file.write((b",\n" if number else b"\n") + document)
    file.write(b"\n]\n")


def _documents(findings: Sequence[str], rows: Iterable[Row]) -> Iterator[bytes]:
    for row in rows:
        # str() of a float32 is its shortest exact form; float() of the float32 itself would show 17 digits.
        scores = [None] * len(findings) if row.scores is None else [float(str(score)) for score in row.scores]
        columns = [_utf8(row.path), row.status, _utf8(row.error) or None, *scores]
        document = dict(zip([*RESERVED_COLUMNS, *findings], columns, strict=True))
        yield json.dumps(document, ensure_ascii=False).encode()


def _utf8(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold written out.

    >>> _utf8("a\\udcff.png")
    'a\\\\udcff.png'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _parquet(file: IO[bytes], findings: Sequence[str], rows: Iterable[Row]) -> None:
    import tempfile

    import polars as pl

    schema = dict.fromkeys(RESERVED_COLUMNS, pl.String) | dict.fromkeys(findings, pl.Float32)
    # Parquet is written by column: the rows lie on disk until all are there, so that memory stays flat.
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as spool:
        _json_lines(spool, findings, rows)
        spool.flush()
        pl.scan_ndjson(spool.name, schema=schema).sink_parquet(file)


@contextlib.contextmanager
def _text(file: IO[bytes]) -> Iterator[IO[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        yield text
    finally:
        text.flush()
        text.detach()


WRITERS: dict[str, Writer] = {"csv": _csv, "json": _json, "jsonl": _json_lines, "parquet": _parquet}
