"""Decode many scans in worker processes: in order, with flat memory, and no scan can stop the run.

A worker is a Python process of its own that imports neither torch nor the program that started it. A thread sends it
paths over one pipe, some ahead, and reads pixels from another. Decoders are native code that meets damaged files:
where one crashes or hangs, the process is replaced, and the scan that it had in hand is reported as failed.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from damcli.data.decoding import PIPE_BYTES, READY, REPLY, STATUS, Result, Status, attempt
from damcli.data.images import Contract
from damcli.errors import MachineError

# What a worker has at hand, so that it need not wait for this process: paths for so many seconds, and at most so many.
# Slow scans are so shared out one by one.
AHEAD, MOST_AHEAD = 0.05, 32
# Scans in flight per worker, and the bytes they may take over all.
IN_FLIGHT, IN_FLIGHT_BYTES = 64, 2**28
_NO_START = "the processes that decode scans cannot start"
_START = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from damcli.data.decoding import serve
serve(sys.argv[2])
"""


class Decoded(NamedTuple):
    """A scan as decoded: `pixels` uint8 by the contract where `status` is ok, else None and the reason.

    `reason` of a scan that is ok says what is remarkable of it, "" mostly.
    """

    index: int  # type: ignore[assignment]  # a field may well be named like tuple's method
    pixels: NDArray[np.uint8] | None
    status: Status
    reason: str


_Tasks = queue.SimpleQueue[tuple[int, Path] | None]
_Done = queue.SimpleQueue[list[Decoded] | BaseException]
_Buffer = TypeVar("_Buffer", bytearray, memoryview)


def decode(paths: Iterable[Path], contract: Contract, workers: int, seconds: float = 60.0) -> Iterator[Decoded]:
    """Yield one `Decoded` per path, in the order of `paths`, decoded by `workers` processes (0: by this one).

    "skipped" is what is no image by its content, "failed" what cannot be decoded, with the reason. With workers, a
    scan that takes longer than `seconds` is failed, and so is one whose decoder crashes twice: a worker that is
    killed from outside costs nothing. What is in flight is bounded, so memory does not grow with the number of
    paths. Closing the iterator, also by an exception, ends the workers; should this process be killed, they end
    themselves.

    Raises `MachineError` where worker processes cannot start.

    >>> [(d.index, d.status) for d in decode([Path("nowhere.dcm")], Contract(size=8, channels=1), workers=0)]
    [(0, 'failed')]
    """
    if workers < 1:
        for index, path in enumerate(paths):
            yield Decoded(index, *attempt(path, contract))
        return
    pool = _Pool(contract, workers, seconds)
    try:
        yield from pool.run(enumerate(paths))
    finally:
        pool.close()


