"""The losses against brute force over pairs, closed forms, finite differences and hostile batches."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from damcli.deepauc import AUCMarginLoss, AUCSquareLoss, CrossEntropyLoss, FocalLoss
from damcli.deepauc.losses import check_targets, from_stage, margin_note
from damcli.recipes import Stage

NAN = float("nan")
FORMS = ("conditional", "prior")
SCORES = ("sigmoid", "bsn", "identity")
AUC_LOSSES = [
    partial(cls, 3, form=form, score=score, prior=[0.2, 0.5, 0.7] if form == "prior" else None)
    for cls, form, score in itertools.product((AUCMarginLoss, AUCSquareLoss), FORMS, SCORES)
]
LOSSES = [*AUC_LOSSES, CrossEntropyLoss, FocalLoss, partial(FocalLoss, 0.75, 1.0)]


def name(make: Callable[[], nn.Module]) -> str:
    loss = make()
    return "-".join([type(loss).__name__, getattr(loss, "form", ""), getattr(loss, "score", "")])


def batch(n: int, k: int, seed: int = 0, soft: bool = True, missing: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64)
    targets = torch.rand(n, k, generator=generator, dtype=torch.float64)
    targets = targets if soft else (targets < 0.4).double()
    targets[torch.rand(n, k, generator=generator) < missing] = NAN
    targets[0], targets[1] = 0.9 if soft else 1.0, 0.1 if soft else 0.0
    return logits, targets


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
def test_saddle_value_is_the_pairwise_sum(score, form, soft, margin):
    """Theorem 1: min over a, b of max over α of E[F] is p(1−p)·A(w), A by brute force; None stands for AUC-S."""
    logits, targets = batch(17, 2, soft=soft, missing=0.2)
    prior = targets.nanmean(0) if form == "prior" else None
    loss = AUCSquareLoss(2, form, prior, score) if margin is None else AUCMarginLoss(2, margin, form, prior, score)
    loss.double()
    if prior is not None:
        loss.prior.copy_(prior)  # float64 in full, for the comparison
    closed_form(loss, logits, targets)
    assert loss(logits, targets).item() == pytest.approx(pairwise(loss, logits, targets), rel=1e-12)


@pytest.mark.parametrize("make", AUC_LOSSES, ids=name)
def test_closed_form_is_a_saddle_point(make):
    loss = make().double()
    logits, targets = batch(40, 3, seed=1)
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


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_gradients_match_finite_differences(make):
    loss = make().double()
    logits, targets = batch(7, 3, seed=3, missing=0.25)
    variables = [logits.requires_grad_()]
    if isinstance(loss, AUCMarginLoss):
        for shift, parameter in enumerate((loss.a, loss.b, loss.alpha)):
            parameter.data = torch.linspace(0.1, 0.6, 3, dtype=torch.float64) + 0.1 * shift
            variables.append(parameter)
    assert torch.autograd.gradcheck(lambda *_: loss(logits, targets), variables)


def test_gradients_are_those_of_the_page():
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


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_findings_are_averaged_as_if_alone(make):
    loss = make().double()
    logits, targets = batch(12, 3, seed=5, missing=0.3)
    alone = []
    for k in range(3):
        single = loss
        if isinstance(loss, AUCMarginLoss):
            for value, parameter in enumerate((loss.a, loss.b, loss.alpha)):
                parameter.data.fill_(0.1 * value)
            prior = None if loss.prior is None else loss.prior[k]
            kind = type(loss)
            single = kind(1, form=loss.form, prior=prior, score=loss.score).double()
            single.load_state_dict({key: v[k : k + 1] for key, v in loss.state_dict().items()})
        alone.append(single(logits[:, k : k + 1], targets[:, k : k + 1]))
    torch.testing.assert_close(loss(logits, targets), torch.stack(alone).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_missing_targets_are_as_if_the_scan_were_not_there(make):
    loss = make().double()
    logits, targets = batch(10, 3, seed=6)
    short = loss(logits, targets)
    logits = torch.cat([logits, torch.tensor([[NAN, math.inf, 1e30]], dtype=torch.float64)]).requires_grad_()
    targets = torch.cat([targets, torch.full((1, 3), NAN, dtype=torch.float64)])
    masked = loss(logits, targets)
    torch.testing.assert_close(masked, short, rtol=1e-12, atol=0)
    masked.backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[-1] == 0).all()


@pytest.mark.parametrize("score", SCORES)
def test_a_finding_without_both_classes_adds_nothing(score):
    """Absent findings: all positive, all missing, uncertain negatives alone. α does not move for them either."""
    logits, targets = batch(8, 4, seed=7, soft=False)
    targets[:, 1], targets[:, 2], targets[:, 3] = 1.0, NAN, 0.3
    loss = AUCMarginLoss(4, score=score).double()
    for parameter in (loss.a, loss.b, loss.alpha):
        parameter.data.fill_(0.5)
    value = loss(logits.requires_grad_(), targets)
    value.backward()
    for gradient in (loss.a.grad, loss.b.grad, loss.alpha.grad, logits.grad):
        assert (gradient[..., 1:] == 0).all()
        assert (gradient[..., 0] != 0).any()
    alone = AUCMarginLoss(1, score=score).double()
    alone.load_state_dict({key: v[:1] for key, v in loss.state_dict().items()})
    torch.testing.assert_close(value, alone(logits[:, :1], targets[:, :1]))


def test_prior_form_takes_one_class_batches():
    loss = AUCMarginLoss(1, form="prior", prior=0.1, score="identity")
    loss(torch.ones(4, 1), torch.ones(4, 1)).backward()
    assert loss.a.grad.item() == pytest.approx(-2 * 0.9)
    assert loss.alpha.grad.item() == pytest.approx(2 * (0.09 - 0.9))
    assert loss.prior.item() == pytest.approx(0.1)


@pytest.mark.parametrize("make", LOSSES, ids=name)
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (5, 3)])
@pytest.mark.parametrize("target", [NAN, 0.0, 1.0])
def test_one_sided_and_empty_batches_are_finite(make, shape, target):
    loss = make().double()
    logits = torch.zeros(shape, requires_grad=True)
    loss(logits, torch.full(shape, target)).backward()
    assert logits.grad.isfinite().all()


EDGES = st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1e-7, 1.0, -30.0, 88.0, -1e4, 3e18, -1e30, 1e36])
TARGETS = st.sampled_from([0.0, 1.0, 0.5, 0.49999, 0.9, NAN])


@given(
    st.sampled_from(LOSSES),
    st.lists(st.tuples(*[st.tuples(EDGES | st.floats(-50, 50, width=32), TARGETS)] * 3), min_size=0, max_size=7),
)
@settings(max_examples=300, deadline=None)
def test_finite_logits_never_give_nan(make, rows):
    loss = make()
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3, 2)
    logits, targets = values[..., 0].requires_grad_(), values[..., 1]
    for parameter in loss.parameters():
        parameter.data.fill_(0.25)
    value = loss(logits, targets)
    value.backward()
    assert not value.isnan()
    for gradient in (logits.grad, *(p.grad for p in loss.parameters())):
        assert not gradient.isnan().any()


@pytest.mark.parametrize("make", LOSSES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(make, dtype):
    loss = make()
    logits, targets = batch(9, 3, seed=8)
    logits = logits.to(dtype)
    value = loss(logits.requires_grad_(), targets.to(dtype))
    assert value.dtype == torch.float32
    assert value == loss(logits.detach().float(), targets.to(dtype).float())
    assert torch.autograd.grad(value, logits)[0].dtype == dtype


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_no_step_waits_for_the_device(make):
    """On the meta device nothing has a value: `.item()`, `.cpu()` and a branch on data would all raise."""
    loss = make().to("meta")
    logits = torch.zeros(4, 3, device="meta", requires_grad=True)
    loss(logits, torch.zeros(4, 3, device="meta")).backward()
    assert logits.grad.shape == (4, 3)


def test_saddle_variables_travel_with_the_module():
    loss = AUCMarginLoss(2, form="prior", prior=[0.1, 0.2])
    assert set(loss.state_dict()) == {"a", "b", "alpha", "prior"}
    assert all(value.dtype == torch.float64 for value in loss.double().state_dict().values())
    assert all((parameter == 0).all() for parameter in loss.parameters())


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


def test_noisy_label_moves_less_with_a_smaller_margin():
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


def test_bsn_ignores_missing_entries_and_scale():
    logits, targets = batch(20, 3, seed=10, missing=0.4)
    loss = AUCMarginLoss(3, score="bsn").double()
    loss.a.data.fill_(0.1)
    value = loss(logits, targets)
    logits = torch.where(targets.isnan(), logits * 7, logits * torch.tensor([1e-9, 1.0, 1e15]))
    torch.testing.assert_close(loss(logits, targets), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (AUCMarginLoss(1), "margin 1 is not below 1, the largest gap that sigmoid scores allow"),
        (AUCMarginLoss(1, 0.7), None),
        (AUCMarginLoss(1, 0.3, score="bsn"), "0.29, the largest gap that bsn scores allow in a batch of 13 positives"),
        (AUCMarginLoss(1, 0.2, score="bsn"), None),
        (AUCMarginLoss(1, score="identity"), None),
        (AUCSquareLoss(1), None),
        (CrossEntropyLoss(), None),
    ],
)
def test_margin_note(loss, says):
    note = margin_note(loss, 13, 115)
    assert (note is None) if says is None else (says in note and "acts as AUC-S" in note)


def test_cross_entropy_and_focal_by_hand():
    z, y = torch.tensor([[0.3], [-1.2], [2.0]], dtype=torch.float64), torch.tensor([[1.0], [0.25], [0.0]]).double()
    q = z.sigmoid()
    expected = -(y * q.log() + (1 - y) * (1 - q).log()).mean()
    torch.testing.assert_close(CrossEntropyLoss()(z, y), expected)
    focal = -(0.75 * y * (1 - q) ** 2 * q.log() + 0.25 * (1 - y) * q**2 * (1 - q).log()).mean()
    torch.testing.assert_close(FocalLoss(0.75, 2.0)(z, y), focal)
    torch.testing.assert_close(FocalLoss(0.5, 0.0)(z, y), expected / 2)


@pytest.mark.parametrize("loss", ["aucm", "aucs", "ce", "focal"])
def test_from_stage(loss):
    optimizer = "pesg" if loss.startswith("auc") else "adam"
    stage = Stage(loss=loss, optimizer=optimizer, margin=0.4, score="bsn", focal_alpha=0.5, focal_gamma=1)
    built = from_stage(stage, 3, prior=0.2)
    if loss == "aucm":
        assert (built.margin, built.score, built.prior, built.projected) == (0.4, "bsn", None, True)
    if loss == "aucs":
        assert (built.margin, built.score, built.projected) == (1.0, "bsn", False)
        assert from_stage(stage.model_copy(update={"form": "prior"}), 3, prior=0.2).prior.shape == (3,)
    if loss == "focal":
        assert (built.alpha, built.gamma) == (0.5, 1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AUCMarginLoss(0), "num_findings .* got 0"),
        (lambda: AUCMarginLoss(1, margin=0.0), "margin .* got 0"),
        (lambda: AUCMarginLoss(1, margin=NAN), "margin .* got nan"),
        (lambda: AUCMarginLoss(1, form="priors"), "form .* 'priors'"),
        (lambda: AUCMarginLoss(1, score="softmax"), "score .* 'softmax'"),
        (lambda: AUCMarginLoss(1, form="prior"), "prior .* needed"),
        (lambda: AUCMarginLoss(1, prior=0.5), "prior is for form='prior'"),
        (lambda: AUCMarginLoss(1, form="prior", prior=0.0), r"prior must lie in \(0, 1\), got 0.0"),
        (lambda: AUCMarginLoss(2, form="prior", prior=[0.5, 1.0]), r"prior must lie in \(0, 1\)"),
        (lambda: AUCMarginLoss(2, form="prior", prior=[0.5] * 3), r"prior must be one number or 2, got shape \(3,\)"),
        (lambda: FocalLoss(alpha=1.0), "alpha"),
        (lambda: FocalLoss(gamma=-1.0), "gamma"),
        (lambda: AUCMarginLoss(2)(torch.zeros(4, 3), torch.zeros(4, 3)), r"logits must have shape \(N, 2\)"),
        (lambda: AUCMarginLoss(2)(torch.zeros(4, 2), torch.zeros(3, 2)), "targets must have the shape of logits"),
        (lambda: CrossEntropyLoss()(torch.zeros(4), torch.zeros(4)), r"logits must have shape \(N, K\)"),
        (lambda: CrossEntropyLoss()(torch.zeros(4, 1).long(), torch.zeros(4, 1)), "logits must be floating"),
        (lambda: AUCMarginLoss(1)(torch.zeros(1, 1), torch.full((1, 1), 1.5)), r"targets must lie in \[0, 1\].*1.5"),
        (lambda: FocalLoss()(torch.zeros(1, 1), torch.full((1, 1), -1.0)), r"targets must lie in \[0, 1\].*-1"),
        (lambda: check_targets(torch.tensor([NAN, 2.0])), "got 2"),
    ],
)
def test_bad_arguments_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
