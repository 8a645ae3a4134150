"""Connect to a Ray cluster, or start one here, and refuse one that cannot do the work before anything is written."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from damcli import __version__
from damcli.cluster import fitness, local
from damcli.cluster.fitness import Node
from damcli.cluster.troubles import causes, ray_errors
from damcli.cluster.watch import Address, parsed, silence, watched
from damcli.data.workers import cores
from damcli.errors import MachineError, UsageError

__all__ = ["Node", "Session", "check_version", "here", "ray_errors", "session"]

# Nothing is sent to Ray's makers, and nothing is collected for them.
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}

TOKEN = "its token in RAY_AUTH_TOKEN or ~/.ray/auth_token (there, ray get-auth-token shows it)"
# Asks a head whether it wants a token, and whether it wants ours: for a process of its own, as Ray says much meanwhile.
ASKS, NOT_OURS = 3, 4
_ASK = f"""
import os, sys
from ray.exceptions import AuthenticationError
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
try:
    GcsClient(address=sys.argv[1])
    sys.exit(0)
except AuthenticationError:
    os.environ["RAY_AUTH_MODE"] = "token"
try:
    Config.initialize("")
    if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        sys.exit({NOT_OURS})
    GcsClient(address=sys.argv[1])
    sys.exit({ASKS})
except AuthenticationError:
    sys.exit({NOT_OURS})
"""
# Seconds that this may take, with the start of Python and Ray.
SECONDS = 30.0


@dataclass(frozen=True)
class Session:
    """A cluster that was found fit for the work; `local` where it was started here and ends with us."""

    nodes: tuple[Node, ...]
    local: bool

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def words(self) -> str:
        """The cluster in words.

        >>> Session((Node("1f", "10.0.0.1", 4, 0), Node("2e", "10.0.0.2", 4, 0)), local=False).words
        'Ray: 2 nodes, 8 CPUs, no GPU'
        """
        counts = ((len(self.nodes), "node"), (self.cpus, "CPU"), (self.gpus, "GPU"))
        return "Ray: " + ", ".join(f"{number or 'no'} {what}{'s' * (number > 1)}" for number, what in counts)


@contextmanager
def session(address: str | None, sees: Sequence[Path] = (), workers: int | None = None) -> Iterator[Session]:
    """Yield the cluster at `address`, else at `$RAY_ADDRESS`, else one of `workers` CPUs (default: all) started here.

    Every node must have the same damcli and Python as this machine, and see the paths `sees` as it does: else a
    `MachineError` names the node. If the cluster goes away meanwhile, that is a `MachineError` too, whatever was going
    on. For the main thread, as it needs signals. A cluster that was started here ends with the session, and nothing of
    it stays on this machine; of another one, only we leave.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    with ExitStack() as stack:
        stack.enter_context(local.environment(**PRIVATE))
        if find_spec("ray") is None:
            raise MachineError("work on a cluster needs Ray", fix="pip install 'damcli[ray]'")
        if address == "local":
            where = stack.enter_context(local.started(workers or cores()))
        else:
            where = _found(address)
            stack.enter_context(local.environment(RAY_AUTH_MODE=_mode(where)))
        ray = _silent_ray()
        stack.callback(ray.shutdown)
        _connect(ray, where)
        stack.enter_context(watched(*_addresses(ray)))
        stack.callback(ray.shutdown)  # first, while we watch: without its cluster Ray would wait
        nodes = fitness.nodes()
        with ray_errors():
            fitness.check(nodes, sees)
        yield Session(nodes, address == "local")


def _silent_ray() -> Any:
    """Return the package, which then says nothing by itself."""
    import ray
    import ray.data
    from ray._private import worker
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    # Should it have been imported before: how to connect may have changed since.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Else what a task raised comes without its cause.
    context.raise_original_map_exception = True
    # What happens to nodes and workers, which Ray writes to stdout.
    worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _found(address: str) -> str:
    """Return the address of a cluster that answers; Ray itself would wait for minutes."""
    if address == "auto":
        address = _running()
    place = parsed(address)
    if place is None:
        raise UsageError(
            "this is no address of a Ray cluster",
            where=address,
            fix="give the head's HOST:PORT, as ray start shows it, and run damcli on a node of that cluster",
        )
    trouble = silence(place)
    if trouble is not None:
        raise MachineError(
            f"no Ray cluster is at this address: {trouble}",
            where=address,
            fix="ray start --head says the address; leave it out for a cluster of this machine alone",
        )
    return address


def _running() -> str:
    """Return the address of the cluster that this machine is a node of."""
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError:
        raise MachineError(
            "no Ray cluster runs on this machine",
            where="auto",
            fix="ray start, or leave it out for a cluster of this machine alone",
        ) from None


def _mode(address: str) -> str:
    """Return the RAY_AUTH_MODE that fits the cluster: "token" where it asks for one. Ray itself does not find out."""
    command, env = [sys.executable, "-c", _ASK, address], os.environ | {"RAY_AUTH_MODE": "disabled"}
    try:
        code = subprocess.run(command, env=env, capture_output=True, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        code = 1
    if code not in (0, ASKS, NOT_OURS):
        what, fix = "no head of a Ray cluster answers here", "ray start --head says the address of a head"
        raise MachineError(what, where=address, fix=fix)
    mode = "token" if code else "disabled"
    wanted = os.environ.get("RAY_AUTH_MODE", mode)
    if wanted.lower() != mode:
        what = f"this Ray cluster asks for {'a' if code else 'no'} token, and RAY_AUTH_MODE here is {wanted}"
        fix = f"RAY_AUTH_MODE=token, and {TOKEN}" if code else "unset it, or start Ray with it on all nodes"
        raise MachineError(what, where=address, fix=fix)
    if code == NOT_OURS:
        raise MachineError(
            "this Ray cluster asks for a token: ours is another, or there is none", where=address, fix=TOKEN
        )
    return mode


def _connect(ray: Any, address: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _hushed():
            ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        *_, first = causes(error)
        raise MachineError(
            f"cannot work on this Ray cluster: {' '.join(str(first).split('. ')[0].split())}",
            where=address,
            fix="run damcli on one of its nodes, with the Ray and the Python that they have",
        ) from error
    except SystemExit:
        # Ray took the place of our handler, for which this was meant.
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep what the compiled half of Ray says to its log files; that it was told so, it says on stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with local.environment(RAY_BACKEND_LOG_LEVEL="fatal"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _addresses(ray: Any) -> tuple[Address, Address]:
    """Return where the head and Ray's process on this machine listen."""
    context = ray.get_runtime_context()
    head = parsed(context.gcs_address)
    (here,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    assert head, "Ray gives the address as HOST:PORT"
    return head, (here["NodeManagerAddress"], here["NodeManagerPort"])


def here() -> str:
    """Return what every node must have: "damcli 0.1.0"."""
    return f"damcli {__version__}"


def check_version(expected: str) -> None:
    """Raise `MachineError` naming this node where it does not have what is `expected`, as one that joined later."""
    if here() != expected:
        from ray import util

        address = util.get_node_ip_address()  # type: ignore[no-untyped-call]
        raise MachineError(
            f"node {address} of the Ray cluster has {here()}, this machine {expected}",
            fix="install the same damcli on all nodes",
        )
