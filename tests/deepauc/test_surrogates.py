"""The AUC losses are the surrogates of the paper: pairs by brute force, saddle points, facts of section 3."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from damcli.deepauc import AUCMarginLoss, AUCSquareLoss

FORMS = ("conditional", "prior")
SCORES = ("sigmoid", "bsn", "identity")


def scores_of(loss: AUCMarginLoss, logits: Tensor, targets: Tensor) -> Tensor:
    if loss.score == "sigmoid":
        return logits.sigmoid()
    if loss.score == "identity":
        return logits
    return logits / logits.where(~targets.isnan(), torch.zeros(())).norm(dim=0)


def closed_form(loss: AUCMarginLoss, logits: Tensor, targets: Tensor) -> None:
    """Set a, b, α to the saddle point of a batch, one finding at a time."""
    scores = scores_of(loss, logits, targets)
    for k in range(logits.shape[1]):
        known = ~targets[:, k].isnan()
        y, h = targets[known, k], scores[known, k]
        a, b = (y * h).sum() / y.sum(), ((1 - y) * h).sum() / (1 - y).sum()
        alpha = loss.margin + b - a
        with torch.no_grad():
            loss.a[k], loss.b[k], loss.alpha[k] = a, b, alpha.clamp(min=0) if loss.projected else alpha


def pairwise(loss: AUCMarginLoss, logits: Tensor, targets: Tensor) -> float:
    """The surrogate by its definition: sums over pairs (i, j), i = j too, weighted by y_i (1 − y_j)."""
    scores = scores_of(loss, logits, targets)
    values = []
    for k in range(logits.shape[1]):
        known = [i for i in range(len(logits)) if not math.isnan(targets[i, k])]
        total = weight = hinge = 0.0
        spread = {+1: 0.0, -1: 0.0}
        for i, j in itertools.product(known, known):
            w = float(targets[i, k] * (1 - targets[j, k]))
            gap = float(scores[i, k] - scores[j, k])
            weight, total, hinge = weight + w, total + w * (1 - gap) ** 2, hinge + w * (loss.margin - gap)
            # Var = half the mean squared difference of two independent draws.
            difference = float(scores[i, k] - scores[j, k]) ** 2 / 2
            spread[+1] += float(targets[i, k] * targets[j, k]) * difference
            spread[-1] += float((1 - targets[i, k]) * (1 - targets[j, k])) * difference
        positives = sum(float(targets[i, k]) for i in known)
        variance = spread[+1] / positives**2 + spread[-1] / (len(known) - positives) ** 2
        value = variance + max(hinge / weight, 0) ** 2 if loss.projected else total / weight
        p = positives / len(known)
        values.append(value * (p * (1 - p) if loss.form == "prior" else 1))
    return float(np.mean(values))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("margin", [None, 0.1, 0.5, 1.0])
def test_saddle_value_is_the_pairwise_sum(batch, score, form, soft, margin):
    """Theorem 1: min over a, b of max over α of E[F] is p(1−p)·A(w), A by brute force; None stands for AUC-S."""
    logits, targets = batch(17, 2, soft=soft, missing=0.2)
    prior = targets.nanmean(0) if form == "prior" else None
    loss = AUCSquareLoss(2, form, prior, score) if margin is None else AUCMarginLoss(2, margin, form, prior, score)
    loss.double()
    if prior is not None:
        loss.prior.copy_(prior)  # float64 in full, for the comparison
    closed_form(loss, logits, targets)
    assert loss(logits, targets).item() == pytest.approx(pairwise(loss, logits, targets), rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [AUCMarginLoss, AUCSquareLoss])
def test_closed_form_is_a_saddle_point(batch, kind, form, score):
    logits, targets = batch(40, 3, seed=1)
    loss = kind(3, form=form, prior=0.5 if form == "prior" else None, score=score).double()
    if loss.form == "prior":
        loss.prior.copy_(targets.mean(0))
    closed_form(loss, logits, targets)
    best = loss(logits, targets).item()
    point = [p.detach().clone() for p in (loss.a, loss.b, loss.alpha)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        da, db, dalpha = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            loss.a.copy_(point[0] + da), loss.b.copy_(point[1] + db), loss.alpha.copy_(point[2])
            assert loss(logits, targets) > best
            up = point[2] + dalpha
            loss.a.copy_(point[0]), loss.b.copy_(point[1]), loss.alpha.copy_(up.clamp(min=0) if loss.projected else up)
            assert loss(logits, targets) < best + 1e-15


def test_gradients_are_those_of_the_page(batch):
    """∂F of ALGORITHM section 2, per example, in the prior form, where loss = mean of F."""
    n, p, m = 50, 0.3, 0.6
    logits, targets = batch(n, 1, seed=4)
    loss = AUCMarginLoss(1, m, "prior", p, "identity").double()
    loss.prior.fill_(p)
    loss.a.data.fill_(0.7), loss.b.data.fill_(0.2), loss.alpha.data.fill_(0.4)
    loss(logits.requires_grad_(), targets).backward()
    h, y = logits.detach(), targets
    by_hand = 2 * (1 - p) * y * (h - 0.7 - 0.4) + 2 * p * (1 - y) * (h - 0.2 + 0.4)
    torch.testing.assert_close(logits.grad, by_hand / n, rtol=1e-12, atol=0)
    for parameter, formula in (
        (loss.a, -2 * (1 - p) * (h - 0.7) * y),
        (loss.b, -2 * p * (h - 0.2) * (1 - y)),
        (loss.alpha, 2 * (p * (1 - p) * m + p * h * (1 - y) - (1 - p) * h * y) - 2 * p * (1 - p) * 0.4),
    ):
        torch.testing.assert_close(parameter.grad, formula.mean(0), rtol=1e-10, atol=1e-15)


def test_easy_pair():
    """Section 3.2: AUC-S pushes a pair with h − h' > 1 together, AUC-M with α* = 0 lets it be."""
    logits, targets = torch.tensor([[2.0], [0.5]], dtype=torch.float64), torch.tensor([[1.0], [0.0]])
    moves = {}
    for loss in (AUCSquareLoss(1, score="identity").double(), AUCMarginLoss(1, score="identity").double()):
        closed_form(loss, logits, targets)
        h = logits.clone().requires_grad_()
        loss(h, targets).backward()
        moves[type(loss)] = float(h.grad[0] - h.grad[1])  # descent shrinks the gap where this is positive
    assert moves[AUCSquareLoss] == pytest.approx(2.0)
    assert moves[AUCMarginLoss] == 0


