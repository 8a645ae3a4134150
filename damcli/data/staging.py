"""What is written for another machine: first here, so that it can be broken off and continued, then uploaded whole."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from damcli import files
from damcli.data.filesystems import Far, asking, opened, private, shown, told
from damcli.errors import DamcliError, MachineError, UsageError

LAST = "dataset.json"
# What of a dataset may lie at the target without `LAST`: an upload was broken off.
OURS = ("images-*.npy", "manifest.parquet", "rejected.csv", ".*")
# Seconds before the next try, where an upload fails.
PAUSES = (1.0, 5.0)
# Beside what was made: which of it was uploaded.
SENT = "sent.json"
_Seen = tuple[int, int, int]


@contextmanager
def staged(url: str) -> Iterator[Path]:
    """Yield where to write the table or dataset that goes to `url`; it is uploaded when the block ends well.

    The place lies below $XDG_CACHE_HOME/damcli, for its user only and for one process at a time. It looks like `url` as
    far as commands look: a table is there to be replaced; a dataset has its `dataset.json`, so that another one is
    refused and for the same one nothing is to do; a folder of anything else has its names.

    After an exception what was made stays, so that the same command continues, and so does an upload. A folder is
    uploaded once it is a dataset, `dataset.json` last; a file, and those beside it, once they were written. Each
    arrives whole or not at all. Then the place is removed.

    Raises, before the block, what `opened` and `asking` raise, also where `url` cannot be written; after it
    `UsageError` where another dataset has come to lie there, and `MachineError` where the upload fails: what was made
    is kept then, and the error says where. Errors that leave the block name URLs.
    """
    far, where = opened(url), shown(url)
    name = far.path.rpartition("/")[2]
    if not far.parent or not name or name.startswith("."):
        raise UsageError("this URL names no file or folder to write", where=where, fix="add a name without . before it")
    base = private("staged")
    label = hashlib.sha256(where.encode()).hexdigest()[:16]
    place = base / label
    made, there = place / "made", place / "there"
    with files.only_writer(base, label):
        with files.disk_errors(place):
            shutil.rmtree(there, ignore_errors=True)
            for folder in (place, made, there):
                folder.mkdir(mode=0o700, exist_ok=True)
        try:
            with asking(where):
                _look(far, made / name, there / name)
            taken = there / name
            before = _seen(made)
            with told({folder: where.rpartition("/")[0] for folder in (made, there)}):
                yield taken if taken.exists() else made / name
            if _same(made / name, taken) if taken.exists() else _upload(far, place, made / name, before, where):
                shutil.rmtree(place)
        finally:
            shutil.rmtree(there, ignore_errors=True)
            stand_in = made / name
            if stand_in.is_file() and not stand_in.stat().st_size:
                stand_in.unlink()
            with suppress(OSError):  # there is something to continue from, or nothing at all
                made.rmdir()
                shutil.rmtree(place)


def _look(far: Far, made: Path, there: Path) -> None:
    """Make the place look like the target, and try whether the target can be written."""
    system = far.system
    try:
        kind = system.info(far.path)["type"]
    except FileNotFoundError:
        kind = None
    if kind == "directory":
        inside = {str(entry["name"]).rstrip("/") for entry in system.ls(far.path, detail=True)}
        names = {path.rpartition("/")[2] for path in inside - {far.path}}
        strangers = sorted(name for name in names if not any(fnmatch(name, one) for one in (*OURS, LAST)))
        if LAST in names:
            there.mkdir()
            for one in names & {"rejected.csv", LAST}:
                system.get_file(far.below(one), str(there / one))
            return
        if strangers:
            there.mkdir()
            for stranger in strangers[:9]:
                (there / stranger[:60]).touch()
            return
    elif kind == "file" and not made.exists():
        made.touch(mode=0o600)
    if not far.has_objects:
        system.makedirs(far.parent, exist_ok=True)
    # Who may write into a store may do so below some names alone.
    folder = far.path if kind == "directory" or (far.has_objects and kind is None) else far.parent
    probe = f"{folder}/.damcli.0.tmp"
    system.pipe_file(probe, b"")
    with suppress(Exception):  # who may write may not be allowed to remove
        system.rm_file(probe)


def _same(made: Path, there: Path) -> bool:
    """Whether a dataset is what lies at the target: its upload was finished, and no more than that."""
    one, other = made / LAST, there / LAST
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


def _seen(folder: Path) -> dict[str, _Seen]:
    """Return what tells the files of a folder from others of the same names; not of those that are hidden."""
    found = ((file.name, file.stat()) for file in folder.iterdir() if file.is_file() and file.name[0] != ".")
    return {name: (status.st_ino, status.st_mtime_ns, status.st_size) for name, status in found}


def _upload(far: Far, place: Path, made: Path, before: Mapping[str, _Seen], where: str) -> bool:
    """Upload what was made; False where nothing was finished."""
    is_dataset = made.is_dir()
    folder, top, last = (made, far.path, LAST) if is_dataset else (made.parent, far.parent, made.name)
    new = {name: seen for name, seen in _seen(folder).items() if is_dataset or before.get(name) != seen}
    if last not in new:
        return False
    if is_dataset:
        with asking(where):
            if _is_there(far, made, where):
                return True
    names = [*sorted(new.keys() - {last}), last]
    try:
        with asking(where), files.disk_errors(folder):
            if not far.has_objects:
                far.system.makedirs(top, exist_ok=True)
            _send_all(far, {folder / name: f"{top}/{name}" for name in names}, new, place / SENT)
    except DamcliError as error:
        again = "run the same command again: it uploads the rest of what is in {}"
        fix = (again if is_dataset else "copy it from {}, where it lies whole").format(folder)
        raise MachineError(f"this is finished, but was not uploaded: {error.what}", where=where, fix=fix) from None
    return True


def _is_there(far: Far, made: Path, where: str) -> bool:
    try:
        held = far.system.cat_file(far.below(LAST))
    except FileNotFoundError:
        return False
    if held != (made / LAST).read_bytes():
        fix = "choose another with -o, or remove this one"
        raise UsageError("another dataset was written there meanwhile", where=where, fix=fix)
    return True


def _send_all(far: Far, targets: Mapping[Path, str], seen: Mapping[str, _Seen], journal: Path) -> None:
    """Upload files in this order, but those that are in the journal of an upload that was broken off."""
    system = far.system
    sent = files.read_json(journal, "upload") if journal.exists() else {}
    for file, path in targets.items():
        if sent.get(file.name) == [*seen[file.name]] and _arrived(system, file, path):
            continue
        draft = path if far.has_objects else f"{path.rpartition('/')[0]}/.{file.stem}.0.tmp{file.suffix}"
        for pause in (*PAUSES, None):
            try:
                system.put_file(str(file), draft)
                break
            except Exception as error:
                if pause is None or isinstance(error, PermissionError):
                    raise
                time.sleep(pause)
        if draft != path:
            system.mv(draft, path)
        if not _arrived(system, file, path):
            raise OSError(errno.EIO, "another size arrived")
        sent[file.name] = [*seen[file.name]]
        files.write_json(journal, sent)


def _arrived(system: Any, file: Path, path: str) -> bool:
    try:
        return bool(system.info(path)["size"] == file.stat().st_size)
    except FileNotFoundError:
        return False
