"""Files that are never half-written: temporary name, fsync, rename; one writer per folder; hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from damcli.errors import DataError, MachineError, UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, else removed.

    Raises `MachineError` where the disk is full or not writable; `path` then still holds what it held before.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as draft:
    ...         _ = draft.write_text("whole")
    ...     Path(folder, "a.txt").read_text(), len(os.listdir(folder))
    ('whole', 1)
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: writers choose the format by it.
        draft = path.parent / f".{path.stem}.{os.getpid()}.tmp{path.suffix}"
        try:
            yield draft
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Remove the temporary files of `replacing` that killed processes left beside `path`; for who holds its lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, ".a.4321.tmp.txt").write_text("half")
    ...     remove_drafts(Path(folder, "a.txt"))
    ...     os.listdir(folder)
    []
    """
    draft = re.compile(rf"\.{re.escape(path.stem)}\.\d+\.tmp{re.escape(path.suffix)}")
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if draft.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a full or read-only disk into a `MachineError`.

    A file in the place of a folder, or a folder in that of a file, is a `UsageError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                "no space is left on the disk", where=path, fix="free some space, then run the same command again"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise MachineError("this place cannot be written", where=path, fix="choose another one with -o") from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise UsageError(
                "a folder stands where a file should go, or a file where a folder should",
                where=path,
                fix="choose another place with -o",
            ) from error
        raise


@contextmanager
def replacing_folder(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success its files are synced and it takes the place of `path`.

    With `previous`, what was there before is kept under that name, in place of what that name held. Killed at any
    moment, `settled_folder` still finds the old folder or the new one whole. For one writer at a time.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with replacing_folder(Path(parent, "a")) as draft:
    ...         _ = Path(draft, "b.txt").write_text("whole")
    ...     os.listdir(parent), os.listdir(Path(parent, "a"))
    (['a'], ['b.txt'])
    """
    draft, old = path.parent / f".{path.name}.new", path.parent / f".{path.name}.old"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if settled_folder(path) == old:
            old.rename(path)
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            for file in draft.iterdir():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
            if path.exists():
                path.rename(old)
            draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if previous and old.is_dir():
            shutil.rmtree(previous, ignore_errors=True)
            old.rename(previous)
        shutil.rmtree(old, ignore_errors=True)


def settled_folder(path: Path) -> Path | None:
    """Return where a folder written by `replacing_folder` lies now, or None where there is none."""
    old = path.parent / f".{path.name}.old"
    return next((folder for folder in (path, old) if folder.is_dir()), None)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` whole or not at all; NaN is refused (use None)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: str) -> Any:
    """Read JSON from `path`; `kind` names the thing in the error. Raises `DataError` if missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"this is no {kind}: {path.name} is missing", where=path.parent) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"the {kind}'s {path.name} is damaged: {error}", where=path) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def only_writer(folder: Path, file: str | None = None) -> Iterator[None]:
    """Hold `folder`, or its `file` alone, for this process; a second writer is refused with a `UsageError`.

    The lock is the operating system's, so that a killed process leaves none behind.
    """
    from filelock import FileLock, Timeout

    held = folder / (".lock" if file is None else f".{file}.lock")
    lock = FileLock(held)
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"another damcli is writing {'into this folder' if file is None else 'this file'}",
            where=folder / (file or ""),
            fix="wait for it, or choose another with -o",
        ) from error
    try:
        yield
    finally:
        # Removed only while it is still ours, so that no second writer holds a file that is gone.
        held.unlink(missing_ok=True)
        lock.release()
