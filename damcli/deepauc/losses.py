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
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from damcli.deepauc import processes
from damcli.recipes import Stage

Form = Literal["conditional", "prior"]
Score = Literal["sigmoid", "bsn", "identity"]


class Loss(nn.Module):
    """What the losses share: the scalar is the mean of `per_finding` over the findings that are present."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mean_over(*self.per_finding(logits, targets))

    def per_finding(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each finding's loss (K,), 0 where it is absent, and which findings are present, bool (K,)."""
        raise NotImplementedError

    @property
    def _global(self) -> bool:
        return self.training and processes.several()


def mean_over(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean of `values` (K,) over the findings that are `present`, bool (K,); 0 where none is."""
    return values.sum() / present.sum().clamp(min=1)


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

    def per_finding(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each finding's loss (K,), 0 where it is absent, and which findings are present, bool (K,)."""
        logits, targets, known = _prepared(logits, targets, self.num_findings)
        together = self._global
        if self.prior is None:
            positive, negative, curvature = _conditional_weights(targets, known, together)
        else:
            positive, negative, curvature = _prior_weights(targets, known, self.prior, together)
        present = curvature > 0
        # Masked before the score: what lies under a missing target must not reach a gradient, not even as 0·∞.
        scores = _scores(torch.where(known & present, logits, 0), self.score, together)
        a: Tensor = self.a
        b: Tensor = self.b
        alpha: Tensor = self.alpha
        if together:
            a, b, alpha = processes.replicated(torch.stack([a, b, alpha])).unbind()
        to_a, to_b = scores - a, scores - b
        # (weight·d)·d, not weight·d²: d² may overflow where the weight is 0.
        spread = (positive * to_a * to_a + negative * to_b * to_b).sum(0)
        gap = ((negative - positive) * scores).sum(0)
        if together:
            spread, gap = processes.total(torch.stack([spread, gap])).unbind()
        return spread + 2 * alpha * (curvature * self.margin + gap) - curvature * alpha.square(), present

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


class CrossEntropyLoss(Loss):
    """Binary cross-entropy with logits: the mean over a finding's known targets, then over the findings."""

    def per_finding(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each finding's loss (K,), 0 where it is absent, and which findings are present, bool (K,)."""
        logits, targets, known = _prepared(logits, targets, None)
        logits = torch.where(known, logits, 0)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return _means(losses, known, self._global)


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

    def per_finding(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each finding's loss (K,), 0 where it is absent, and which findings are present, bool (K,)."""
        logits, targets, known = _prepared(logits, targets, None)
        logits = torch.where(known, logits, 0)
        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
        # Powers as exp(γ̂ log ·): their gradient stays finite at 0.
        positive = self.alpha * targets * torch.exp(self.gamma * log_q) * log_p
        negative = (1 - self.alpha) * (1 - targets) * torch.exp(self.gamma * log_p) * log_q
        return _means(-positive - negative, known, self._global)


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
        f"margin {loss.margin:g} is not below {gap:.2g}, the largest gap that {loss.score} scores allow{batch}: "
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
    """Check the shapes; return logits and targets in the precision of the loss, missing targets 0, and the mask."""
    if logits.ndim != 2 or logits.shape[1] != (num_findings or logits.shape[1]):
        raise ValueError(f"logits must have shape (N, {num_findings or 'K'}), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating, got {logits.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(f"targets must have the shape of logits, {tuple(logits.shape)}, got {tuple(targets.shape)}")
    if targets.device.type == "cpu":
        check_targets(targets)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    known = ~targets.isnan()
    return logits.to(dtype), torch.where(known, targets, 0).to(dtype), known


def _conditional_weights(targets: Tensor, known: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (N, K) that sum to 1 over the positives and over the negatives, and 1 or 0 as (K,)."""
    likely, positive, negative = targets >= 0.5, targets, (1 - targets) * known
    sums = torch.stack([likely, ~likely & known, positive, negative]).sum(1)
    likely_count, unlikely_count, positives, negatives = (processes.total(sums) if together else sums).unbind()
    present = ((likely_count > 0) & (unlikely_count > 0)).to(targets.dtype)
    return positive * present / (positives + 1 - present), negative * present / (negatives + 1 - present), present


def _prior_weights(targets: Tensor, known: Tensor, prior: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (1−p)·y/n and p·(1−y)/n as (N, K), and p(1−p), 0 for an absent finding, as (K,)."""
    count = known.sum(0)
    count = processes.total(count) if together else count
    per_scan = known.to(targets.dtype) / count.clamp(min=1)
    positive = (1 - prior) * targets * per_scan
    return positive, prior * (1 - targets) * per_scan, prior * (1 - prior) * (count > 0)


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
    scaled = torch.where(some, logits, 0) / torch.where(some, largest, 1)
    squares = scaled.square().sum(0)
    squares = processes.total(squares) if together else squares
    return scaled / torch.where(some, squares, 1).sqrt()


def _means(losses: Tensor, known: Tensor, together: bool) -> tuple[Tensor, Tensor]:
    """Return each finding's mean over its known entries, 0 where it has none, and whether it has any."""
    sums, count = torch.where(known, losses, 0).sum(0), known.sum(0)
    if together:
        sums, count = processes.total(sums), processes.total(count)
    return sums / count.clamp(min=1), count > 0
