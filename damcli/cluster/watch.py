"""Is a Ray process there, and is it still there: Ray waits for one that is gone, and then ends us without a word."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from damcli.errors import MachineError

Address = tuple[str, int]

# Seconds that the head may be silent, as it can be restarted meanwhile. Ray ends this process after sixty.
PATIENCE_HEAD = 30.0
# The same for Ray's process on this machine, whose end Ray outlives by some ten.
PATIENCE_HERE = 4.0
# How long this program has to end in good order, which Ray may prevent: not all its waiting can be interrupted.
GRACE = 7.0


def parsed(text: str) -> Address | None:
    """Return host and port of "host:port" or "[host]:port", None where it is neither.

    >>> parsed("10.0.0.1:6379"), parsed("[::1]:6379"), parsed("head")
    (('10.0.0.1', 6379), ('::1', 6379), None)
    """
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def silence(address: Address, seconds: float = 10.0) -> str | None:
    """Return None where a Ray process answers at `address` within `seconds`, else why not.

    Ray speaks gRPC: to the preface of an HTTP/2 client (RFC 9113, section 3.4) the server's settings must come back.
    """
    try:
        with socket.create_connection(address, timeout=seconds) as line:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return None
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            head = line.recv(9, socket.MSG_WAITALL)
    except OSError as error:
        return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return None if len(head) == 9 and head[3] == 4 else "what answers there is not Ray"


class _Gone(BaseException):
    """Ends whatever the main thread does; no `except Exception` of Ray stops it."""


class Watch:
    """Looks, from a thread of its own, whether Ray processes are still there.

    If one is gone, whatever the main thread does is broken off, and `lost` is the error to raise. Then this process has
    `GRACE` seconds to end: Ray cannot be interrupted everywhere, nor unloaded without its cluster, and would itself end
    us later, with another exit code. To be made before Ray is imported, so as to have the last word.
    """

    def __init__(self) -> None:
        self.lost: MachineError | None = None
        self._told = False
        self._stopped = threading.Event()

    @contextmanager
    def over(self, addresses: Mapping[str, tuple[Address, float]]) -> Iterator[None]:
        """Watch over processes, by what they are: their address, and how many seconds they may be silent."""
        handler = signal.signal(signal.SIGURG, _break_off)
        thread = threading.Thread(target=self._look, args=(addresses,), name="watch over Ray", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            signal.signal(signal.SIGURG, handler)
            if self.lost is not None:
                self._told = True
                raise self.lost from None
            thread.join()

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Let this process, where the cluster is lost, end before Ray is unloaded."""
        atexit.register(self._end)
        yield
        if self.lost is None:
            atexit.unregister(self._end)

    def _look(self, addresses: Mapping[str, tuple[Address, float]]) -> None:
        seen = dict.fromkeys(addresses, time.monotonic())
        while self.lost is None and not self._stopped.wait(1):
            for what, (address, patience) in addresses.items():
                trouble = silence(address, patience / 2)
                now = time.monotonic()
                if trouble is None:
                    seen[what] = now
                elif now - seen[what] > patience and self.lost is None:
                    self.lost = MachineError(
                        f"the Ray cluster went away: {what} is gone ({trouble})",
                        where=f"{address[0]}:{address[1]}",
                        fix="see to the cluster, then run the same command again",
                    )
        if self.lost is not None:
            if not self._stopped.is_set():
                # A signal that nothing else uses: Ctrl-C may be ignored, as under nohup.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
            time.sleep(GRACE)
            self._end()

    def _end(self) -> None:
        if self.lost is not None:
            if not self._told:
                print(f"error: {self.lost}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.lost.exit_code)


def _break_off(number: int, frame: FrameType | None) -> NoReturn:
    raise _Gone
