"""A worker process and the thread that talks to it: `damcli.data.decoding` is its far end.

The thread sends tasks over a pipe, some ahead, and reads what became of each from another; the pixels are in shared
memory by then. Decoders are native code that meets damaged files: where one crashes or hangs, the process is replaced,
and the scan that it had in hand is reported as failed.
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
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from damcli.data.archives import Place
from damcli.data.decoding import READY, Result, task
from damcli.data.images import Contract
from damcli.errors import MachineError

# What a worker has at hand, so that it need not wait for this process: scans for so many seconds, and at most so many.
# Slow scans are so shared out one by one.
AHEAD, MOST_AHEAD = 0.05, 32
# How often a process may be killed before it is ready: by then it is not by chance.
STARTS = 3
_NO_START = "the processes that decode scans cannot start"
_START = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from damcli.data.decoding import serve
serve(sys.argv[2], *json.loads(sys.argv[3]))
"""


class Task(NamedTuple):
    """A scan to decode: its number, the slot of the shared memory that its pixels go to, and where it is."""

    number: int
    slot: int
    place: Path | Place


Tasks = queue.SimpleQueue[Task | None]
# Results by the number of their tasks, without pixels; or why a feeder had to give up.
Done = queue.SimpleQueue[dict[int, Result] | BaseException]


class Feeder(threading.Thread):
    """Takes `tasks` (None: there are no more) and puts their results into `done`.

    A process that dies is replaced: nothing writes into a task's slot any more once its result is there. `ids` says
    whether results hold patient and study.
    """

    def __init__(self, contract: Contract, tasks: Tasks, done: Done, seconds: float, memory: int, ids: bool) -> None:
        super().__init__(daemon=True)
        self.contract, self.tasks, self.done, self.seconds = contract, tasks, done, seconds
        self.memory, self.ids = memory, ids
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()  # held to start, kill and forget the process
        self.closing = False
        self.sent = 0  # tasks that the process has and has not answered
        self.begun = math.inf  # when it began with the first of them
        self.pace = math.inf  # seconds per scan, of late

    def run(self) -> None:
        try:
            self._feed()
        except BaseException as error:  # raised again where the results are taken
            self.done.put(error)
        finally:
            self._end()

    def close(self) -> None:
        """Kill the process and start no other."""
        with self.lock:
            self.closing = True
            if self.process:
                self.process.kill()

    def kill_if_late(self) -> None:
        """Kill the process if the scan that it has in hand takes too long."""
        with self.lock:
            if self.process and self._late():
                self.process.kill()

    def _late(self) -> bool:
        return time.monotonic() - self.begun >= self.seconds

    def _feed(self) -> None:
        waiting: deque[Task] = deque()
        crashed = False  # whether a process already died of the first one waiting
        while self._take(waiting):
            results: dict[int, Result] = {}
            try:
                for result in self._exchange(waiting):
                    results[waiting.popleft().number] = result
                    crashed = False
            except (EOFError, OSError):
                if self.closing:
                    return
                late, died = self._late(), self._end()
                if late or crashed:
                    reason = f"took longer than {self.seconds:g} s" if late else f"crashed ({died})"
                    results[waiting.popleft().number] = Result(None, "failed", f"the decoder {reason}")
                crashed = not (late or crashed)
            self.done.put(results)

    def _take(self, waiting: deque[Task]) -> bool:
        """Fill up what is waiting; False when there is nothing more to do."""
        while len(waiting) < max(1, min(MOST_AHEAD, int(AHEAD / self.pace))):
            try:
                one = self.tasks.get(block=not waiting)
            except queue.Empty:
                return True
            if one is None:
                return False
            waiting.append(one)
        return True

    def _exchange(self, waiting: deque[Task]) -> Iterator[Result]:
        """Send what is waiting and yield the answers to its first half; the other half keeps the process busy.

        Where scans are quick, sleeping until the answers are there costs far less than to be woken for each.
        Raises `EOFError` or `OSError` where the process has died.
        """
        process = self.process or self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        start = time.monotonic()
        self.begun = min(self.begun, start)
        for _, slot, place in islice(waiting, self.sent, None):
            process.stdin.writelines(task(slot, place))
            self.sent += 1
        process.stdin.flush()
        expected = (self.sent + 1) // 2
        if expected > 1:
            time.sleep(0.8 * self.pace * expected)
        for _ in range(expected):
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            self.sent -= 1
            self.begun = time.monotonic() if self.sent else math.inf
            yield Result(None, *json.loads(line))
        self.pace = max(1e-6, (time.monotonic() - start) / expected)

    def _begin(self) -> subprocess.Popen[bytes]:
        """Return a new process that is ready. One that is killed before that has met no scan, which is not blamed."""
        for _ in range(STARTS):
            process = self._spawn()
            assert process.stdout is not None
            if process.stdout.readline() == READY:
                return process
            if process.wait() > 0:
                raise MachineError(f"{_NO_START}: the reason is above")
            died = self._end()
        raise MachineError(f"{_NO_START}: they are killed ({died})", fix="free some memory")

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = [json.dumps(sys.path), self.contract.model_dump_json(), json.dumps([self.memory, self.ids])]
        with self.lock:
            if self.closing:
                raise EOFError
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, *settings],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[self.memory],
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    process_group=0,  # Ctrl-C reaches this process only, which then ends its workers
                )
            except OSError as error:
                raise MachineError(f"{_NO_START}: {error.strerror}") from error
            return self.process

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
