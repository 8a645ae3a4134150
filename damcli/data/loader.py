"""Batches of prepared scans, read ahead by threads while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from damcli.data.store import Dataset


class Batch(NamedTuple):
    """`images` uint8 (n,H,W) or (n,H,W,3), `targets` float32 (n,K) with NaN = missing, `rows` of the manifest (n,)."""

    images: torch.Tensor
    targets: torch.Tensor
    rows: npt.NDArray[np.int64]


def batches(
    dataset: Dataset, index_batches: Iterable[npt.NDArray[np.int64]], prefetch: int = 2, pin: bool = False
) -> Generator[Batch, None, None]:
    """Yield one `Batch` per array of manifest rows, in order, at most `prefetch` of them read ahead.

    `pin` puts the images into page-locked memory for copies to a GPU that do not block. What reading raises is raised
    here, at its batch's turn. Closing the generator ends its threads.
    """
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, prefetch), thread_name_prefix="loader")
    try:
        for rows in index_batches:
            waiting.append(pool.submit(_read, dataset, rows, pin))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(dataset: Dataset, rows: npt.NDArray[np.int64], pin: bool) -> Batch:
    contract = dataset.info.contract
    colour = (contract.channels,) if contract.channels > 1 else ()
    # A new batch each time: torch hands freed (and pinned) blocks out again, and only once copies from them are done.
    images = torch.empty((len(rows), contract.size, contract.size, *colour), dtype=torch.uint8, pin_memory=pin)
    dataset.read(rows, out=images.numpy())
    return Batch(images, torch.from_numpy(dataset.targets(rows)), rows)
