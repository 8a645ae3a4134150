"""A folder on another machine (s3://, gs://, sftp://, …) as a local one: a mirror of its names, and its scans fetched.

Nothing of the scans lies in the mirror: they are fetched where they are decoded. S3 is listed page by page and file
systems folder by folder, so that memory does not grow with them; other stores' packages give their listing whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from damcli import files
from damcli.data import inputs, listing
from damcli.data.archives import FILE_LIMIT, Place, Refused, named
from damcli.data.filesystems import Far, asking, is_url, opened, private, reason, shown, told
from damcli.data.images import region
from damcli.data.staging import staged
from damcli.errors import DataError, MachineError, UsageError

__all__ = ["Mirror", "is_url", "mirrored", "shown", "staged"]

# What is read to find the scans; `.ics` describes the films of DDSM.
_TEXTS = (".csv", ".tsv", ".txt", ".json", ".toml", ".parquet", ".ics")
TABLES = (*_TEXTS, *(f"{suffix}.gz" for suffix in _TEXTS))
# At once, by the file systems that can; and how many mirrors of one folder there may be.
AT_ONCE, MIRRORS = 256, 100
# Scans that are fetched before they are asked for, as an object store takes its time for each, and their bytes.
AHEAD, AHEAD_BYTES = 4, 2**26
# Seconds before the next try, where a fetch fails.
PAUSES = (0.5, 2.0, 8.0)
_ODD = re.compile(r".*~odd-[0-9a-f]{12}(\.\w{1,8})?", re.DOTALL)
ODD = "its name cannot be that of a file here: it leads out of the folder, is too long, or is there twice"
ARCHIVE = "an archive on another machine is not read in place: copy it here, or unpack it"
CHANGED = "it changed after it was listed: run the same command again"


@dataclass(frozen=True)
class Mirror:
    """A remote folder seen as a local one: its files' names, their sizes without content, and times.

    `url` is the folder's URL as it may be shown, `root` stands for it, and `path` for what was named: `root`, or a file
    in it. Times are none, but numbers that change with the content (of its ETag, mostly), the same in every run.
    Tables (`TABLES`) have their content. A file whose name cannot be one here has another one at the top of `root`, so
    that it is not lost: it is refused where it is fetched.
    """

    root: Path
    url: str
    path: Path
    _address: str = field(repr=False)  # with what may not be shown

    def url_of(self, path: Path) -> str:
        """Return the URL of a file or folder of the mirror, as it may be shown."""
        inner = path.relative_to(self.root).as_posix()
        return self.url if inner == "." else f"{self.url}/{inner}"

    def stamp(self, path: Path) -> str:
        """Return what `Input.stamp` says of a file of the mirror; "" for others, and on machines that do not see it."""
        return inputs.stamp(path)

    def fetched(self, place: Place, stamp: str = "") -> Place | Refused:
        """Return a place with its bytes as content, on any machine and from any thread; others than ours as they are.

        `stamp` is `Input.stamp`, for machines that do not see the mirror: what is now of another size or content is
        refused, as is what is gone, may not be read, or is an archive. Raises `MachineError` where the file system
        fails, also after a few tries: nothing is wrong with the scan then.
        """
        file, _ = region(place.path)
        if not file.is_relative_to(self.root):
            return place
        if ".." in file.relative_to(self.root).parts:
            return Refused("the path leaves the folder of scans")
        if _ODD.fullmatch(file.name):
            return Refused(ODD)
        if named(file):
            return Refused(ARCHIVE)
        far = opened(self._address)
        path = far.below(file.relative_to(self.root).as_posix())
        for pause in (*PAUSES, None):
            try:
                found = _read(far.system, path, stamp or self.stamp(file))
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                return Refused(f"the file cannot be read: {reason(error)}")
            except Exception as error:
                if pause is None:
                    fix = "once it can, the same command goes on where it was"
                    raise MachineError(
                        f"a scan cannot be fetched: {reason(error)}", where=self.url_of(file), fix=fix
                    ) from None
            else:
                if isinstance(found, Refused):
                    return found
                if found is not None:
                    return place._replace(content=found)
            if pause is not None:
                time.sleep(pause)
        return Refused("the file cannot be read: less of it comes than there is")

    def fetching(self, places: Iterable[tuple[Place | Refused, str]]) -> Generator[Place | Refused, None, None]:
        """Yield what `fetched` makes of places and their stamps, in order, a few of them fetched ahead.

        By the sizes in their stamps, those that wait take no more than `AHEAD_BYTES`, or are one.
        """
        ahead = AHEAD if opened(self._address).system.async_impl else 1  # others are for one thread alone
        waiting: deque[tuple[Future[Place | Refused], int]] = deque()
        pool = ThreadPoolExecutor(ahead)
        try:
            for place, stamp in places:
                size = int(stamp.split()[0]) if stamp else 0
                while waiting and (len(waiting) > ahead or size + sum(held for _, held in waiting) > AHEAD_BYTES):
                    yield waiting.popleft()[0].result()
                if isinstance(place, Refused):
                    future: Future[Place | Refused] = Future()
                    future.set_result(place)
                else:
                    future = pool.submit(self.fetched, place, stamp)
                waiting.append((future, size))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def mirrored(url: str) -> Iterator[Mirror]:
    """Mirror a remote folder, or that of a remote table, or a single file, on this disk, for its user only.

    A folder for this process below $XDG_CACHE_HOME/damcli, removed at the end; what a killed run left goes too.
    Errors that leave the block name URLs. Raises `UsageError` where nothing is there or nothing may be read,
    `MachineError` where the file system's package is missing, the file system fails, or this disk is full.
    """
    far, where = opened(url), shown(url)
    with asking(where):
        entry = far.system.info(far.path)
    address, entries, name = url, None, ""
    if entry["type"] == "file" and not url.endswith("/"):
        name = far.path.rpartition("/")[2]
        address, where = (re.sub(r"/[^/]*\Z", "", one) for one in (url, where))
        far = far._replace(path=far.parent)
        if not name.lower().endswith(TABLES):
            entries = iter([entry])
    with ExitStack() as stack:
        root = stack.enter_context(_place(where))
        stack.enter_context(told({root: where}))
        with files.disk_errors(root):
            _fill(root, far, listing.listed(far, where) if entries is None else entries, where)
        yield Mirror(root, where, root / name, address)


@contextmanager
def _place(where: str) -> Iterator[Path]:
    """Hold an empty folder for the mirror of this URL: mostly the same one, another where a process has that."""
    base = private("mirrors")
    label = hashlib.sha256(where.encode()).hexdigest()[:16]
    for number in range(MIRRORS):
        root = base / f"{label}-{number}"
        with ExitStack() as stack:
            try:
                stack.enter_context(files.only_writer(base, root.name))
            except UsageError:
                if number + 1 < MIRRORS:
                    continue
                raise
            try:
                with files.disk_errors(root):
                    if root.exists():
                        shutil.rmtree(root)
                    root.mkdir(mode=0o700)
                yield root
            finally:
                shutil.rmtree(root, ignore_errors=True)
            return


def _fill(root: Path, far: Far, entries: Iterator[Mapping[str, Any]], where: str) -> None:
    """Make the files of a mirror."""
    made = _made(root, far, entries)
    tables = (
        (file, entry) for file, entry in made if file.name.lower().endswith(TABLES) and not _ODD.fullmatch(file.name)
    )
    while batch := list(islice(tables, AT_ONCE)):
        with asking(where):
            far.system.get([entry["name"] for _, entry in batch], [str(file) for file, _ in batch])
        for file, entry in batch:
            if file.stat().st_size != entry["size"]:
                what = "this table changed, or was cut off, while it was read"
                raise DataError(what, where=file, fix="run the same command again")
            _date(file, entry)


def _made(root: Path, far: Far, entries: Iterator[Mapping[str, Any]]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Make files without content, and yield each with its entry."""
    top = far.below("")
    for entry in entries:
        inner, size = str(entry["name"]).removeprefix(top), entry["size"] or 0
        if not size and (entry["type"] == "directory" or not inner or inner.endswith("/")):
            continue  # an empty object stands for a folder
        file = _inside(root, inner)
        if file is None or not _create(root, file, size):
            if file is not None and not size and os.path.isdir(file):  # noqa: PTH112 - that raises at long names
                continue
            file = root / _odd(inner)
            if not _create(root, file, size):
                raise DataError("a file is listed twice", where=root, fix="run the same command again")
        _date(file, entry)
        yield file, entry


