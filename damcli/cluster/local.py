"""A Ray cluster of this machine alone, for one run: closed to everybody else, and nothing of it stays.

Ray is started by a process of its own, in a session of its own: started by ours, it would move us to another process
group, so that Ctrl-C no longer reaches us, and kill that group, be it a whole pipeline, when we are killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from damcli.errors import MachineError

NAME = "damcli-ray-"
# Ray's sockets lie some 70 characters below its folder, and the system allows 107, on a Mac 103.
LONGEST = 33
# Seconds that Ray may take to stop.
SECONDS = 20.0


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables, also for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def started(workers: int) -> Iterator[str]:
    """Yield the address of a cluster of this machine's GPUs and `workers` CPUs, that ends when we do.

    Ray's processes run any code that reaches them: they listen on the loopback alone, where who connects must know a
    secret of this run. Raises `MachineError` where Ray does not start.
    """
    # What keeps Ray to the loopback on Windows and macOS does so on Linux too. Read when Ray is first imported.
    with (
        environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)),
        _only_loopback(),
        tempfile.TemporaryFile() as said,
    ):
        starter = subprocess.Popen(
            [sys.executable, "-m", __name__, str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
        assert starter.stdin
        assert starter.stdout
        try:
            address = starter.stdout.readline().strip()
            if not address:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
                raise MachineError(
                    f"Ray could not be started on this machine: {lines[-1]}", fix="leave --engine ray out"
                )
            yield address
        finally:
            starter.stdin.close()
            try:
                starter.wait(SECONDS)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(starter.pid, signal.SIGKILL)
                starter.wait()
                starter.stdout.close()


@contextmanager
def _only_loopback() -> Iterator[None]:
    """Let Ray, should it have been imported before, read again what `started` sets."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for what Ray keeps while it runs, that nobody else can look into; it is removed at the end.

    Those that were left behind, as by a machine that went down, are removed first.
    """
    from filelock import FileLock, Timeout

    parent = Path(tempfile.gettempdir())
    if len(str(parent / f"{NAME}12345678")) > LONGEST:
        parent = Path("/tmp")
    for left in parent.glob(f"{NAME}*"):
        with suppress(OSError, Timeout):
            if time.time() - left.stat().st_mtime > 60:  # else it may be one that is just being made
                with FileLock(left / "lock", timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=NAME, dir=parent))
    try:
        with FileLock(own / "lock"):
            # Ray opens its folder to everybody; the one around it stays ours.
            yield own / "r"
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _serve(workers: int) -> None:
    """Start Ray, write its address to stdout, and stop it when stdin ends: when whoever started us does."""
    ray: Any = import_module("ray")
    with _folder() as folder:
        try:
            context = ray.init(
                "local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
            )
            signal.signal(signal.SIGTERM, lambda *_: sys.exit())
            print(context.address_info["address"], flush=True)
            sys.stdin.read()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
