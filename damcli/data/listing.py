"""What a folder on another machine holds, as entries of fsspec, a page or a folder at a time; and their versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from damcli.data.archives import FILE_LIMIT
from damcli.data.filesystems import Far, asking

# What cannot be read is not there in this size either, which a disk without holes would have to hold.
SIZE_LIMIT = FILE_LIMIT + 1
# What tells one content of an object from another: the first that its file system knows. A listing gives more digits
# of S3's times than a question for one object does.
_VERSIONS = [
    "ETag",
    "etag",
    "md5Hash",
    "sha",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "modify",
]


def listed(far: Far, where: str) -> Iterator[Mapping[str, Any]]:
    """Yield fsspec's entries of all that lies below a folder; it may name folders too."""
    entries = _pages(far) if hasattr(far.system, "call_s3") else _walked(far)
    while True:
        with asking(where):
            entry = next(entries, None)
        if entry is None:
            return
        yield entry


def _pages(far: Far) -> Iterator[Mapping[str, Any]]:
    """List S3 a page at a time, with every key as it is: its package would hold the keys of all, without odd ones."""
    bucket, prefix, _ = far.system.split_path(far.path)
    more: dict[str, str] = {}
    while True:
        page = far.system.call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **far.system.req_kw, **more
        )
        for one in page.get("Contents", ()):
            yield {"name": f"{bucket}/{one['Key']}", "size": one["Size"], "type": "file", "ETag": one["ETag"]}
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _walked(far: Far) -> Iterator[Mapping[str, Any]]:
    if far.has_objects:
        yield from far.system.find(far.path, detail=True).values()
        return
    waiting = [far.path]
    while waiting:
        folder = waiting.pop()
        entries = [_followed(far, entry) for entry in far.system.ls(folder, detail=True)]
        entries.sort(key=lambda entry: str(entry["name"]))
        yield from (entry for entry in entries if entry["type"] == "file")
        # The last one first: a link that leads in a circle soon ends in an error.
        waiting += [entry["name"] for entry in entries if entry["type"] == "directory"]


def _followed(far: Far, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry as that of a file, with its size, or of a folder: a link may be either."""
    name, kind, size = entry["name"], entry["type"], entry.get("size")
    if kind not in ("file", "directory"):
        kind = "directory" if far.system.isdir(name) else "file"
        size = None
    if kind == "file" and size is None:
        with suppress(FileNotFoundError):  # a link that leads nowhere: an empty file, until it is read
            entry = far.system.info(name)
    return {**entry, "name": name, "type": kind, "size": entry.get("size") or 0}


def version(entry: Mapping[str, Any]) -> int:
    """Return what changes with an object, as whole seconds: not all disks keep parts of them."""
    known = next((entry[name] for name in _VERSIONS if entry.get(name)), None)
    text = known.removeprefix("W/").strip('"') if isinstance(known, str) else known
    return int.from_bytes(hashlib.sha256(f"{entry['size']} {text}".encode()).digest()[:4]) >> 1


def stamp(entry: Mapping[str, Any]) -> str:
    """Return the stamp of an object's file in the mirror, as `data.inputs` makes it."""
    return f"{min(entry['size'], SIZE_LIMIT)} {version(entry) * 10**9}"
