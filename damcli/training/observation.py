"""What a training step shows, per finding, brought from the device in one piece.

A line of `metrics.jsonl` is one of these records, told apart by `event`; lists are in the order of the run's findings,
and what is undefined is null. Numbers are rounded to 6 digits.

- `step`: `stage`, `epoch`, `step` (of the stage, from 1), `lr`, `loss`, `gradient_norm` (of all weights, as the loss
  gave it), and lists: `losses` (null where the finding is absent from the batch), `a`, `b`, `alpha` (as the loss used
  them; AUC losses only), `positive_scores` and `negative_scores` (mean sigmoid of the logits where the target is
  ≥ 0.5, and below), `positives` (targets ≥ 0.5 in this batch), `positives_seen` (in the epoch so far), and
  `logit_gradients` (the norm of the loss's gradient by the finding's logits: near 0 where the sigmoid is flat).
- `boundary`: where a learning rate is divided, and where a training stage ends: `lr`, `next_lr` (null at the end) and
  `distance`, ‖v − v_ref‖ before the reference moves (PESG only).
- `warning`: its `text`.
- `skipped`: a step that fp16 could not make because its gradients overflowed: `stage`, `epoch`, `step`, and the `scale`
  that was too large.
- `epoch`: the mean `loss`, and `tune_auroc` by finding with their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from damcli.deepauc import AUCMarginLoss, processes


@dataclass(frozen=True)
class Observation:
    """One step: numbers as Python has them, lists (K,) in the order of the findings."""

    loss: float
    gradient_norm: float
    losses: list[float]
    saddle: dict[str, list[float]]
    positive_scores: list[float]
    negative_scores: list[float]
    positives: list[int]
    logit_gradients: list[float]
    broken: list[bool]  # whether a logit of the finding is no finite number

    @property
    def finite(self) -> bool:
        """Whether the step may be made: neither loss nor gradient has overflowed."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def observe(
    module: torch.nn.Module,
    loss: Tensor,
    losses: Tensor,
    present: Tensor,
    logits: Tensor,
    targets: Tensor,
    parameters: Iterable[Tensor],
    scale: float = 1.0,
) -> Observation:
    """Return what a step shows after its gradients are there and before the optimizer moves.

    `loss`, `losses` (K,) and `present` (K,) are what `module.detailed(logits, targets)` returned; `logits` (N, K) kept
    its gradient (`retain_grad`), `scale` times too large (fp16). With several processes it is the global batch that is
    shown, on all of them. The device is waited for once.
    """
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scores = torch.sigmoid(logits.float())
        assert logits.grad is not None
        sums = []
        for chosen in (targets >= 0.5, targets < 0.5):
            sums += [torch.where(chosen, scores, 0).sum(0), chosen.sum(0)]
        sums += [logits.grad.double().square().sum(0), (~torch.isfinite(logits)).sum(0)]
        ours = torch.stack([row.to(torch.float64) for row in sums])
        if processes.count() > 1:
            ours = processes.total(ours)
            scale *= processes.count()  # for DDP, which averages, each process's gradients are that much larger
        names = ("a", "b", "alpha") if isinstance(module, AUCMarginLoss) else ()
        parts = [torch.stack([loss, norm]), losses, present, ours.flatten()]
        parts += [getattr(module, name) for name in names]
        numbers = torch.cat([part.to(torch.float64) for part in parts]).tolist()
    k = logits.shape[1]
    rows = [numbers[start : start + k] for start in range(2, len(numbers), k)]
    values, there, positive_sums, positives, negative_sums, negatives, squares, broken, *saddle = rows
    return Observation(
        loss=numbers[0],
        gradient_norm=numbers[1],
        losses=[value if seen else math.nan for value, seen in zip(values, there, strict=True)],
        saddle=dict(zip(names, saddle, strict=True)),
        positive_scores=_ratios(positive_sums, positives),
        negative_scores=_ratios(negative_sums, negatives),
        positives=[int(count) for count in positives],
        logit_gradients=[math.sqrt(square) / scale for square in squares],
        broken=[count > 0 for count in broken],
    )


def _ratios(sums: list[float], counts: list[float]) -> list[float]:
    return [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]
