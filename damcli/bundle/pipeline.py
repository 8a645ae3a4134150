"""Decoding and scoring at the same time: processes decode while threads score batches. Memory stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np

from damcli.bundle.runtime import Model
from damcli.bundle.table import Row
from damcli.data.workers import Decoded, decode

# Large enough for the overhead of a call, small enough for the processor's cache.
BATCH = 8


def predict(
    model: Model,
    scans: Iterable[tuple[str, Path]],
    *,
    workers: int,
    batch: int = BATCH,
    streams: int = 1,
    metadata: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Row]:
    """Yield a row for every scan, in order: `workers` processes decode while `streams` threads score batches.

    `metadata` holds, by the scan's name, its row (width,) of `model.info.encoding`; of a scan without one all is
    missing.
    """
    names: deque[str] = deque()

    def files() -> Iterator[Path]:
        for name, file in scans:
            names.append(name)
            yield file

    pending: deque[Future[list[Row]]] = deque()
    decoder = cast(Generator[Decoded, None, None], decode(files(), model.info.contract, workers))
    with closing(decoder) as decoded, ThreadPoolExecutor(streams) as pool:
        for group in _groups(((names.popleft(), scan) for scan in decoded), batch):
            pending.append(pool.submit(_score, model, group, metadata))
            # One batch waits for each stream, so that none is idle while the next ones are collected.
            if len(pending) > 2 * streams:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


def _groups(decoded: Iterable[tuple[str, Decoded]], batch: int) -> Iterator[list[tuple[str, Decoded]]]:
    """Yield runs of scans with `batch` images to score each; fewer where many could not be decoded."""
    group: list[tuple[str, Decoded]] = []
    images = 0
    for name, scan in decoded:
        group.append((name, scan))
        images += scan.pixels is not None
        if images == batch or len(group) == 16 * batch:
            yield group
            group, images = [], 0
    if group:
        yield group


def _score(model: Model, group: list[tuple[str, Decoded]], metadata: Mapping[str, np.ndarray] | None) -> list[Row]:
    images = [scan.pixels for _, scan in group if scan.pixels is not None]
    rows = None
    if images and metadata is not None and (encoding := model.info.encoding) is not None:
        nothing = encoding.nothing
        rows = np.stack([metadata.get(name, nothing) for name, scan in group if scan.pixels is not None])
    scores = iter(model.score(np.stack(images), rows) if images else [])
    rows = []
    for name, scan in group:
        if scan.pixels is None:
            rows.append(Row(name, scan.status, scan.reason, None))
        elif np.isfinite(found := next(scores)).all():
            rows.append(Row(name, "ok", "", found, scan.reason))
        else:
            rows.append(Row(name, "failed", "the model gave a score that is no number", None))
    return rows
