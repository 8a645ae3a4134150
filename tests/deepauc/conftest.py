"""Batches for the losses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

NAN = float("nan")


@pytest.fixture(scope="session")
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """A maker of float64 logits and targets (n, k); every finding has a positive and a negative."""

    def make(n: int, k: int, seed: int = 0, soft: bool = True, missing: float = 0.0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(n, k, generator=generator, dtype=torch.float64)
        targets = torch.rand(n, k, generator=generator, dtype=torch.float64)
        targets = targets if soft else (targets < 0.4).double()
        targets[torch.rand(n, k, generator=generator) < missing] = NAN
        targets[0], targets[1] = 0.9 if soft else 1.0, 0.1 if soft else 0.0
        return logits, targets

    return make
