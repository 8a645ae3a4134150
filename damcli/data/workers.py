"""Decode many scans in worker processes: in order, with flat memory, and no scan can stop the run.

A worker is a Python process of its own that imports neither torch nor the program that started it. It writes pixels
into shared memory without a name, of which nothing is left behind, whoever is killed. See `damcli.data.feeding` for
what happens where a decoder crashes or hangs.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli.data.archives import Place, Refused
from damcli.data.decoding import Result, Status, attempt
from damcli.data.feeding import Done, Feeder, Task, Tasks
from damcli.data.images import Contract
from damcli.data.ring import Ring

# Scans in flight per worker, and the bytes that all of them may take once decoded.
IN_FLIGHT, IN_FLIGHT_BYTES = 64, 2**28
# Bytes of files in flight that only this process could read: once there are so many, no more are taken.
CONTENT_BYTES = 2**28


class Decoded(NamedTuple):
    """A scan as decoded: `pixels` uint8 by the contract where `status` is ok, else None and the reason.

    `reason` of a scan that is ok says what is remarkable of it, "" mostly. `patient` and `study` are PatientID and
    StudyInstanceUID of its DICOM header where they were asked for, "" where there is none.
    """

    index: int  # type: ignore[assignment]  # a field may well be named like tuple's method
    pixels: NDArray[np.uint8] | None
    status: Status
    reason: str
    patient: str = ""
    study: str = ""


class Lot(NamedTuple):
    """Consecutive scans: `images` uint8 (scans that are ok, H, W) or (scans that are ok, H, W, 3), in order.

    `scans` has one `Decoded` per scan, in order, `pixels` None everywhere. The images lie in shared memory that is
    used again after `release()`, from any thread: then they must not be touched.
    """

    scans: list[Decoded]
    images: NDArray[np.uint8]
    release: Callable[[], None]


def decode(
    places: Iterable[Path | Place | Refused], contract: Contract, workers: int, seconds: float = 60.0
) -> Generator[Decoded, None, None]:
    """Yield one `Decoded` per place, in their order, decoded by `workers` processes (0: by this one).

    "skipped" is what is no image by its content, "failed" what cannot be decoded, with the reason. With workers, a
    scan that takes longer than `seconds` is failed, and so is one whose decoder crashes twice: a worker that is
    killed from outside costs nothing. What is in flight is bounded, so memory does not grow with the number of
    places. Closing the iterator, also by an exception, ends the workers; should this process be killed, they end
    too.

    Raises `MachineError` where worker processes cannot start.

    >>> [(d.index, d.status) for d in decode([Path("nowhere.dcm")], Contract(size=8, channels=1), workers=0)]
    [(0, 'failed')]
    """
    with closing(batches(places, contract, workers, 1, seconds, ahead=1)) as lots:
        for lot in lots:
            (scan,) = lot.scans
            if len(lot.images):
                scan = scan._replace(pixels=lot.images[0].copy())
            lot.release()
            yield scan


def batches(
    places: Iterable[Path | Place | Refused],
    contract: Contract,
    workers: int,
    size: int,
    seconds: float = 60.0,
    ids: bool = False,
    ahead: int = 4,
) -> Generator[Lot, None, None]:
    """Yield the scans in lots: lot k holds the places k · size … (k + 1) · size - 1, as `decode` decodes them.

    A scan that is not ok leaves its lot with fewer images. `ids` says whether patient and study are wanted. At most
    `ahead` lots are out at a time: asked for another one, this waits until one of them is released.

    >>> lot, = batches([Path("nowhere.dcm")] * 3, Contract(size=8, channels=1), workers=0, size=4)
    >>> [scan.index for scan in lot.scans], lot.images.shape
    ([0, 1, 2], (0, 8, 8))
    """
    if workers < 1:
        yield from _here(places, contract, size, ids)
        return
    with closing(_Pool(places, contract, workers, size, seconds, ids, ahead)) as pool:
        yield from pool.lots()


def cores() -> int:
    """Return how many cores this process may use: the usual number of workers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The feeders, the queues between them and the caller, the memory, and the order.

    The memory is a ring of segments, each for a lot: those that are out, and those that are being filled. The one that
    was freed last is filled next, as it is still in the processor's cache.
    """

    def __init__(
        self,
        places: Iterable[Path | Place | Refused],
        contract: Contract,
        workers: int,
        size: int,
        seconds: float,
        ids: bool,
        ahead: int,
    ) -> None:
        self.places = iter(places)
        self.size = size
        self.patience = min(1.0, seconds / 4)  # how long to wait before looking for late workers
        flight = max(2 * workers, min(IN_FLIGHT * workers, IN_FLIGHT_BYTES // contract.size**2 // contract.channels))
        segments = ahead + max(2, -(-flight // size))
        self.ring = Ring(segments * size, contract.shape)
        self.free = list(range(segments))  # last in, first out; appended to by any thread
        self.taken: dict[int, int] = {}  # the segments of the lots that are filled or out, by their number
        self.out = threading.Semaphore(ahead)
        self.sent = 0
        self.held: dict[int, Result] = {}  # by the scan's number: what has its turn later
        self.content: dict[int, int] = {}  # by the scan's number: bytes that are on their way to a worker
        self.tasks: Tasks = queue.SimpleQueue()
        self.done: Done = queue.SimpleQueue()
        self.feeders = [
            Feeder(contract, self.tasks, self.done, seconds, self.ring.descriptor, ids) for _ in range(workers)
        ]

    def lots(self) -> Iterator[Lot]:
        for feeder in self.feeders:
            feeder.start()
        turn = 0
        while self._more(turn):
            self._wait_for_release()
            scans: list[Decoded] = []
            while len(scans) < self.size and self._more(turn):
                while turn not in self.held:
                    self._receive()
                scans.append(Decoded(turn, *self.held.pop(turn)))
                turn += 1
            yield self._lot(scans)

    def close(self) -> None:
        for feeder in self.feeders:
            feeder.close()
            self.tasks.put(None)
        for feeder in self.feeders:
            if feeder.is_alive():
                feeder.join(timeout=5)
        self.ring.close()

    def _more(self, turn: int) -> bool:
        """Send the scans that there is room for; False where none is left at this turn."""
        while (self.sent % self.size or self.free) and sum(self.content.values()) < CONTENT_BYTES:
            place = next(self.places, None)
            if place is None:
                break
            lot, position = divmod(self.sent, self.size)
            if not position:
                self.taken[lot] = self.free.pop()
            if isinstance(place, Refused):
                self.held[self.sent] = Result(None, "failed", place.reason)
            else:
                if isinstance(place, Place) and place.content is not None:
                    self.content[self.sent] = len(place.content)
                self.tasks.put(Task(self.sent, self.taken[lot] * self.size + position, place))
            self.sent += 1
        return turn < self.sent

    def _receive(self) -> None:
        """Wait for results."""
        try:
            results = self.done.get(timeout=self.patience)
        except queue.Empty:
            self._kill_the_late()
            return
        if isinstance(results, BaseException):
            raise results
        self.held |= results
        for number in results if self.content else ():
            self.content.pop(number, None)

    def _wait_for_release(self) -> None:
        while not self.out.acquire(timeout=self.patience):
            self._kill_the_late()

    def _kill_the_late(self) -> None:
        for feeder in self.feeders:
            feeder.kill_if_late()

    def _lot(self, scans: list[Decoded]) -> Lot:
        number = scans[0].index // self.size
        first = self.taken[number] * self.size
        images = self.ring.images[first : first + len(scans)]
        good = [position for position, scan in enumerate(scans) if scan.status == "ok"]
        for to, position in enumerate(good):
            if to != position:
                images[to] = images[position]

        def release() -> None:
            segment = self.taken.pop(number, None)
            if segment is not None:
                self.free.append(segment)
                self.out.release()

        return Lot(scans, images[: len(good)], release)


def _here(places: Iterable[Path | Place | Refused], contract: Contract, size: int, ids: bool) -> Iterator[Lot]:
    """Yield the lots of `batches`, decoded by this process."""
    numbered = enumerate(places)
    while lot := list(islice(numbered, size)):
        results = [
            Result(None, "failed", place.reason) if isinstance(place, Refused) else attempt(place, contract, ids)
            for _, place in lot
        ]
        images = np.array([one.pixels for one in results if one.pixels is not None], np.uint8)
        scans = [Decoded(index, *one._replace(pixels=None)) for (index, _), one in zip(lot, results, strict=True)]
        yield Lot(scans, images.reshape(-1, *contract.shape), lambda: None)
