"""Work in waves: items without end become Ray Datasets of bounded size, whose results come back in order, each once.

A row of a dataset is a group of items. A group that is lost with its worker, or with a whole node, is made again; that
no item is lost and none comes twice is checked here by the groups' numbers. A wave is what the driver holds at a time,
so its memory does not grow with the number of items.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice, takewhile
from typing import Any, NamedTuple

from damcli.cluster.session import Session, check_version, here, ray_errors
from damcli.errors import DamcliError

# Groups of the first wave, and of the largest: each is twice the one before it. So the first results come soon, and
# starting the actors anew for each wave is little beside its work.
FIRST, WAVE = 64, 8192
# Where a wave is small its groups are too, so that each CPU has so many of them.
GROUPS_PER_CPU = 4
# Seconds after which nothing is to be waited for, if no group was done meanwhile: a group may hold 64 scans that each
# hang for a minute. Without an end an actor that dies of every try would be started anew for ever.
STUCK = 2 * 60 * 60


class Stage(NamedTuple):
    """What is done with each group: `work` makes of a list of items one result for each.

    It runs in tasks of one CPU, or in so many `actors`, each of one CPU, or of one GPU and none, so that they never
    take what other stages' tasks need. An actor keeps what `work` holds, from a wave's first group to its last.
    """

    work: Callable[[list[Any]], list[Any]]
    actors: int = 0
    on_gpu: bool = False


def run(session: Session, items: Iterator[Any], size: int, *stages: Stage) -> Generator[Any, None, None]:
    """Yield what the stages made of every item, in order; `size` is how many items a group may hold.

    Items are taken a wave ahead, in a thread of their own. Raises what `ray_errors` makes of Ray's errors.
    """
    with ray_errors(), closing(_ahead(items, size)) as waves:
        for wave in waves:
            fitting = -(-len(wave) // (GROUPS_PER_CPU * session.cpus))
            step = min(size, fitting)
            groups = [_packed(wave[start : start + step], level=1) for start in range(0, len(wave), step)]
            sizes = [min(step, len(wave) - start) for start in range(0, len(wave), step)]
            wave.clear()
            yield from _wave(groups, sizes, stages)


def _ahead(items: Iterator[Any], size: int) -> Generator[list[Any], None, None]:
    """Yield the items of each wave, while those of the next one are found."""
    closed = False

    def take(groups: int) -> list[Any]:
        return list(takewhile(lambda _: not closed, islice(items, groups * size)))

    groups = FIRST
    with ThreadPoolExecutor(1) as thread:
        try:
            wave = take(groups)
            while wave:
                groups = min(2 * groups, WAVE)
                following = thread.submit(take, groups)
                yield wave
                wave = following.result()
        finally:
            closed = True


def _wave(groups: list[bytes], sizes: Sequence[int], stages: Sequence[Stage]) -> Iterator[Any]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = STUCK
    rows = [{"number": number, "group": group} for number, group in enumerate(groups)]
    data: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    # They are in the object store now.
    groups.clear()
    rows.clear()
    for stage in stages:
        data = _staged(data, stage, len(sizes))
    found = iter(data.iter_rows())
    with closing(found):
        for number, size in enumerate(sizes):
            row = next(found, None)
            assert row is not None, f"group {number} of {len(sizes)} is lost"
            results = _unpacked(row["group"])
            if isinstance(results, DamcliError):
                raise results
            assert (row["number"], len(results)) == (number, size), f"group {number} is lost or came twice"
            yield from results
        assert next(found, None) is None, "there are more groups than were given"


def _staged(data: Any, stage: Stage, groups: int) -> Any:
    from ray.data import ActorPoolStrategy

    if not stage.actors:
        return data.map(_done, fn_args=(stage.work, here()), num_cpus=1)
    pool = ActorPoolStrategy(size=min(stage.actors, groups), max_tasks_in_flight_per_actor=2)
    works = (stage.work, here())
    if stage.on_gpu:
        return data.map(_Actor, fn_constructor_args=works, compute=pool, num_cpus=0, num_gpus=1)
    return data.map(_Actor, fn_constructor_args=works, compute=pool, num_cpus=1)


def node() -> str:
    """Return the address of the node that this worker is on."""
    from ray import util

    return str(util.get_node_ip_address())  # type: ignore[no-untyped-call]


class _Actor:
    def __init__(self, work: Callable[[list[Any]], list[Any]], expected: str) -> None:
        self.work, self.expected = work, expected

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _done(row, self.work, self.expected)


def _done(row: dict[str, Any], work: Callable[[list[Any]], list[Any]], expected: str) -> dict[str, Any]:
    try:
        check_version(expected)
        results: Any = work(_unpacked(row["group"]))
    except DamcliError as error:
        # Handed back in its turn: of what is raised here, Ray makes an error of its own, which has lost the cause.
        results = error
    return row | {"group": _packed(results)}


def _packed(group: Any, level: int = 0) -> bytes:
    """Return a group as bytes: what is held for long is compressed, since paths are much alike."""
    return zlib.compress(pickle.dumps(group, protocol=5), level)


def _unpacked(data: bytes) -> Any:
    """Return what `_packed` was given; from Ray's workers alone, whose every result Ray itself unpickles."""
    return pickle.loads(zlib.decompress(data))
