"""Decoding on a cluster: Ray's workers each keep a decoder process, which any scan may crash without harm to others."""

from __future__ import annotations

import math
import queue
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from damcli.cluster import waves
from damcli.cluster.session import Session
from damcli.data.archives import Place, Refused
from damcli.data.feeding import Done, Feeder, Task, Tasks
from damcli.data.images import Contract, region
from damcli.data.remote import Mirror
from damcli.data.ring import Ring
from damcli.data.workers import Decoded
from damcli.errors import MachineError

# A group's scans, and their bytes once decoded: enough to be worth a task, little enough to wait for and to hold.
SCANS, BYTES = 64, 2**24
SECONDS = 60.0
# Bytes of files that were fetched and wait for the decoder: once there are so many, no more are taken.
CONTENT_BYTES = 2**26
UNREADABLE = "the file cannot be read"


class Unit(NamedTuple):
    """A scan as it was decoded, where it lies, and the node that decoded it."""

    place: Place | Refused
    scan: Decoded
    node: str


def decode(
    session: Session, paths: Iterable[Path], contract: Contract, mirror: Mirror | None = None, seconds: float = SECONDS
) -> Generator[Decoded, None, None]:
    """Yield one `Decoded` per path, in their order, as `data.workers.decode` does, decoded by the cluster.

    Raises `MachineError` where a node cannot read a file that this machine can.
    """
    places = ((Place(path.absolute()), mirror.stamp(path) if mirror else "") for path in paths)
    stage = waves.Stage(partial(units, contract=contract, ids=False, mirror=mirror, seconds=seconds))
    with closing(waves.run(session, places, group_size(contract), stage)) as found:
        for index, (place, scan, node) in enumerate(found):
            if mirror is None:
                check_seen(node, place, scan.reason)
            yield scan._replace(index=index)


def group_size(contract: Contract) -> int:
    """Return how many scans are decoded at a time."""
    return max(1, min(SCANS, BYTES // math.prod(contract.shape)))


def units(
    places: list[tuple[Place | Refused, str]],
    contract: Contract,
    ids: bool,
    mirror: Mirror | None,
    seconds: float = SECONDS,
) -> list[Unit]:
    """Decode a group of scans, on a worker: where they lie, and their stamps."""
    sources = mirror.fetching(places) if mirror else (place for place, _ in places)
    with closing(sources):
        scans = _decoded(sources, contract, ids, seconds)
    node = waves.node()
    return [Unit(place, scan, node) for (place, _), scan in zip(places, scans, strict=True)]


def check_seen(node: str, place: Place | Refused, reason: str) -> None:
    """Raise `MachineError` for a file that a node could not read while here it can be: that is no fault of the scan."""
    if isinstance(place, Refused) or not reason.startswith(UNREADABLE):
        return
    file, _ = region(place.path)
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError:
        return
    raise MachineError(
        f"node {node} of the Ray cluster does not see a file that this machine sees: {reason}",
        where=file,
        fix="put the scans where all nodes see them under the same path",
    )


class _Decoder:
    """A decoder process of this worker, which outlives its tasks: to start it takes as long as to decode many scans."""

    def __init__(self, contract: Contract, ids: bool, seconds: float) -> None:
        self.free = list(range(max(2, group_size(contract) // 2)))
        self.ring = Ring(len(self.free), contract.shape)
        self.out: dict[int, int] = {}  # the slot of a scan that is in work, by its number
        self.content: dict[int, int] = {}  # the bytes that it was fetched with
        self.tasks: Tasks = queue.SimpleQueue()
        self.done: Done = queue.SimpleQueue()
        self.feeder = Feeder(contract, self.tasks, self.done, seconds, self.ring.descriptor, ids)
        self.feeder.start()

    def decode(self, sources: Iterable[Place | Refused]) -> list[Decoded]:
        found: dict[int, Decoded] = {}
        for number, source in enumerate(sources):
            if isinstance(source, Refused):
                found[number] = Decoded(number, None, "failed", source.reason)
                continue
            self.out[number] = self.free.pop()
            self.content[number] = len(source.content or b"")
            self.tasks.put(Task(number, self.out[number], source))
            # Before the next one is taken, since it comes with its bytes.
            while not self.free or sum(self.content.values()) >= CONTENT_BYTES:
                found |= self._received()
        while self.out:
            found |= self._received()
        return [found[number] for number in sorted(found)]

    def _received(self) -> dict[int, Decoded]:
        try:
            results = self.done.get(timeout=min(1.0, self.feeder.seconds / 4))
        except queue.Empty:
            self.feeder.kill_if_late()
            return {}
        if isinstance(results, BaseException):
            raise results
        found = {}
        for number, result in results.items():
            slot = self.out.pop(number)
            del self.content[number]
            pixels = self.ring.images[slot].copy() if result.status == "ok" else None
            found[number] = Decoded(number, pixels, *result[1:])
            self.free.append(slot)
        return found

    def close(self) -> None:
        self.feeder.close()
        self.tasks.put(None)
        self.feeder.join(timeout=5)
        self.ring.close()


# The one that this process has, by what it was started for.
_kept: dict[tuple[Contract, bool, float], _Decoder] = {}


def _decoded(sources: Iterable[Place | Refused], *settings: *tuple[Contract, bool, float]) -> list[Decoded]:
    if settings not in _kept:
        _drop()
        _kept[settings] = _Decoder(*settings)
    try:
        return _kept[settings].decode(sources)
    except BaseException:  # what it still has in hand must not be taken for scans of the next group
        _drop()
        raise


def _drop() -> None:
    while _kept:
        _kept.popitem()[1].close()
