"""Finished rows that survive a kill: a journal beside the table, from which the next run continues.

Line 1 is `{"format": 1, "settings": …}`: whatever decides the scores. Every further line is a lot, the inputs that are
scored together: `{"inputs": DIGEST, "rows": […]}`, a row being the list of what a `Row` holds, its scores as the hex of
float32 numbers (little-endian). DIGEST is the SHA-256 of the inputs' paths (as in the rows), stamps and refusals.
Each line begins with the CRC-32 of its JSON: one that was cut off or damaged is known, and what is above it is good.
Lines are only added at the end, so a run that is killed loses no more than the lots that were not finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from damcli import files
from damcli.bundle.table import Row
from damcli.errors import DataError

if TYPE_CHECKING:
    from damcli.data.inputs import Input

FORMAT = 1
# A killed process loses no lot; a machine that loses its power may lose those of so many seconds.
UNSYNCED_SECONDS = 1.0


def place(target: Path) -> Path:
    """Return where the journal of the table `target` lies.

    >>> place(Path("out/scores.csv")).as_posix()
    'out/.scores.csv.journal'
    """
    return target.with_name(f".{target.name}.journal")


def settings(target: Path) -> dict[str, Any]:
    """Return the settings of the unfinished run whose journal lies beside `target`; {} where there is none.

    For what a run finds out by measuring, such as the batch: the next run has to take the same to continue.
    """
    try:
        with place(target).open("rb") as file:
            return _settings(file) or {}
    except OSError:
        return {}


@contextmanager
def open(target: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Hold the table `target` and its journal for this process; left without `finish`, the journal stays.

    `settings` is JSON: whatever decides the scores. It is stored as it is, so it may hold nothing of a patient.
    Raises `UsageError` where another process holds the table, `MachineError` where the disk is full or read-only; the
    journal is then as good as before.
    """
    path = place(target)
    with files.only_writer(target.parent, target.name):
        with files.disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        with io.FileIO(descriptor, "r+") as file:
            journal = Journal(path, file, settings)
            try:
                yield journal
            finally:
                journal._leave()


