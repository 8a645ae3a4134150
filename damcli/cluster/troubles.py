"""What goes wrong on a Ray cluster, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from damcli.errors import DamcliError, MachineError

AGAIN = "see to the cluster, then run the same command again"


@contextmanager
def ray_errors() -> Iterator[None]:
    """Turn what Ray raises into a `DamcliError`: one of ours that a task raised, else a `MachineError`.

    Any other error that a task raised is our own mistake, and stays what it is.
    """
    try:
        yield
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        raise told from error


def _told(error: Exception) -> DamcliError | None:
    from ray import exceptions as of_ray
    from ray.data.exceptions import ExecutionTimeoutError

    chain = list(causes(error))
    for one in chain:
        # What Ray makes of a task's error is of both classes, and its text is a traceback.
        if isinstance(one, DamcliError) and not isinstance(one, of_ray.RayTaskError):
            # Made anew, as Ray adds its own words to it.
            return type(one)(one.what, where=one.where, fix=one.fix)
    kinds: list[tuple[tuple[type[Exception], ...], str, str]] = [
        (
            (of_ray.OutOfDiskError, of_ray.ObjectStoreFullError),
            "Ray's object store on a node is full, and so is the disk that it spills to",
            "free space there, or start the nodes with a larger --object-store-memory or a --temp-dir on a larger disk",
        ),
        (
            (of_ray.OutOfMemoryError,),
            "the memory of a node of the Ray cluster is full",
            "start it with fewer --num-cpus",
        ),
        (
            (of_ray.WorkerCrashedError, of_ray.NodeDiedError, of_ray.RayActorError, of_ray.ObjectLostError),
            "workers or nodes of the Ray cluster died again and again",
            AGAIN,
        ),
        (
            (of_ray.TaskUnschedulableError, of_ray.ActorUnschedulableError),
            "the Ray cluster has no node left that can do this",
            AGAIN,
        ),
        ((ExecutionTimeoutError,), "nothing was done on the Ray cluster for hours", AGAIN),
        ((of_ray.RpcError, of_ray.LocalRayletDiedError), "the Ray cluster went away", AGAIN),
    ]
    for one in chain:
        for kind, what, fix in kinds:
            if isinstance(one, kind):
                return MachineError(what, fix=fix)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, as Python and as Ray keep it."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
