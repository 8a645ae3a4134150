"""Scores of prepared scans from a network."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from damcli.data import augment, loader
from damcli.deepauc import processes
from damcli.errors import DataError, UsageError
from damcli.training import seeds

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.deepauc.network import Classifier
    from damcli.recipes import Recipe

BATCH = 64
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def score(
    network: Classifier,
    dataset: Dataset,
    rows: Rows,
    device: torch.device | str = "cpu",
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rank: int = 0,
    ranks: int = 1,
    views: torch.Tensor | None = None,
) -> Generator[tuple[Rows, Scores], None, None]:
    """Yield (rows, scores) batch by batch: scores float32 (n,K) in [0, 1], the sigmoid of the logits.

    `network` lies on `device` and is scored in evaluation mode, in whatever mode it was before, within `precision`
    (autocast). Of `ranks` processes each scores its share, every scan one of them and none twice; all yield the same
    number of batches, of which some may be empty. With maps (the function `views`) a score is the mean over the scan
    as it is and the views. Raises `DataError` for a score that is not finite, naming the scan.
    """
    pin = torch.device(device).type == "cuda"
    training = network.training
    pieces = np.array_split(rows[rank::ranks], batches_of(len(rows), ranks))
    network.eval()
    try:
        with closing(loader.batches(dataset, pieces, pin=pin)) as batches:
            for images, _, taken in batches:
                scores = _scores(network, images.to(device, non_blocking=pin), precision, views)
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


def views(recipe: Recipe, number: int, run: Path) -> torch.Tensor:
    """Return the maps of a run's `number` views for test-time augmentation, but for the first, which is the scan.

    Float32 (number - 1, 2, 3), for `data.augment.seen`. They are drawn from the recipe's rotation, shift, scaling,
    shear and flips, without its holes and colours, by its seed and their own number alone: the same ones for every
    scan, in `evaluate` and in an exported model, the first ten of thirty being those of ten (ALGORITHM section 8).
    Raises `UsageError` where they would all be the scan itself.
    """
    maps = augment.maps(recipe.augment, torch.tensor([seeds.key(recipe.seed, "view", n) for n in range(1, number)]))
    if (maps == torch.eye(2, 3)).all():
        raise UsageError(
            f"the {number} views would all be the same: the run was trained without moving its scans, or by flips alone"
            " of which none was drawn",
            where=run,
            fix="leave out --tta, or name a run whose recipe has augment.rotate, translate, scale, shear or a flip",
        )
    return maps


def batches_of(scans: int, ranks: int = 1) -> int:
    """Return how many batches `score` yields.

    >>> batches_of(65), batches_of(65, ranks=2)
    (2, 1)
    """
    return -(-scans // (BATCH * ranks))


def gathered(rows: Rows, parts: Sequence[tuple[Rows, Scores]], device: torch.device | str = "cpu") -> Scores:
    """Return the scores of `rows` in their order, from the (rows, scores) that this and all other processes scored."""
    place = {row: number for number, row in enumerate(rows.tolist())}
    where = torch.tensor([place[row] for taken, _ in parts for row in taken.tolist()], dtype=torch.long)
    mine = torch.from_numpy(np.concatenate([scores for _, scores in parts]))
    whole = torch.zeros(len(rows), mine.shape[1] + 1)
    whole[where] = torch.cat([mine, torch.ones(len(mine), 1)], dim=1)
    if processes.count() > 1:
        whole = processes.total(whole.to(device)).cpu()
    assert bool((whole[:, -1] == 1).all()), "every scan is scored once"
    return whole[:, :-1].numpy()


@torch.inference_mode()
def _scores(
    network: Classifier,
    images: torch.Tensor,
    precision: Callable[[], AbstractContextManager[Any]],
    views: torch.Tensor | None,
) -> Scores:
    if not len(images):
        return np.empty((0, network.num_findings), np.float32)
    floats = network.as_input(images).contiguous(memory_format=torch.channels_last)
    scores = []
    # One view after the other, in the memory of one; the places to look at are not to be rounded by autocast.
    for seen in augment.seen(floats, views):
        with precision():
            logits = network(seen)
        scores.append(logits.float().sigmoid())
    return torch.stack(scores).mean(dim=0).cpu().numpy()
