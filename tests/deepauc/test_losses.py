"""The losses against finite differences and hostile batches, and what they refuse."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_gradients_match_finite_differences(batch, make):
    loss = make().double()
    logits, targets = batch(7, 3, seed=3, missing=0.25)
    variables = [logits.requires_grad_()]
    if isinstance(loss, AUCMarginLoss):
        for shift, parameter in enumerate((loss.a, loss.b, loss.alpha)):
            parameter.data = torch.linspace(0.1, 0.6, 3, dtype=torch.float64) + 0.1 * shift
            variables.append(parameter)
    assert torch.autograd.gradcheck(lambda *_: loss(logits, targets), variables)


@pytest.mark.parametrize("make", LOSSES, ids=name)
def test_findings_are_averaged_as_if_alone(batch, make):
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
def test_missing_targets_are_as_if_the_scan_were_not_there(batch, make):
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
def test_a_finding_without_both_classes_adds_nothing(batch, score):
    """Absent findings: all positive, all missing, uncertain negatives alone. α does not move for them either."""
    logits, targets = batch(8, 4, seed=7, soft=False)
    targets[:, 1], targets[:, 2], targets[:, 3] = 1.0, NAN, 0.3
    logits[3, 1], logits[4, 2], logits[5, 3] = (
        math.inf,
        NAN,
        -math.inf,
    )  # what an overflow leaves does not matter either
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


@pytest.mark.parametrize(("likely", "counts"), [(0.5, True), (0.499, False)])
def test_half_is_a_positive(likely, counts):
    loss = AUCMarginLoss(1, score="identity")
    value = loss(torch.ones(3, 1), torch.tensor([[likely], [0.2], [0.0]]))
    assert (value != 0) == counts


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
def test_half_precision_logits_are_computed_in_float32(batch, make, dtype):
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


@pytest.mark.parametrize("make", LOSSES, ids=name)
@pytest.mark.parametrize("others", [1.0, 0.0])
def test_a_nan_logit_gives_a_nan_loss(make, others):
    """It must not pass for a score: training stops at a loss that is not finite."""
    logits = torch.full((6, 3), others)
    logits[3, 1] = NAN
    assert make()(logits, torch.arange(6.0)[:, None].expand(6, 3) % 2).isnan()


def test_saddle_variables_travel_with_the_module():
    loss = AUCMarginLoss(2, form="prior", prior=[0.1, 0.2])
    assert set(loss.state_dict()) == {"a", "b", "alpha", "prior"}
    assert all(value.dtype == torch.float64 for value in loss.double().state_dict().values())
    assert all((parameter == 0).all() for parameter in loss.parameters())


def test_bsn_ignores_missing_entries_and_scale(batch):
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
        (AUCMarginLoss(1, 0.3, score="bsn"), "0.293, the largest gap that bsn scores allow in a batch of 13 positives"),
        (AUCMarginLoss(1, 0.2, score="bsn"), None),
        (AUCMarginLoss(1, score="identity"), None),
        (AUCSquareLoss(1), None),
        (CrossEntropyLoss(), None),
    ],
)
def test_margin_note(loss, says):
    note = margin_note(loss, 13, 115)
    assert (note is None) if says is None else (says in note and "acts as AUC-S" in note)


@pytest.mark.parametrize("margin", [0.177, 0.1768])
def test_a_margin_out_of_reach_never_looks_as_if_it_were_below_the_gap(margin):
    note = margin_note(AUCMarginLoss(1, margin, score="bsn"), 64, 64)  # √(1/32)
    assert "margin 0.177 is not below 0.177," in note


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
        started = from_stage(stage.model_copy(update={"ab_start": 0.5}), 3)
        assert [built.a.tolist(), built.b.tolist()] == [[0.0] * 3] * 2, "the paper's start"
        assert [started.a.tolist(), started.b.tolist(), started.alpha.tolist()] == [[0.5] * 3, [0.5] * 3, [0.0] * 3]
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
        (lambda: CrossEntropyLoss()(torch.zeros(4, 0), torch.zeros(4, 0)), r"\(N, K\), got \(4, 0\)"),
        (lambda: FocalLoss()(torch.zeros(0, 0), torch.zeros(0, 0)), r"\(N, K\), got \(0, 0\)"),
        (lambda: CrossEntropyLoss()(torch.zeros(4, 1).long(), torch.zeros(4, 1)), "logits must be floating"),
        (lambda: AUCMarginLoss(1)(torch.zeros(1, 1), torch.full((1, 1), 1.5)), r"targets must lie in \[0, 1\].*1.5"),
        (lambda: FocalLoss()(torch.zeros(1, 1), torch.full((1, 1), -1.0)), r"targets must lie in \[0, 1\].*-1"),
        (lambda: check_targets(torch.tensor([NAN, 2.0])), "got 2"),
    ],
)
def test_bad_arguments_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
