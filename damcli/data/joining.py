"""Which row of a table belongs to which scan: by path, and never by position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from damcli.data.scores import spelled
from damcli.errors import DataError


def rows_of(scans: Iterable[tuple[str, Path]], paths: Sequence[str], where: object) -> dict[str, int]:
    """Return the row of each scan by its name; a scan without a row is left out.

    `scans` are (name, file), `paths` those of the table's rows, each once. A row belongs to the scan of that name;
    else to the scan whose file ends in the row's path, of which a bare file name is the shortest; else to the one
    whose name the row's path ends in. Whole parts of paths are compared, written as `scores.spelled` does: `1.png` is
    not the end of `11.png`. Raises `DataError`, with `where`, where a scan has several rows or a row several scans: a
    guess would be a wrong join.

    >>> files = [("a/1.png", Path("/new/a/1.png")), ("2.png", Path("/new/2.png"))]
    >>> rows_of(files, ["/old/a/1.png", "2.png"], "table.csv")
    {'a/1.png': 0, '2.png': 1}
    """
    rows = {spelled(path): row for row, path in enumerate(paths)}
    if len(rows) < len(paths):
        raise DataError("a path is there more than once, written in two ways", where=where, fix="keep one row per scan")
    longer: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for path, row in rows.items():
        longer[PurePath(path).name].append((f"/{path.lstrip('/')}", row))
    found: dict[str, int] = {}
    owner: dict[int, str] = {}
    for name, file in scans:
        own = _row(spelled(name), file, rows)
        end = spelled(name).lstrip("/")
        ends = [row for path, row in longer[PurePath(end).name] if path.endswith(f"/{end}")]
        if own is None and len(ends) > 1:
            raise _unclear(f"{len(ends)} rows may be of the scan {name}, first {paths[ends[0]]}", where)
        for row in ends[:1] if own is None else [own]:
            if row in owner:
                raise _unclear(f"the row of {paths[row]} may be of {owner[row]} and of {name}", where)
            found[name], owner[row] = row, name
    return found


def _row(name: str, file: Path, rows: dict[str, int]) -> int | None:
    """Return the row whose path is the scan's name, or the longest one that its file ends in."""
    if name in rows:
        return rows[name]
    whole = file.absolute()
    ends = (spelled(PurePath(*whole.parts[start:]).as_posix()) for start in range(len(whole.parts)))
    return next((rows[end] for end in ends if end in rows), None)


def _unclear(what: str, where: object) -> DataError:
    return DataError(what, where=where, fix="give the rows paths that are relative to the folder that is scored")