def test_noisy_label_moves_less_with_a_smaller_margin(batch):
    """Section 3.3: a positive labelled negative, while α* > 0 and h + m > a."""
    logits, targets = batch(30, 1, seed=9, soft=False)
    logits = 0.1 * logits + 0.1 * targets
    targets[int(logits.argmax())] = 0.0
    pulls = []
    for margin in (0.3, 0.5, 0.7, 1.0):
        loss = AUCMarginLoss(1, margin, score="identity").double()
        closed_form(loss, logits, targets)
        assert loss.alpha.item() > 0
        assert logits.max() + margin > loss.a
        h = logits.clone().requires_grad_()
        loss(h, targets).backward()
        pulls.append(float(h.grad[logits.argmax()]))
    assert pulls == sorted(pulls)
    assert pulls[0] < pulls[-1]


@pytest.mark.parametrize(("positives", "negatives"), [(64, 64), (13, 115), (1, 1)])
def test_bsn_gap_is_bounded_and_reached(positives, negatives):
    loss = AUCMarginLoss(1, score="bsn")
    bound = loss.reachable_gap(positives, negatives)
    y = torch.tensor([1.0] * positives + [0.0] * negatives, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    gaps = []
    best = y / positives - (1 - y) / negatives
    for z in (best, *torch.randn(200, len(y), generator=generator, dtype=torch.float64)):
        h = z / z.norm()
        gaps.append(float(h[y == 1].mean() - h[y == 0].mean()))
    assert gaps[0] == pytest.approx(bound, rel=1e-12) == max(gaps)
