"""Samplers: which scans make up each batch of an epoch. NumPy only, each with a generator of its own.

An epoch is divided evenly over its batches instead of leaving a short last one: 33 scans in batches of at most 32
make 17 and 16, and none is so small that batch normalisation fails on it.

`batch_size` is the global batch's, and `smallest` how many scans the smallest one really has. Of `ranks` processes each
draws the same batches and takes its own part of each: parts differ by one scan at most, and so do their positives of
the finding that a batch is balanced for.

An epoch is a function of the seed: `batches(epoch)`. Iterating goes on from epoch to epoch, from where `state_dict`
says; a sampler is a `batch_sampler` for torch's `DataLoader` (with workers, which read ahead, count the batches that
were trained on and call `load_state_dict` with that).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]


class Sampler:
    """What the samplers share: a rank's part of every batch, and a place in the epochs that can be saved."""

    def __init__(self, batch_size: int, seed: int, rank: int, ranks: int) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {batch_size}")
        if ranks < 1 or not 0 <= rank < ranks:
            raise ValueError(f"rank must lie in 0 … ranks − 1, got rank {rank} of {ranks}")
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks
        self.epoch = self.step = 0

    def batches(self, epoch: int) -> list[Rows]:
        """Return this rank's part of the epoch's batches, int64 row numbers: the same for the same seed and epoch."""
        return [batch[self.rank :: self.ranks] for batch in self.whole_batches(epoch)]

    def whole_batches(self, epoch: int) -> list[Rows]:
        """Return the epoch's batches with all ranks' parts."""
        return self._batches(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches that are left of the current epoch, and then stand at the start of the next one."""
        for batch in self.batches(self.epoch)[self.step :]:
            self.step += 1
            yield batch.tolist()
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epochs: `epoch`, and `step`, the batches of it that were drawn."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a place that `state_dict` returned; the next iteration yields what is left of that epoch."""
        self.epoch, self.step = state["epoch"], state["step"]

    def _batches(self, epoch: int) -> list[Rows]:
        raise NotImplementedError

    def _check_smallest(self, smallest: int) -> None:
        self.smallest = smallest
        if smallest < self.ranks:
            raise ValueError(
                f"batch_size must give each of {self.ranks} ranks a scan of every batch, "
                f"got {self.batch_size}, of which the smallest batch has {smallest}"
            )


class UniformSampler(Sampler):
    """Every one of `count` scans once per epoch, in batches of at most `batch_size`, shuffled.

    Raises `ValueError` for arguments out of range, and for batches too small for the ranks.

    >>> [len(batch) for batch in UniformSampler(9, 4).batches(epoch=0)]
    [3, 3, 3]
    >>> [len(batch) for batch in UniformSampler(9, 4, rank=1, ranks=2).batches(epoch=0)]
    [1, 1, 1]
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(batch_size, seed, rank, ranks)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count
        self._check_smallest(count // len(self))

    def __len__(self) -> int:
        """The number of batches in every epoch."""
        return math.ceil(self.count / self.batch_size)

    def _batches(self, epoch: int) -> list[Rows]:
        return np.array_split(_generator(self.seed, epoch).permutation(self.count), len(self))


class BalancedSampler(Sampler):
    """Batches that hold a set share of positives of one finding; with several findings these take turns.

    `targets` is (N,) or (N, K) in [0, 1], NaN for missing; a scan is a positive of a finding from 0.5 on.
    `positives` is the wanted share. Each scan is given, at random but once for all epochs, to one of the findings
    it has a target for. The class that needs most batches sets the length of the epoch, and each of its scans
    comes exactly once; the others come at least once, and again in random order where more are needed.

    `skipped` lists the findings without positives or without negatives: they get no turn. Scans that have a
    target for none of the others are never drawn: `left_out` counts them. Raises `ValueError` for arguments out
    of range, where no finding has both classes, and for batches too small for the ranks.

    >>> sampler = BalancedSampler([1, 0, 0, 0, 0, 0, 0], batch_size=4, positives=0.5)
    >>> len(sampler), [int((batch == 0).sum()) for batch in sampler.batches(epoch=0)]
    (3, [2, 2, 2])
    """

    def __init__(
        self,
        targets: ArrayLike,
        batch_size: int,
        positives: float = 0.5,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, rank, ranks)
        values = np.asarray(targets, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"targets must have shape (N,) or (N, K) and hold a scan, got {values.shape}")
        if bool(((values < 0) | (values > 1)).any()):
            raise ValueError("targets must lie in [0, 1] or be NaN for missing")
        if not 0 < positives < 1:
            raise ValueError(f"positives must lie in (0, 1), got {positives}")
        share = min(max(round(batch_size * positives), 1), batch_size - 1)
        self._slots = np.array([batch_size - share, share])
        classes = np.stack([values < 0.5, values >= 0.5])  # (2, N, K); NaN is in neither
        usable = classes.any(axis=1).all(axis=0)
        self.skipped = np.flatnonzero(~usable).tolist()
        if not usable.any():
            raise ValueError("targets must hold a positive and a negative of some finding, got none that has both")
        self._values, self._classes = values, classes & usable
        given = self._give()
        self.left_out = len(values) - sum(len(rows) for pair in given.values() for rows in pair)
        self._given = given
        self._sizes = self._turn_sizes()
        self._check_smallest(int(self._sizes.sum(axis=1).min()))

    def __len__(self) -> int:
        """The number of batches in every epoch."""
        return len(self._given) * len(self._sizes)

    @property
    def prior(self) -> float:
        """The mean target of what is drawn, which is p in the losses' `prior` form. One finding only."""
        if self._values.shape[1] > 1:
            raise ValueError("balanced sampling of several findings leaves p undefined: use form='conditional'")
        means = [self._values[rows, 0].mean() for rows in self._given[0]]
        return float(np.dot(means, self._sizes.sum(axis=0)) / self._sizes.sum())

    def _batches(self, epoch: int) -> list[Rows]:
        generator = _generator(self.seed, epoch)
        turns = [self._turns(finding, generator) for finding in self._given]
        return [batch for turn in zip(*turns, strict=True) for batch in turn]

    def _turns(self, finding: int, generator: np.random.Generator) -> Iterator[Rows]:
        streams = []
        for given, whole, needed in zip(
            self._given[finding], self._classes[:, :, finding], self._sizes.sum(axis=0), strict=True
        ):
            rows = [generator.permutation(given)]
            short = needed - len(given)
            members = np.flatnonzero(whole) if short > 0 else given
            while short > 0:
                rows.append(generator.permutation(members)[:short])
                short -= len(rows[-1])
            streams.append(np.concatenate(rows))
        cuts = self._sizes.cumsum(axis=0)[:-1]
        parts = [np.split(stream, cuts[:, i]) for i, stream in enumerate(streams)]
        return (np.concatenate([positive, negative]) for negative, positive in zip(*parts, strict=True))

    def _give(self) -> dict[int, list[Rows]]:
        """Give every scan to one finding; return each finding's negatives and positives."""
        known = self._classes.any(axis=0)
        draw = np.random.default_rng([self.seed, 0]).random(known.shape)
        owner = np.where(known, draw, -1).argmax(axis=1)
        owned = known & (owner[:, None] == np.arange(known.shape[1]))
        return {
            int(k): [np.flatnonzero(members[:, k] & owned[:, k]) for members in self._classes]
            for k in np.flatnonzero(known.any(axis=0))
        }

    def _turn_sizes(self) -> NDArray[np.int64]:
        """Return how many negatives and positives each turn takes, (turns, 2)."""
        counts = np.array([[len(rows) for rows in pair] for pair in self._given.values()])
        binding = np.unravel_index((counts / self._slots).argmax(), counts.shape)
        count, slots = counts[binding], self._slots[binding[1]]
        turns = math.ceil(count / slots)
        leading = count // turns + (np.arange(turns) < count % turns)
        # Rounded up: then the other class has room for all of its scans too, and a batch never exceeds its size.
        return np.stack([-(-leading * other // slots) for other in self._slots], axis=1)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    # Epochs count from 1 here: the stream (seed, 0) has given the scans to the findings.
    return np.random.default_rng([seed, epoch + 1])
