"""What radiologists called: a table per reader with a row per study, such as those of CheXpert's test set.

Rows are joined to the units that are judged by the whole parts at the end of their keys, never by position, and
columns by name: reader files have both in another order than the truth (FORMATS section 2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli.data import scores
from damcli.data.units import By
from damcli.errors import DataError, UsageError

TABLES = (".csv", ".tsv", ".csv.gz", ".parquet")
# What the column of keys may be called, in any case: that of the unit goes before the others.
KEYS: dict[By, tuple[str, ...]] = {
    "scan": ("path", "scan", "image"),
    "study": ("study", "study_id"),
    "patient": ("patient", "patient_id"),
}
OTHER_KEYS = ("study", "study_id", "path", "scan", "id")


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reader called: `calls` float64 (m, K) of the units holds 1, 0 or nan (not called).

    `missing` counts the units without a row, `unknown` the rows of no unit, `uncertain` the calls of -1, which count
    as not called; `absent` are the findings without a column.
    """

    name: str
    path: Path
    calls: npt.NDArray[np.float64]
    missing: int
    unknown: int
    uncertain: int
    absent: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What of this reader is left out, in words."""
        notes = []
        if self.missing:
            notes.append(f"{self.missing} of {len(self.calls)} have no row")
        if self.unknown:
            notes.append(f"{self.unknown} rows belong to none that is judged and are left out")
        if self.uncertain:
            notes.append(f"{self.uncertain} calls are uncertain (-1) and left out")
        if self.absent:
            notes.append(f"there is no column for {', '.join(self.absent)}")
        return [f"reader {self.name}: {note}" for note in notes]


def read(paths: Sequence[Path], units: Sequence[str], findings: Sequence[str], by: By = "study") -> list[Reading]:
    """Read a table per reader and return their calls of `units`, of which these are the names, in order.

    `paths` are tables, or folders of them (not those in folders below); a reader is called as the file. A row belongs
    to the unit whose name ends in the row's key, or is the end of it, by whole parts: `CheXpert-v1.0/test/p1/study1`
    is of `p1/study1`. Calls are 1, 0, -1 (uncertain) or blank.

    Raises `UsageError` for a folder without tables and for two readers of one name; `DataError` for a table without a
    column of keys or of any finding, a key blank or there twice, a call that is none, a row that may be of several
    units or shares one, and a reader who called none of the units.
    """
    readings = [_read(path, units, findings, by) for path in _tables(paths)]
    twice = [name for name, count in Counter(reading.name for reading in readings).items() if count > 1]
    if twice:
        where = ", ".join(str(reading.path) for reading in readings if reading.name == twice[0])
        raise UsageError(f"two readers are called {twice[0]}", where=where, fix="rename one of the files")
    return readings


def notes(readings: Sequence[Reading]) -> list[str]:
    """Return what is left out of each reader, and which two readers called all alike."""
    found = [note for reading in readings for note in reading.notes]
    for at, one in enumerate(readings):
        for other in readings[:at]:
            if np.array_equal(one.calls, other.calls, equal_nan=True):
                found.append(f"readers {other.name} and {one.name} called everything alike: is one file a copy?")
    return found


def _tables(paths: Sequence[Path]) -> list[Path]:
    tables: list[Path] = []
    for path in paths:
        if not path.is_dir():
            tables.append(path)
            continue
        # Files that begin with a dot are what macOS leaves beside the real ones.
        inside = sorted(file for file in path.iterdir() if file.name.lower().endswith(TABLES) and file.is_file())
        inside = [file for file in inside if not file.name.startswith(".")]
        if not inside:
            below = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
            fix = f"name the folder that holds them, one of: {', '.join(below)}" if below else "one .csv per reader"
            raise UsageError("this folder holds no tables of readers", where=path, fix=fix)
        tables += inside
    return tables


def _read(path: Path, units: Sequence[str], findings: Sequence[str], by: By) -> Reading:
    frame = scores.read_table(path)
    column = _key_column(frame, path, by)
    rows = np.arange(1, len(frame) + 1)
    keys = [scores.spelled(key or "") for key in scores.text(frame[column], path).to_list()]
    scores.refuse_repeated(keys, rows, column, "keys", path)
    table = scores.ScanTable(path, frame, rows).named(findings)
    present = [finding for finding in findings if finding in table.names]
    if not present:
        raise DataError(
            f"the table has a column of none of the findings; it has: {', '.join(table.names)}",
            where=path,
            fix=f"name its columns as the findings: {', '.join(findings)}",
        )
    raw = table.labels(present)
    unit_of = _joined(keys, units, path, column, by)
    joined = unit_of >= 0
    calls = np.full((len(units), len(findings)), np.nan)
    for column_of, finding in enumerate(present):
        calls[unit_of[joined], list(findings).index(finding)] = raw[joined, column_of]
    uncertain = calls == -1
    calls[uncertain] = np.nan
    return Reading(
        name=path.name[: -len(".csv.gz")] if path.name.lower().endswith(".csv.gz") else path.stem,
        path=path,
        calls=calls,
        missing=len(units) - int(joined.sum()),
        unknown=int((~joined).sum()),
        uncertain=int(uncertain.sum()),
        absent=tuple(finding for finding in findings if finding not in present),
    )


def _key_column(frame: pl.DataFrame, path: Path, by: By) -> str:
    for wanted in (*KEYS[by], *OTHER_KEYS):
        named = [name for name in frame.columns if name.strip().lower() == wanted]
        if len(named) > 1:
            raise DataError(f"which column holds the keys is not clear: {', '.join(named)}", where=path)
        if named:
            return named[0]
    raise DataError(
        f"the table has no column that says which {by} a row is of; it has: {', '.join(frame.columns)}",
        where=path,
        fix=f"name it {KEYS[by][0]}",
    )


def _joined(keys: Sequence[str], units: Sequence[str], path: Path, column: str, by: By) -> npt.NDArray[np.int64]:
    """Return the number of the unit that each key is of, int64; -1 of none. Raises `DataError` as `read`."""
    names = [scores.spelled(unit).strip("/") for unit in units]
    ends: dict[str, list[int]] = defaultdict(list)
    for unit, name in enumerate(names):
        for end in _ends(name):
            ends[end].append(unit)
    whole: dict[str, list[int]] = defaultdict(list)
    for unit, name in enumerate(names):
        whole[name].append(unit)
    found = np.full(len(keys), -1, np.int64)
    owner: dict[int, int] = {}
    for row, key in enumerate(keys):
        key = key.strip("/")
        # The longest unit that the key ends in; else the units that end in the key.
        meant = next((whole[end] for end in _ends(key) if end in whole), None) or ends.get(key, [])
        if not meant:
            continue
        place = f"{path}, row {row + 1} below the header, column {column!r}"
        if len(meant) > 1:
            raise DataError(f"this row may be of {len(meant)} that are judged", where=place, fix="give the whole key")
        if meant[0] in owner:
            what = f"this row and row {owner[meant[0]] + 1} are of the same {by}, written in two ways"
            raise DataError(what, where=place, fix="keep one row for each")
        found[row], owner[meant[0]] = meant[0], row
    if (found < 0).all():
        raise DataError(
            f"none of its {len(keys)} rows is of a {by} that is judged: its first key is {keys[0]},"
            f" the first {by} {names[0] if names else 'missing'}",
            where=f"{path}, column {column!r}",
            fix="readers of studies are compared by study (--by study); keys and ids must end in the same parts",
        )
    return found


def _ends(path: str) -> list[str]:
    """Return a path and what is left of it without its first part, first two …, down to its last.

    >>> _ends("a/b/c")
    ['a/b/c', 'b/c', 'c']
    """
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
