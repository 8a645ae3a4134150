"""Is a Ray process there, and is it still there: Ray waits for one that is gone, and then ends us without a word."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from damcli.errors import MachineError

Address = tuple[str, int]

# Seconds that the head may be silent, as it can be restarted meanwhile (Ray itself ends us after sixty), or Ray's
# process on this machine, where it hangs.
PATIENCE = 30.0


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


@contextmanager
def watched(head: Address, here: Address) -> Iterator[None]:
    """End this process, with an error and its exit code, should the head or Ray's process on this machine be lost.

    At once, wherever it is: Ray cannot be interrupted everywhere, nor unloaded without its cluster, and would end us
    later without a word. What is written is written so that a kill does it no harm.
    """
    bell, stop = socket.socketpair()
    thread = threading.Thread(target=_look, args=(head, here, bell), name="watch over Ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join()
        bell.close()


def _look(head: Address, here: Address, bell: socket.socket) -> None:
    seen = dict.fromkeys((head, here), time.monotonic())
    line = _line(here)
    while True:
        ready = select.select([line, bell], [], [], 1)[0]
        if bell in ready:
            line.close()
            return
        if line in ready and _ended(line):
            # Or it has had enough of a connection on which nothing happens.
            line = _line(here)
        for address, what in ((head, "its head does not answer"), (here, "Ray on this machine does not answer")):
            trouble = silence(address, PATIENCE / 2)
            if trouble is None:
                seen[address] = time.monotonic()
            elif time.monotonic() - seen[address] > PATIENCE:
                _end(f"{what} ({trouble})", address)


def _line(here: Address) -> socket.socket:
    """Return a connection to Ray on this machine, whose end tells at once that it has ended: we have no second then."""
    try:
        return socket.create_connection(here, timeout=10)
    except OSError:
        _end("Ray on this machine is gone", here)
        raise


def _ended(line: socket.socket) -> bool:
    with suppress(OSError):
        if line.recv(2**12):
            return False
    line.close()
    return True


def _end(what: str, address: Address) -> None:
    error = MachineError(
        f"the Ray cluster went away: {what}",
        where=f"{address[0]}:{address[1]}",
        fix="see to the cluster, then run the same command again: it goes on where it was",
    )
    # The cursor comes back, should a progress bar have hidden it.
    print("\x1b[?25h" * sys.stderr.isatty() + f"error: {error}", file=sys.stderr, flush=True)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(error.exit_code)