def _inside(root: Path, inner: str) -> Path | None:
    parts = inner.split("/")
    return None if "\0" in inner or not {"", ".", ".."}.isdisjoint(parts) else root.joinpath(*parts)


def _odd(inner: str) -> str:
    """Return the name of a file that cannot have its own: a readable part of it, and one that tells it from others."""
    digest = hashlib.sha256(inner.encode(errors="surrogateescape")).hexdigest()[:12]
    suffix = re.search(r"(\.\w{1,8})?\Z", inner, re.ASCII)
    assert suffix is not None
    readable = re.sub(r"[^\w.-]+", "_", inner[: suffix.start()])[-40:]
    return f"{readable}~odd-{digest}{suffix[0]}"


def _create(root: Path, file: Path, size: int) -> bool:
    """Make a file of this size without content; False where none can be called so."""
    try:
        try:
            handle = file.open("xb", buffering=0)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("xb", buffering=0)
        with handle:
            if named(file):
                handle.write(b"-")  # else it would pass for an empty tar
            handle.truncate(min(size, listing.SIZE_LIMIT))
    except (FileExistsError, NotADirectoryError):
        return _make_way(root, file) and _create(root, file, size)
    except UnicodeError:
        return False
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            return False
        raise
    return True


def _make_way(root: Path, file: Path) -> bool:
    """Rename the file that stands where a folder of `file` goes, or remove it if it is empty; False if none does."""
    for folder in file.relative_to(root).parents:
        stands = root / folder
        if stands.is_file() and not stands.name.lower().endswith(TABLES):
            if stands.stat().st_size:
                stands.rename(root / _odd(folder.as_posix()))
            else:
                stands.unlink()
            return True
    return False


def _date(file: Path, entry: Mapping[str, Any]) -> None:
    """Give a file of the mirror the time that stands for its content."""
    seconds = listing.version(entry)
    os.utime(file, (seconds, seconds))


def _read(system: Any, path: str, stamp: str) -> bytes | Refused | None:
    """Return an object as it was when it got its `stamp`; None if less of it came."""
    listed = stamp or listing.stamp(system.info(path))
    if int(listed.split()[0]) > FILE_LIMIT:
        return Refused(f"the file is larger than {FILE_LIMIT >> 30} GiB")
    data: bytes = system.cat_file(path)
    entry = system.info(path)
    if listing.stamp(entry) != listed:
        return Refused(CHANGED)
    return data if len(data) == entry["size"] else None