class Journal:
    """The finished rows of one table.

    `done` counts the rows that `resume` kept, `holds` all that there are now; `note` says in words why `resume` dropped
    others, "" where it dropped none.
    """

    def __init__(self, path: Path, file: io.FileIO, settings: Mapping[str, Any]) -> None:
        self.path, self.done, self.holds, self.note = path, 0, 0, ""
        self._file = file
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        # Where the lots begin and end; what the file holds behind them is not ours.
        self._begin = self._end = 0
        self._synced = time.monotonic()

    def resume(self, inputs: Iterator[Input], shown: Callable[[str], str] = str) -> Iterator[Input]:
        """Keep the lots whose inputs are those that `inputs` begins with; return the inputs that are still to score.

        `shown` makes of an input's name the path in its row; of the name itself nothing is kept. The first lot of
        which a path, a stamp or a refusal differs is dropped, and all after it. The last lot is done again where it
        may be smaller than the others and inputs follow it: which ones are scored together must not depend on where
        a run was broken off.
        """
        taken: list[Input] = []
        with self.path.open("rb") as file:
            held = _settings(file)
            if held == self._settings:
                self._begin = self._end = file.tell()
                taken = self._keep(file, inputs, shown)
        self.holds = self.done
        with files.disk_errors(self.path):
            if held == self._settings:
                self._file.truncate(self._end)
            else:
                self.note = self._why_anew(held)
                self._file.truncate(0)
                self._write({"format": FORMAT, "settings": self._settings})
                self._begin = self._end
        return chain(taken, inputs)

    def append(self, inputs: Sequence[Input], rows: Sequence[Row]) -> None:
        """Add one lot: the rows of `inputs`, in their order. All lots have the same number but the last."""
        assert len(inputs) == len(rows) > 0, "a lot is a row for each of its inputs"
        self._write({"inputs": _digest(inputs, (row.path for row in rows)), "rows": [_fields(row) for row in rows]})
        self.holds += len(rows)
        if time.monotonic() - self._synced > UNSYNCED_SECONDS:
            self._sync()

    def rows(self) -> Iterator[Row]:
        """Yield all rows, those kept and those added, in order, from the disk. Raises `DataError` if damaged."""
        if self._begin == self._end:
            return
        with self.path.open("rb") as file:
            file.seek(self._begin)
            for end, lot in _records(file):
                yield from map(_row, lot["rows"])
                if end == self._end:
                    return
        raise DataError("the finished rows were damaged on the disk", where=self.path, fix="run the same command again")

    def finish(self) -> None:
        """Remove the journal: its rows are in the table."""
        self._file.close()
        self.path.unlink()

    def _leave(self) -> None:
        if self._file.closed:
            return
        self._sync()
        if os.fstat(self._file.fileno()).st_size <= self._begin:
            # There is nothing to continue from.
            self.finish()

    def _keep(self, file: BinaryIO, inputs: Iterator[Input], shown: Callable[[str], str]) -> list[Input]:
        """Keep what can be kept of the lots in `file`; return the inputs that were taken of `inputs` beyond them."""
        taken: list[Input] = []
        end, size = self._begin, 0
        for (end, lot), (_, following) in pairwise(chain(_records(file), [(0, None)])):
            smaller, size = len(lot["rows"]) < size or not size, len(lot["rows"])
            taken = list(islice(inputs, size))
            if _digest(taken, (shown(one.name) for one in taken)) != lot["inputs"]:
                self.note = f"the files are not those of the unfinished run: only its first {self.done} rows are kept"
                return taken
            if smaller and following is None:
                taken += islice(inputs, 1)
                if len(taken) > size:
                    break
            self.done, self._end, taken = self.done + size, end, []
        file.seek(end)
        # A line without an end was cut off, as a killed run leaves it.
        if file.readline().endswith(b"\n"):
            self.note = f"the journal of the unfinished run is damaged: only its first {self.done} rows are kept"
        return taken

    def _why_anew(self, held: dict[str, Any] | None) -> str:
        if held is None:
            size = os.fstat(self._file.fileno()).st_size
            return "the journal of the unfinished run is damaged: starting over" if size else ""
        names = sorted(held.keys() | self._settings.keys())
        other = [name for name in names if held.get(name) != self._settings.get(name)]
        return f"the unfinished run was made with another {', '.join(other)}: starting over"

    def _write(self, record: dict[str, Any]) -> None:
        line = _line(json.dumps(record).encode())
        with files.disk_errors(self.path):
            self._file.seek(self._end)
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._end += len(line)

    def _sync(self) -> None:
        with files.disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _records(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield where each line ends and what it says, up to the first that was cut off or damaged."""
    for line in file:
        text = line[9:-1]
        if line != _line(text):
            return
        yield file.tell(), json.loads(text)


def _settings(file: BinaryIO) -> dict[str, Any] | None:
    """Read the first line; None where it is none of ours."""
    for _, header in islice(_records(file), 1):
        return header["settings"] if header.get("format") == FORMAT else None
    return None


def _digest(inputs: Iterable[Input], paths: Iterable[str]) -> str:
    text = json.dumps([(path, one.stamp, one.refusal) for one, path in zip(inputs, paths, strict=True)])
    return hashlib.sha256(text.encode()).hexdigest()


def _fields(row: Row) -> list[Any]:
    scores = row.scores
    assert scores is None or scores.dtype == np.float32, "the table's scores are float32"
    return [*row[:3], None if scores is None else scores.astype("<f4").tobytes().hex(), *row[4:]]


def _row(fields: list[Any]) -> Row:
    path, status, error, scores, *others = fields
    found = None if scores is None else np.frombuffer(bytes.fromhex(scores), "<f4").astype(np.float32)
    return Row(path, status, error, found, *others)
