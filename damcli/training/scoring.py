"""Scores of prepared scans from a network."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from damcli.data import loader
from damcli.errors import DataError

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.deepauc.network import Classifier

BATCH = 64


def score(
    network: Classifier,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    model: torch.nn.Module | None = None,
) -> Generator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]], None, None]:
    """Yield (rows, scores) batch by batch: scores float32 (n,K) in [0, 1], the sigmoid of the logits.

    `network` lies on `device` and is scored in evaluation mode, in whatever mode it was before; `model`, where given,
    is called in its place (the same network set up for a precision). Raises `DataError` for a score that is not
    finite, naming the scan.
    """
    pin = torch.device(device).type == "cuda"
    training = network.training
    network.eval()
    try:
        with closing(loader.batches(dataset, _split(rows, batch), pin=pin)) as batches:
            for images, _, taken in batches:
                scores = _scores(network, model or network, images.to(device, non_blocking=pin))
                finite = np.isfinite(scores).all(axis=1)
                if not finite.all():
                    raise DataError(
                        "the network's score is not a finite number",
                        where=dataset.ids(taken[~finite][:1])[0],
                        fix="its weights are broken: train again with a lower learning rate",
                    )
                yield taken, scores
    finally:
        network.train(training)


def batches_of(scans: int, batch: int = BATCH) -> int:
    """Return how many batches `score` yields.

    >>> batches_of(65, 64)
    2
    """
    return -(-scans // batch)


def _split(rows: npt.NDArray[np.int64], batch: int) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


@torch.inference_mode()
def _scores(network: Classifier, model: torch.nn.Module, images: torch.Tensor) -> npt.NDArray[np.float32]:
    floats = network.as_input(images).contiguous(memory_format=torch.channels_last)
    return model(floats).float().sigmoid().cpu().numpy()
