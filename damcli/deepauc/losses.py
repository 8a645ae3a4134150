"""The losses: AUC margin, AUC square, cross-entropy and focal, for any number of findings at once.

All take `logits` (N, K), floating, and `targets` (N, K) in [0, 1], where NaN means missing, and return a scalar:
the mean over the findings that are present. They are computed in float32 (float64 for float64 logits) whatever
the precision of the network, never synchronise with a device, and never turn finite logits into NaN.

Where several processes train together (`torch.distributed`), a loss in training mode is that of the global batch on
every rank, whatever part of it each has (ALGORITHM section 7); in evaluation mode it is the rank's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from damcli.deepauc import processes
from damcli.recipes import Stage

Form = Literal["conditional", "prior"]
Score = Literal["sigmoid", "bsn", "identity"]


class Loss(nn.Module):
    """What the losses share: the scalar is the mean over the findings that are present, 0 where none is."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.detailed(logits, targets)[0]

    def detailed(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, each finding's own (K,) without gradient (0 where absent), and which are present (K,)."""
        raise NotImplementedError

    @property
    def _global(self) -> bool:
        return self.training and processes.count() > 1


class AUCMarginLoss(Loss):
    """The AUC margin loss (AUC-M) in its min-max form: minimised over the scores, a and b, maximised over α ≥ 0.

    `form="conditional"` divides by the batch's own class means and counts a finding only where some target is
    ≥ 0.5 and some is < 0.5; `form="prior"` is the paper's, with `prior` = Pr(y = 1), one number or K, from the
    distribution that is sampled. A finding that does not count adds nothing and gives a, b, α no gradient.

    The parameters `a`, `b`, `alpha` (K,) start at 0; `PESG` moves them. `nonnegative=False` leaves out the projection
    of α, for ablations. Yuan et al. (ICCV 2021), Theorem 1; ALGORITHM section 2. Raises `ValueError` for arguments out
    of range and shapes that do not fit.

    >>> loss = AUCMarginLoss(1, score="identity")
    >>> loss(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]])).item()
    1.0
    """

    prior: Tensor | None

    def __init__(
        self,
        num_findings: int,
        margin: float = 1.0,
        form: Form = "conditional",
        prior: float | Sequence[float] | Tensor | None = None,
        score: Score = "sigmoid",
        nonnegative: bool = True,
    ) -> None:
        super().__init__()
        if num_findings < 1:
            raise ValueError(f"num_findings must be at least 1, got {num_findings}")
        if not 0 < margin < math.inf:
            raise ValueError(f"margin must be positive and finite, got {margin}")
        if form not in ("conditional", "prior"):
            raise ValueError(f"form must be 'conditional' or 'prior', got {form!r}")
        if score not in ("sigmoid", "bsn", "identity"):
            raise ValueError(f"score must be 'sigmoid', 'bsn' or 'identity', got {score!r}")
        self.num_findings, self.margin, self.form, self.score = num_findings, float(margin), form, score
        self.projected = nonnegative  # read by PESG
        self.register_buffer("prior", _checked_prior(prior, form, num_findings))
        self.a = nn.Parameter(torch.zeros(num_findings))
        self.b = nn.Parameter(torch.zeros(num_findings))
        self.alpha = nn.Parameter(torch.zeros(num_findings))

    def detailed(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, each finding's own (K,) without gradient (0 where absent), and which are present (K,)."""
        logits, targets, missing = _prepared(logits, targets, self.num_findings)
        together = self._global
        if self.prior is None:
            weights, curvature = _conditional_weights(targets, missing, together)
        else:
            weights, curvature = _prior_weights(targets, missing, self.prior, together)
        present = curvature > 0
        absent = missing >= present  # missing, or of a finding that is
        # Masked before the score: what lies under a missing target must not reach a gradient, not even as 0·∞.
        scores = _scores(logits.masked_fill(absent, 0), self.score, together)
        loss, values = _MinMax.apply(
            scores, self.a, self.b, self.alpha, weights, curvature, present, self.margin, together
        )
        return loss, values, present

    def reachable_gap(self, positives: float, negatives: float) -> float:
        """Return the largest gap of the class means that scores of a batch of so many scans can have.

        >>> AUCMarginLoss(1, score="bsn").reachable_gap(64, 64)
        0.1767766952966369
        """
        if self.score == "bsn":
            return math.sqrt(1 / positives + 1 / negatives) if positives and negatives else math.inf
        return 1.0 if self.score == "sigmoid" else math.inf


class AUCSquareLoss(AUCMarginLoss):
    """The AUC square loss (AUC-S): AUC-M with margin 1 and α free to be negative. ALGORITHM section 2."""

    def __init__(
        self,
        num_findings: int,
        form: Form = "conditional",
        prior: float | Sequence[float] | Tensor | None = None,
        score: Score = "sigmoid",
    ) -> None:
        super().__init__(num_findings, 1.0, form, prior, score, nonnegative=False)


class _MinMax(torch.autograd.Function):
    """The mean of F over the findings that are present, and F of each (K,), as ALGORITHM section 2 has them.

    The gradients are written out: half of what autograd would do, and in the forward pass, where all is at hand. The
    gradient that comes in is taken to be equal on every rank, as it is where all compute the same scalar. The scores'
    is then multiplied by the number of ranks, by which DDP divides; that of a, b and α, which DDP does not touch, is
    the global one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        a: Tensor,
        b: Tensor,
        alpha: Tensor,
        weights: Tensor,
        curvature: Tensor,
        present: Tensor,
        margin: float,
        together: bool,
    ) -> tuple[Tensor, Tensor]:
        positive, negative = weights
        to_a, to_b = scores - a, scores - b
        # (weight·d)·d, not weight·d²: d² may overflow where the weight is 0.
        pull_a, pull_b, lean = positive * to_a, negative * to_b, negative - positive
        sums = torch.stack([torch.addcmul(pull_a * to_a, pull_b, to_b), lean * scores, pull_a, pull_b]).sum(1)
        spread, gap, sum_a, sum_b = (processes.total(sums) if together else sums).unbind()
        shortfall = torch.add(gap, curvature, alpha=margin)
        slope = torch.addcmul(shortfall, curvature, alpha, value=-1)  # half of ∂F/∂α
        values = torch.addcmul(spread, alpha, shortfall + slope)
        share = present.to(values.dtype).sum().clamp(min=1).reciprocal()
        to_scores = torch.addcmul(pull_a + pull_b, lean, alpha) * (2 * share)
        to_saddle = torch.stack([-sum_a, -sum_b, slope]) * (2 * share)
        ctx.save_for_backward(to_scores * processes.count() if together else to_scores, to_saddle)
        ctx.mark_non_differentiable(values)
        return values.sum() * share, values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        to_scores, to_saddle = ctx.saved_tensors
        return gradient * to_scores, *(gradient * to_saddle).unbind(), None, None, None, None, None


class CrossEntropyLoss(Loss):
    """Binary cross-entropy with logits: the mean over a finding's known targets, then over the findings."""

    def detailed(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, each finding's own (K,) without gradient (0 where absent), and which are present (K,)."""
        logits, targets, missing = _prepared(logits, targets, None)
        losses = F.binary_cross_entropy_with_logits(logits.masked_fill(missing, 0), targets, reduction="none")
        return _means(losses, missing, self._global)


class FocalLoss(Loss):
    """The α-balanced focal loss −α̂(1−p_t)^γ̂ log p_t, averaged as `CrossEntropyLoss` is.

    `alpha` in (0, 1) weighs positives, 1 − `alpha` negatives; a soft target gives the expectation over its
    posterior. Lin et al. (ICCV 2017), eq. 5.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be at least 0 and finite, got {gamma}")
        self.alpha, self.gamma = alpha, gamma

    def detailed(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, each finding's own (K,) without gradient (0 where absent), and which are present (K,)."""
        logits, targets, missing = _prepared(logits, targets, None)
        logits = logits.masked_fill(missing, 0)
        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
        # Powers as exp(γ̂ log ·): their gradient stays finite at 0.
        positive = self.alpha * targets * torch.exp(self.gamma * log_q) * log_p
        negative = (1 - self.alpha) * (1 - targets) * torch.exp(self.gamma * log_p) * log_q
        return _means(-positive - negative, missing, self._global)


def from_stage(stage: Stage, num_findings: int, prior: float | Sequence[float] | Tensor | None = None) -> Loss:
    """Return the loss that a recipe's stage names. `prior` is used where the stage's form is `prior`."""
    if stage.loss == "ce":
        return CrossEntropyLoss()
    if stage.loss == "focal":
        return FocalLoss(stage.focal_alpha, stage.focal_gamma)
    prior = prior if stage.form == "prior" else None
    loss: AUCMarginLoss
    if stage.loss == "aucs":
        loss = AUCSquareLoss(num_findings, stage.form, prior, stage.score)
    else:
        loss = AUCMarginLoss(num_findings, stage.margin, stage.form, prior, stage.score, stage.nonnegative)
    # A new last layer puts every sigmoid score near 0.5. From a = b = 0 a network with large features is first drawn
    # to 0, where the sigmoid is flat, faster than a and b can rise to meet it.
    nn.init.constant_(loss.a, stage.ab_start)
    nn.init.constant_(loss.b, stage.ab_start)
    return loss


def margin_note(loss: nn.Module, positives: float, negatives: float) -> str | None:
    """Return a line that says so where AUC-M's margin cannot be reached and it acts as AUC-S, else None.

    `positives` and `negatives` are a batch's typical counts for a finding (ALGORITHM section 4).

    >>> margin_note(AUCMarginLoss(1, margin=0.5), 16, 16) is None
    True
    """
    if not isinstance(loss, AUCMarginLoss) or not loss.projected:
        return None
    gap = loss.reachable_gap(positives, negatives)
    if loss.margin < gap:
        return None
    batch = f" in a batch of {positives:g} positives and {negatives:g} negatives" if loss.score == "bsn" else ""
    return (
        f"margin {loss.margin:.3g} is not below {gap:.3g}, the largest gap that {loss.score} scores allow{batch}: "
        "AUC-M acts as AUC-S"
    )


def check_targets(targets: Tensor) -> None:
    """Raise `ValueError` if a target lies outside [0, 1]; NaN, missing, is allowed.

    The losses do this themselves on the CPU. On a device it would have to wait for the device at every step:
    there the caller checks once, where the targets are read.

    >>> check_targets(torch.tensor([[1.5]]))
    Traceback (most recent call last):
    ValueError: targets must lie in [0, 1] or be NaN for missing, got 1.5
    """
    outside = (targets < 0) | (targets > 1)
    if outside.any():
        raise ValueError(f"targets must lie in [0, 1] or be NaN for missing, got {targets[outside][0].item():g}")


def _checked_prior(prior: float | Sequence[float] | Tensor | None, form: Form, num_findings: int) -> Tensor | None:
    if (prior is None) == (form == "prior"):
        raise ValueError(f"prior is for form='prior', and needed there; got form={form!r}, prior={prior!r}")
    if prior is None:
        return None
    values = torch.as_tensor(prior, dtype=torch.float64)
    if values.ndim > 1 or values.numel() not in (1, num_findings):
        raise ValueError(f"prior must be one number or {num_findings}, got shape {tuple(values.shape)}")
    if not bool(((values > 0) & (values < 1)).all()):
        raise ValueError(f"prior must lie in (0, 1), got {values.tolist()}")
    return values.to(torch.float32).expand(num_findings).clone()


def _prepared(logits: Tensor, targets: Tensor, num_findings: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check the shapes; return logits and targets in the precision of the loss, missing ones 0, and which are."""
    if logits.ndim != 2 or logits.shape[1] != (num_findings or max(logits.shape[1], 1)):
        raise ValueError(f"logits must have shape (N, {num_findings or 'K'}), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating, got {logits.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets must have the shape of logits, {tuple(logits.shape)}, got {tuple(targets.shape)}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    known_or_0 = targets.to(dtype).nan_to_num(0.0)
    if targets.device.type == "cpu" and len(targets):
        least, most = torch.aminmax(known_or_0)
        if least.item() < 0 or most.item() > 1:
            check_targets(targets)
    return logits.to(dtype), known_or_0, targets.isnan()


def _conditional_weights(targets: Tensor, missing: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """Return weights (2, N, K), whose sums over positives [0] and negatives [1] are 1, and 1 or 0 as (K,)."""
    known, likely = (~missing).to(targets.dtype), (targets >= 0.5).to(targets.dtype)
    shares = torch.stack([targets, known - targets, likely, known - likely])
    sums = shares.sum(1)
    sums = processes.total(sums) if together else sums
    present = sums[2:].amin(0).clamp(max=1)
    # A finding that is present has at least half a positive and half a negative.
    return shares[:2] * (present / sums[:2].clamp(min=0.5))[:, None], present


def _prior_weights(targets: Tensor, missing: Tensor, prior: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """Return (1−p)·y/n and p·(1−y)/n as (2, N, K), and p(1−p), 0 for an absent finding, as (K,)."""
    known = (~missing).to(targets.dtype)
    count = known.sum(0)
    count = processes.total(count) if together else count
    weights = torch.stack([(1 - prior) * targets, prior * (known - targets)]) / count.clamp(min=1)
    return weights, prior * (1 - prior) * count.clamp(max=1)


def _scores(logits: Tensor, score: str, together: bool) -> Tensor:
    if score == "sigmoid":
        return torch.sigmoid(logits)
    if score == "identity" or (len(logits) == 0 and not together):
        return logits
    # z/‖z‖ does not change with z's size: dividing by the largest first keeps the squares from over- and underflow.
    # A part of a global batch may be empty: its largest is 0.
    largest = logits.detach().abs().amax(0) if len(logits) else logits.new_zeros(logits.shape[1])
    largest = processes.largest(largest) if together else largest
    some = largest > 1e-20
    # By a product and not by `where`: a NaN stays one, also where the largest over the ranks has lost it.
    scaled = logits * some / torch.where(some, largest, 1)
    squares = scaled.square().sum(0)
    squares = processes.total(squares) if together else squares
    return scaled / torch.where(some, squares, 1).sqrt()


def _means(losses: Tensor, missing: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean over the findings of each one's mean over its known entries, these, and which have any."""
    sums, count = losses.masked_fill(missing, 0).sum(0), (~missing).to(losses.dtype).sum(0)
    if together:
        sums, count = processes.total(torch.stack([sums, count])).unbind()
    values, present = sums / count.clamp(min=1), count > 0
    return values.sum() / present.sum().clamp(min=1), values.detach(), present
