"""What an unfinished dataset holds already, so that a killed `prepare` continues instead of starting over.

Per finished shard: its hash, how many scans of the source it took, and a digest of their files' sizes and times, so
that nothing is kept of files that have changed since.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from damcli import files
from damcli.config import Strict
from damcli.data.images import region
from damcli.data.sources import locate
from damcli.data.store import UNFINISHED, Shard
from damcli.errors import DataError, UsageError


class Part(Strict):
    """A finished shard: with it the first `consumed` scans of the source are done. `stamps` digests their files."""

    shard: Shard
    consumed: int
    stamps: str


class Journal(Strict):
    """The finished shards, and (row, text) of the scans refused, and of those remarkable, among the first `consumed`.

    `inputs` is the hash of source and settings: only with the same ones does a dataset continue.
    """

    inputs: str
    parts: tuple[Part, ...] = ()
    rejected: tuple[tuple[int, str], ...] = ()
    remarks: tuple[tuple[int, str], ...] = ()

    @property
    def consumed(self) -> int:
        return self.parts[-1].consumed if self.parts else 0

    def save(self, path: Path) -> None:
        """Write the journal into the dataset's folder."""
        files.write_json(path / UNFINISHED, self.model_dump(mode="json"))


def resume(path: Path, inputs: str, paths: Sequence[str]) -> Journal:
    """Return the journal of what can be kept in the folder `path`, and remove what cannot.

    `paths` are the source's scans. Raises `UsageError` if the folder holds what no unfinished dataset does.
    """
    journal = _read(path)
    # Without a journal only its own draft is ours: the folder may be anyone's.
    for draft in path.glob(f".{Path(UNFINISHED).stem}.*.tmp.json" if journal is None else ".*.tmp*"):
        draft.unlink(missing_ok=True)
    if journal is None:
        strangers = sorted(file.name for file in path.iterdir() if file.name != ".lock")
        if strangers:
            raise UsageError(
                f"this folder is no dataset and not empty: it holds {', '.join(strangers[:3])}",
                where=path,
                fix="choose another with -o",
            )
        return Journal(inputs=inputs)
    kept = tuple(_still_good(path, journal, paths)) if journal.inputs == inputs else ()
    keep = {part.shard.file for part in kept}
    for file in [*path.glob("images-*.npy"), path / "manifest.parquet", path / "rejected.csv"]:
        if file.name not in keep:
            file.unlink(missing_ok=True)
    consumed = kept[-1].consumed if kept else 0
    rejected, remarks = (
        tuple(pair for pair in pairs if pair[0] < consumed) for pairs in (journal.rejected, journal.remarks)
    )
    return Journal(inputs=inputs, parts=kept, rejected=rejected, remarks=remarks)


def leave(path: Path) -> None:
    """Remove the journal of a finished dataset, and one that has nothing to continue from."""
    journal = _read(path)
    if journal is not None and (not journal.parts or (path / "dataset.json").exists()):
        (path / UNFINISHED).unlink()


def watched(paths: Iterable[str], stamps: deque[bytes]) -> Iterator[Path]:
    """Yield the files of `paths`, putting the stamp of each (its size and time) into `stamps`."""
    for path in paths:
        file = locate(path)
        stamps.append(_stamp(file))
        yield file


def _read(path: Path) -> Journal | None:
    if not (path / UNFINISHED).exists():
        return None
    try:
        return Journal.model_validate(files.read_json(path / UNFINISHED, "unfinished dataset"))
    except (DataError, ValidationError):
        # Nothing can be kept of shards that nothing is known of.
        return Journal(inputs="")


def _still_good(path: Path, journal: Journal, paths: Sequence[str]) -> Iterator[Part]:
    begin = 0
    for part in journal.parts:
        file = path / part.shard.file
        if not file.is_file() or files.sha256(file) != part.shard.sha256:
            return
        digest = hashlib.sha256()
        for name in paths[begin : part.consumed]:
            digest.update(_stamp(locate(name)))
        if digest.hexdigest() != part.stamps:
            return
        yield part
        begin = part.consumed


def _stamp(path: Path) -> bytes:
    file, _ = region(path)
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return b"absent\n"
    return f"{status.st_size} {status.st_mtime_ns}\n".encode()
