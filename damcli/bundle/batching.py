"""How many scans a model scores at a time, found by trying. Needs no torch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from damcli.bundle.engines import OutOfMemory
from damcli.bundle.providers import TENSORRT

if TYPE_CHECKING:
    from damcli.bundle.runtime import Model

# On a CPU: large enough for the overhead of a call, small enough for the processor's cache.
CPU_BATCH = 8
GPU_BATCHES = (16, 32, 64, 128, 256)
# TensorRT builds anew, for minutes, for every batch larger than those it has met: only this one is tried.
TENSORRT_BATCH = 32
# A batch twice as large must be this much faster.
WORTH = 1.05


def best_batch(model: Model, streams: int) -> int:
    """Return how many scans to score at a time, with `streams` calls of `run` at once.

    On a CPU at most 8, fewer where those would take more than half of the memory that is free: what one scan takes is
    seen from a first run, so this must be the first. On a GPU twice as many as long as that is faster and fits, at
    most 256. Raises `OutOfMemory` where not even one scan fits.
    """
    if model.provider == TENSORRT:
        return _fitting(model, TENSORRT_BATCH)
    if model.on_gpu:
        return _fastest(model)
    before = _resident()
    _score(model, 1)
    taken = max(_resident() - before, 1)
    return int(np.clip(available_memory() / 2 / streams // taken, 1, CPU_BATCH))


def _fastest(model: Model) -> int:
    best, most = 0, 0.0
    for batch in GPU_BATCHES:
        try:
            # The first run of a size allocates and chooses algorithms.
            _score(model, batch)
            rate = batch / min(_score(model, batch) for _ in range(3))
        except OutOfMemory:
            break
        if rate < WORTH * most:
            break
        best, most = batch, rate
    return best or _fitting(model, GPU_BATCHES[0] // 2)


def _fitting(model: Model, batch: int) -> int:
    """Return the batch, halved until it fits."""
    try:
        _score(model, batch)
        return batch
    except OutOfMemory:
        if batch == 1:
            raise
    return _fitting(model, batch // 2)


def _score(model: Model, batch: int) -> float:
    """Score black scans on the first device; return the seconds that took."""
    contract = model.info.contract
    images = np.zeros((batch, contract.size, contract.size, contract.channels), np.uint8)
    start = time.perf_counter()
    model.run(images)
    return time.perf_counter() - start


def _resident() -> int:
    """Return the memory of this process that is its own, in bytes; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def available_memory(root: Path = Path("/")) -> float:
    """Return the bytes of memory that can still be taken: of the machine, or of our control group if that is less.

    Infinity where the system does not tell. `root` is where `proc` and `sys` lie.
    """
    free = [float("inf")]
    with suppress(OSError):
        free.append(_bytes(root / "proc/meminfo")["MemAvailable:"] * 1024)
    group = root / "sys/fs/cgroup"
    # There are no such files outside a group; where a group has no limit, it is the word "max".
    with suppress(OSError, ValueError):
        kept = _bytes(group / "memory.stat")
        # Of what counts as used, the files that were read lately give way.
        reclaimable = kept["active_file"] + kept["inactive_file"]
        used = int((group / "memory.current").read_text()) - reclaimable
        free.append(int((group / "memory.max").read_text()) - used)
    return max(min(free), 0)


def _bytes(table: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {words[0]: int(words[1]) for words in map(str.split, table.read_text().splitlines())}
