"""Can every node of a cluster do the work: the same damcli and Python, and the files where we see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from damcli import __version__
from damcli.errors import MachineError

# Seconds that a node may take to start a Python process and to look at a few paths.
SECONDS = 60.0
SHARED = "give a path on storage that all nodes share, or leave --engine ray out"


class Node(NamedTuple):
    """A machine of the cluster: Ray's id of it, its address (and id, where two have the same), and what it lends."""

    id: str
    name: str
    cpus: int
    gpus: int


def nodes() -> tuple[Node, ...]:
    """Return the nodes of the cluster we are connected to that are alive, the head first where it is told."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    addresses = [node["NodeManagerAddress"] for node in alive]
    return tuple(
        Node(
            node["NodeID"],
            address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:8]})",
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node, address in zip(alive, addresses, strict=True)
    )


def check(nodes: Sequence[Node], sees: Sequence[Path]) -> None:
    """Raise `MachineError` naming the first node that is not fit for the work."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths = [str(path.absolute()) for path in sees]
    look = _look()
    task = ray.remote(num_cpus=0, max_retries=1)(look)
    working = [node for node in nodes if node.cpus]
    if not working:
        raise MachineError("no node of the Ray cluster has a CPU to lend", fix="ray start --num-cpus=N on its nodes")
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(paths)
        for node in working
    ]
    ray.wait(answers, num_returns=len(answers), timeout=SECONDS)
    ours = look(paths)
    for node, answer in zip(working, answers, strict=True):
        try:
            found = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            raise MachineError(
                f"node {node.name} of the Ray cluster did not answer within {SECONDS:.0f} seconds",
                fix="see to that node, or stop Ray on it",
            ) from None
        except ray.exceptions.RayError as error:
            raise MachineError(
                f"node {node.name} of the Ray cluster cannot run a task of this machine: {_last_line(error)}",
                fix="give all nodes the same Python and packages",
            ) from error
        _compare(node, found, ours)


def _look() -> Callable[[list[str]], dict[str, Any]]:
    """Return the task that looks around on a node; made here, it travels whole and needs no damcli there."""

    def look(paths: list[str]) -> dict[str, Any]:
        import importlib
        import os
        import platform
        import stat

        def size(path: str) -> int | None:
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError:
                return None
            return -1 if stat.S_ISDIR(found.st_mode) else found.st_size

        try:
            version = importlib.import_module("damcli").__version__
        except ImportError:
            version = None
        return {
            "damcli": version,
            "python": platform.python_version_tuple()[:2],
            "sizes": [size(path) for path in paths],
            "paths": paths,
        }

    return look


def _compare(node: Node, found: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    install = f"pip install 'damcli[ray]=={__version__}' there"
    if found["damcli"] is None:
        raise MachineError(f"node {node.name} of the Ray cluster has no damcli", fix=install)
    if found["damcli"] != ours["damcli"]:
        raise MachineError(
            f"node {node.name} of the Ray cluster has damcli {found['damcli']}, this machine {ours['damcli']}",
            fix=install,
        )
    if found["python"] != ours["python"]:
        raise MachineError(
            f"node {node.name} of the Ray cluster runs Python {'.'.join(found['python'])}, this machine "
            f"{'.'.join(ours['python'])}",
            fix="give all nodes the same Python",
        )
    for path, there, here in zip(ours["paths"], found["sizes"], ours["sizes"], strict=True):
        if there is None and here is not None:
            raise MachineError(f"node {node.name} of the Ray cluster does not see this path", where=path, fix=SHARED)
        if there != here:
            raise MachineError(
                f"node {node.name} of the Ray cluster sees something else at this path", where=path, fix=SHARED
            )


def _last_line(error: Exception) -> str:
    return str(error).strip().rsplit("\n", 1)[-1]
