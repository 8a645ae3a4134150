"""What the user gave to be scored, as one scan after the other: each a row, in this order and by these names.

Order: what was given, as given (the matches of a glob sorted). A folder's own files come first, sorted by code point,
then its folders, sorted, each in the same way; a link to a folder that it lies in is not followed. An archive stands
where its file does, its members in its own order; a table or stdin in the order of its lines.

Names: relative to the one folder given; for one file, its name; for one archive, its members' names; for one table and
for stdin, the path as written. Where several are given, the path from here, so that it stays unique. Members of an
archive are called `archive/inner`, without what is absolute or leads upwards in `inner`; where one is there again, it
gets ` (2)` behind it. What of an archive cannot be read has one row, called as the archive.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from damcli.data import archives
from damcli.data.archives import Place, Refused
from damcli.data.images import region
from damcli.errors import UsageError

TABLES = (".csv", ".tsv", ".parquet")
STDIN = "-"
TWICE = "give it once: a folder stands for all below it"


class Input(NamedTuple):
    """A scan to be scored.

    `name` is what its row is called; `stamp` changes where its file, or its archive, does, and is "" for one that is
    not there; `refusal` says why there is nothing to decode, "" mostly.
    """

    name: str
    place: Place
    stamp: str
    refusal: str = ""

    @property
    def source(self) -> Place | Refused:
        """What the workers are given."""
        return Refused(self.refusal) if self.refusal else self.place


class _Listed(NamedTuple):
    """The paths that a table, or stdin (`source` None), names: as written, relative to `folder`."""

    source: Path | None
    folder: Path
    paths: list[str]

    def path(self, written: str) -> Path:
        """Return the path that is meant: written on Windows, it may have its own separator."""
        path = self.folder / written
        return self.folder / written.replace("\\", "/") if "\\" in written and _status(path) is None else path


class _File(NamedTuple):
    name: str
    path: Path
    form: str | None = None  # of an archive
    listed: bool = False


@dataclass(frozen=True)
class Given:
    """What the user gave, checked: files, folders, and lists of paths."""

    roots: tuple[Path | _Listed, ...]

    @property
    def places(self) -> list[Path]:
        """The files and folders given; of a list the folder that its paths are relative to."""
        return [root.folder if isinstance(root, _Listed) else root for root in self.roots]

    def find(self, *own: Path) -> Iterator[Input]:
        """Yield the inputs, the same ones each time as long as nothing changes on the disk.

        `own` are the tables that are written: they are left out, with the journal and the temporary files of this run
        and of others that were killed. Raises `UsageError` for a folder that cannot be read, and where one of `own` is
        a table or an archive that was given.
        """
        for name, path, form, listed in self._files(own):
            if form:
                yield from _members("" if self.roots == (path,) else f"{name}/", path, form)
            else:
                status = _status(path)
                folder = listed and status is not None and stat.S_ISDIR(status.st_mode)
                yield Input(name, Place(path), _stamp(status), "this is a folder: a list names files" if folder else "")

    def total(self, *own: Path) -> int | None:
        """Return how many inputs `find` yields; None where only reading all tells (a compressed tar)."""
        count = 0
        for _, path, form, _ in self._files(own):
            if form in archives.COMPRESSED:
                return None
            count += sum(1 for _ in archives.members(path, form)) if form else 1
        return count

    def _files(self, own: Sequence[Path]) -> Iterator[_File]:
        own = [path.resolve() for path in own]
        several = len(self.roots) > 1
        for root in self.roots:
            if isinstance(root, _Listed):
                if root.source:
                    _keep(root.source, own)
                for written in root.paths:
                    path = root.path(written)
                    yield _File(path.as_posix() if several else written, path, listed=True)
            elif not root.is_dir():
                form = archives.form(root)
                if form:
                    _keep(root, own)
                if not _is_ours(root, own):
                    yield _File(root.as_posix() if several else root.name, root, form)
            else:
                for path in _walk(root):
                    if not _is_ours(path, own):
                        name = path if several else path.relative_to(root)
                        yield _File(name.as_posix(), path, archives.form(path) if archives.named(path) else None)


def given(paths: Sequence[str], stdin: BinaryIO | None = None) -> Given:
    """Check what the user gave: folders, files, archives, globs (`**` too), tables of paths, and `-` for stdin.

    What there is by the very name is no glob. A table (.csv, .tsv, .parquet) has a column `path`, relative to its
    folder; stdin a path in each line, or between NULs, relative to here. Both name files, which need not be there.
    Raises `UsageError` for what is not there, what would be scored twice, and lists without a path; `DataError` for
    a table that is damaged.
    """
    roots: list[Path | _Listed] = []
    if paths.count(STDIN) > 1:
        raise UsageError("stdin is given twice", where=STDIN)
    for path in paths:
        if path == STDIN:
            roots.append(_Listed(None, Path(), _lines((stdin or sys.stdin.buffer).read())))
        else:
            roots += [_listed(one) or one for one in _globbed(path)]
    _check(roots)
    return Given(tuple(roots))


def _globbed(path: str) -> list[Path]:
    if path and _status(Path(path)):
        return [Path(path)]
    if not glob.has_magic(path):
        raise UsageError("there is no such file or folder", where=path or "''")
    matches = [Path(match) for match in sorted(glob.glob(path, recursive=True))]  # noqa: PTH207 - that takes no "/…"
    if not matches:
        raise UsageError("no file or folder is called like this", where=path)
    # `**` matches folders and what is in them.
    folders = {match for match in matches if _is_folder(match)}
    return [match for match in matches if folders.isdisjoint(match.parents)]


def _listed(path: Path) -> _Listed | None:
    if path.suffix.lower() not in TABLES or _is_folder(path):
        return None
    return _Listed(path, path.parent, _column(path))


def _lines(data: bytes) -> list[str]:
    if b"\0" in data:
        paths = data.split(b"\0")
    else:
        paths = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    written = [os.fsdecode(path) for path in paths if path]
    if not written:
        raise UsageError("stdin names no path", where=STDIN, fix="write one in each line: find scans -type f | …")
    return written


def _column(table: Path) -> list[str]:
    # Imported where needed: polars takes longer to start than a folder of files to find.
    from damcli.data import scores

    frame = scores.read_table(table)
    if "path" not in frame.columns:
        raise UsageError(
            "this table has no column `path`, so it is no list of scans",
            where=table,
            fix="name the column of the scans' paths `path`; a folder is scored without its tables",
        )
    written = scores.text(frame["path"], table).fill_null("")
    if table.suffix.lower() != ".parquet":
        written = written.str.replace(scores.QUOTED_FORMULA, "$1")
    paths: list[str] = written.to_list()
    if "" in paths:
        raise UsageError("a row has no path", where=f"{table}, row {paths.index('') + 1} below the header")
    if not paths:
        raise UsageError("this table has no row", where=table)
    return paths


def _check(roots: Sequence[Path | _Listed]) -> None:
    """Raise `UsageError` for what would be scored twice."""
    known: dict[Path, Path] = {}
    for root in roots:
        if isinstance(root, _Listed):
            listed = (root.folder / written.replace("\\", "/") for written in root.paths)
            named = chain([root.source] if root.source else [], listed)
        else:
            named = chain([root])
        for path in named:
            # By its name alone: links of two names are two scans.
            whole = Path(os.path.normpath(path.absolute()))
            if whole in known:
                raise UsageError("this is given twice", where=path, fix=TWICE)
            known[whole] = path
    folders = {Path(os.path.normpath(root.absolute())) for root in roots if isinstance(root, Path) and root.is_dir()}
    for whole, path in known.items() if folders else ():
        if not folders.isdisjoint(whole.parents):
            raise UsageError("this lies in a folder that is given too", where=path, fix=TWICE)


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, folder by folder, however deep."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                names = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            raise UsageError(
                f"this folder cannot be read: {error.strerror}", where=folder, fix="its scans would be missed"
            ) from error
        yield from (folder / name for name, is_folder in names if not is_folder)
        below = [folder / name for name, is_folder in reversed(names) if is_folder]
        waiting.extend(path for path in below if not _loops(path))


def _is_folder(place: Path | os.DirEntry[str]) -> bool:
    try:
        return place.is_dir()
    except OSError:  # a link to itself, or into a folder that is locked: a file that cannot be read
        return False


def _loops(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.absolute().parents)


def _keep(path: Path, own: Sequence[Path]) -> None:
    """Raise `UsageError` where what is read would be written over."""
    if path.resolve() in own:
        raise UsageError("the scores would take the place of what was given", where=path, fix="name another with -o")


def _is_ours(path: Path, own: Sequence[Path]) -> bool:
    """Whether a file is a table written, its lock, its journal (`bundle.journal`) or a draft (`files.replacing`)."""
    return any(_is_of(path, table) for table in own)


def _is_of(path: Path, table: Path) -> bool:
    if not path.name.startswith((table.name, f".{table.stem}.")):
        return False
    stem, suffix = re.escape(table.stem), re.escape(table.suffix)
    beside = rf"\.{re.escape(table.name)}\.(journal|lock)|\.{stem}\.\d+\.tmp{suffix}"
    ours = path.name == table.name or re.fullmatch(beside, path.name)
    return bool(ours) and path.parent.resolve() == table.parent


def _members(prefix: str, archive: Path, form: str) -> Iterator[Input]:
    whole = stamp(archive)
    seen: dict[str, int] = {}
    for member in archives.members(archive, form):
        name = prefix + _inner(member.name) if member.name else prefix.rstrip("/") or archive.name
        while name in seen:
            seen[name] += 1
            name = f"{name} ({seen[name]})"
        seen[name] = 1
        yield Input(name, member.place, f"{whole} {member.stamp}", member.refusal)


def _inner(name: str) -> str:
    """Return the name of a member without what is absolute in it or leads upwards.

    >>> _inner("/../a/./b.dcm"), _inner("C:/a.dcm"), _inner("..")
    ('a/b.dcm', 'a.dcm', '_')
    """
    parts = re.sub(r"^[A-Za-z]:", "", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def _status(path: Path) -> os.stat_result | None:
    """Return size, time and kind of the file that a path means; None where there is none, or none to be seen."""
    try:
        return region(path)[0].stat()
    except (OSError, ValueError):
        return None


def stamp(path: Path) -> str:
    """Return what changes where the file that a path means does; "" where there is none, or none to be seen."""
    return _stamp(_status(path))


def _stamp(status: os.stat_result | None) -> str:
    return f"{status.st_size} {status.st_mtime_ns}" if status else ""
