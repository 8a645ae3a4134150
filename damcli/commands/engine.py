"""Where the work of `prepare` and `predict` runs: `--engine` and `--address`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from damcli import console
from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.cluster.session import Session

ENGINES = ("local", "ray")


def check(engine: str, address: str | None, *places: str | Path | None) -> None:
    """Raise `UsageError` for an engine that is none, and for what only Ray can do: addresses, and `places` on URLs."""
    from damcli.data import remote

    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", where="--engine", fix="choose local or ray")
    if engine == "ray":
        return
    if address is not None:
        raise UsageError("--address is that of a Ray cluster", where="--address", fix="add --engine ray")
    for place in places:
        if place is not None and remote.is_url(str(place)):
            raise UsageError(
                "URLs are read and written by Ray's workers", where=remote.shown(str(place)), fix="add --engine ray"
            )


@contextmanager
def opened(engine: str, address: str | None, sees: Sequence[Path], workers: int | None) -> Iterator[Session | None]:
    """Yield the cluster that the work runs on, checked; None for this machine. It must see the paths `sees`."""
    if engine == "local":
        yield None
        return
    from damcli.cluster.session import session

    with session(address, sees, workers) as cluster:
        console.note(cluster.words)
        yield cluster
