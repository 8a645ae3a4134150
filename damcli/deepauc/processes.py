"""The processes of one training run: sums over all of them, so that a loss is that of the global batch.

A statistic is summed rather than its scores gathered: ranks may then hold batches of different sizes, empty ones
included, and what travels is one number per finding. The gradients are those of ALGORITHM section 7: each rank
computes the same scalar, and DDP's mean of the gradients is the exact gradient of the global batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """Return how many processes train together: those of `torch.distributed`, 1 where it is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """Return the sum of `values` (any shape, the same on every rank) over the ranks; differentiable."""
    return _Total.apply(values)


def largest(values: Tensor) -> Tensor:
    """Return the elementwise maximum of `values` over the ranks, without a gradient."""
    values = values.detach().clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def broadcast(tensors: list[Tensor]) -> None:
    """Overwrite `tensors` with those of rank 0."""
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on this rank's values.
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