def cores() -> int:
    """Return how many cores this process may use: the usual number of workers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The feeders, the queues between them and the caller, and the order."""

    def __init__(self, contract: Contract, workers: int, seconds: float) -> None:
        scan = contract.size**2 * contract.channels
        self.in_flight = max(2 * workers, min(IN_FLIGHT * workers, IN_FLIGHT_BYTES // scan))
        self.seconds = seconds
        self.tasks: _Tasks = queue.SimpleQueue()
        self.done: _Done = queue.SimpleQueue()
        self.feeders = [_Feeder(contract, self.tasks, self.done, seconds) for _ in range(workers)]

    def run(self, numbered: Iterator[tuple[int, Path]]) -> Iterator[Decoded]:
        for feeder in self.feeders:
            feeder.start()
        sent = 0
        held: dict[int, Decoded] = {}
        for turn in count():
            for task in islice(numbered, self.in_flight - (sent - turn)):
                self.tasks.put(task)
                sent += 1
            if turn == sent:
                return
            while turn not in held:
                held |= {result.index: result for result in self._next()}
            yield held.pop(turn)

    def _next(self) -> list[Decoded]:
        while True:
            try:
                results = self.done.get(timeout=min(1.0, self.seconds / 4))
            except queue.Empty:
                for feeder in self.feeders:
                    feeder.kill_if_late()
                continue
            if isinstance(results, BaseException):
                raise results
            return results

    def close(self) -> None:
        for feeder in self.feeders:
            feeder.close()
            self.tasks.put(None)
        for feeder in self.feeders:
            feeder.join(timeout=5)


class _Feeder(threading.Thread):
    """One worker process and the thread that talks to it; a process that dies is replaced."""

    def __init__(self, contract: Contract, tasks: _Tasks, done: _Done, seconds: float) -> None:
        super().__init__(daemon=True)
        self.contract, self.tasks, self.done, self.seconds = contract, tasks, done, seconds
        self.shape = (contract.size, contract.size) + ((3,) if contract.channels == 3 else ())
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()  # held to start, kill and forget the process
        self.closing = False
        self.sent = 0  # paths that the process has and has not answered
        self.begun = math.inf  # when it began with the first of them
        self.pace = math.inf  # seconds per scan, of late
        self.room = 1  # answers that the pipe can hold

    def run(self) -> None:
        try:
            self._feed()
        except BaseException as error:  # raised again where the results are taken
            self.done.put(error)
        finally:
            self._end()

    def close(self) -> None:
        with self.lock:
            self.closing = True
            if self.process:
                self.process.kill()

    def kill_if_late(self) -> None:
        with self.lock:
            if self.process and self._late():
                self.process.kill()

    def _late(self) -> bool:
        return time.monotonic() - self.begun >= self.seconds

    def _feed(self) -> None:
        waiting: deque[tuple[int, Path]] = deque()
        crashed = False  # whether a process already died of the first one waiting
        while self._take(waiting):
            results = []
            try:
                for result in self._exchange(waiting):
                    results.append(Decoded(waiting.popleft()[0], *result))
                    crashed = False
            except (EOFError, OSError):
                if self.closing:
                    return
                late, died = self._late(), self._end()
                if late or crashed:
                    reason = f"took longer than {self.seconds:g} s" if late else f"crashed ({died})"
                    results.append(Decoded(waiting.popleft()[0], None, "failed", f"the decoder {reason}"))
                crashed = not (late or crashed)
            self.done.put(results)

    def _take(self, waiting: deque[tuple[int, Path]]) -> bool:
        """Fill up what is waiting; False when there is nothing more to do."""
        while len(waiting) < max(1, min(MOST_AHEAD, int(AHEAD / self.pace))):
            try:
                task = self.tasks.get(block=not waiting)
            except queue.Empty:
                return True
            if task is None:
                return False
            waiting.append(task)
        return True

    def _exchange(self, waiting: deque[tuple[int, Path]]) -> Iterator[Result]:
        """Send what is waiting and yield the answers to its first half; the other half keeps the process busy.

        Where scans are quick, sleeping until the answers are there costs far less than to be woken for each.
        Raises `EOFError` or `OSError` where the process has died.
        """
        process = self.process or self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        start = time.monotonic()
        for _, path in islice(waiting, self.sent, None):
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            self.sent += 1
        process.stdin.flush()
        self.begun = min(self.begun, start)
        expected = min((self.sent + 1) // 2, self.room)
        if expected > 1:
            time.sleep(0.8 * self.pace * expected)
        for _ in range(expected):
            result = self._answer(process.stdout)
            self.sent -= 1
            self.begun = time.monotonic() if self.sent else math.inf
            yield result
        self.pace = max(1e-6, (time.monotonic() - start) / expected)

    def _answer(self, pipe: IO[bytes]) -> Result:
        status, _, length = REPLY.unpack(_fill(bytearray(REPLY.size), pipe))
        pixels = None
        if status == b"o":
            pixels = np.empty(self.shape, np.uint8)
            _fill(pixels.data.cast("B"), pipe)
        return pixels, STATUS[status], _fill(bytearray(length), pipe).decode()

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.lock:
            if self.closing:
                raise EOFError
            try:
                self.process = process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, json.dumps(sys.path), self.contract.model_dump_json()],
                    bufsize=PIPE_BYTES,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    process_group=0,  # Ctrl-C reaches this process only, which then ends its workers
                )
            except OSError as error:
                raise MachineError(f"{_NO_START}: {error.strerror}") from error
        assert process.stdout is not None
        self.room = max(1, _widened(process.stdout) // (math.prod(self.shape) + REPLY.size))
        if process.stdout.read(1) != READY:
            if process.wait() > 0:
                raise MachineError(f"{_NO_START}: the reason is above")
            raise EOFError
        return process

    def _end(self) -> str:
        """End the process and return what it died of."""
        with self.lock:
            process, self.process = self.process, None
        self.sent, self.begun = 0, math.inf
        if process is None:
            return ""
        process.kill()
        # Closing stdin may try to send what is left.
        with suppress(OSError), process:
            pass
        code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _fill(buffer: _Buffer, pipe: IO[bytes]) -> _Buffer:
    """Fill the buffer from the pipe. Raises `EOFError` where it ends before."""
    if pipe.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise EOFError
    return buffer


def _widened(pipe: IO[bytes]) -> int:
    """Let the pipe hold more, where the system can, and return how many bytes it holds."""
    try:
        import fcntl

        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return 0
