"""Forward and backward of one batch: in one go, or piece by piece where it does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from damcli.deepauc.losses import Loss
from damcli.training.launch import Machine


class Outcome(NamedTuple):
    """Logits (N, K) with their gradient, the loss, each finding's own (K,), and which findings are present (K,)."""

    logits: Tensor
    loss: Tensor
    losses: Tensor
    present: Tensor


def backward(
    machine: Machine, model: torch.nn.Module, loss: Loss, images: Tensor, targets: Tensor, pieces: int, seed: int
) -> Outcome:
    """Compute the gradients of the loss of a whole batch; those of the parameters must be None before.

    An AUC loss is no mean over scans: its class means and BSN's norm need all of the batch's scores. With several
    `pieces` the scores come first, piece by piece and without a graph; then the loss of them all; then each piece is
    computed again and takes its scores' gradients back. It is the loss and the gradient of the whole batch (batch
    normalisation, which sees a piece at a time, aside) for one more forward pass. `seed` is that of dropout.
    """
    if pieces == 1:
        torch.manual_seed(seed)
        logits = model(images)
        logits.retain_grad()
        outcome = Outcome(logits, *loss.detailed(logits, targets))
        machine.backward(outcome.loss)
        return outcome
    parts = images.tensor_split(pieces)
    with torch.no_grad(), _statistics_kept(model):
        scored = [_forward(model, part, seed, number) for number, part in enumerate(parts)]
    logits = torch.cat(scored).requires_grad_()
    outcome = Outcome(logits, *loss.detailed(logits, targets))
    machine.backward(outcome.loss)
    assert logits.grad is not None
    # `backward` scales what it is given, and this has been scaled.
    gradients = (logits.grad / machine.scaler.get_scale()).tensor_split(pieces)
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        # The processes' gradients are averaged once, with the last piece.
        with machine.fabric.no_backward_sync(model, enabled=number < pieces - 1):  # type: ignore[arg-type]
            machine.backward(_forward(model, part, seed, number), gradient)
    return outcome


def _forward(model: torch.nn.Module, images: Tensor, seed: int, number: int) -> Tensor:
    torch.manual_seed(seed + number)
    logits: Tensor = model(images)
    return logits


@contextmanager
def _statistics_kept(model: torch.nn.Module) -> Iterator[None]:
    """Let batch normalisation compute as in training, and leave its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
