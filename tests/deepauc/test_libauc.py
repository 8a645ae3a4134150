"""The preset `libauc` beside LibAUC 2.0.1 itself (pip install --no-deps libauc==2.0.1)."""

import copy

import pytest
import torch
from torch import nn

from damcli.deepauc import PESG, AUCMarginLoss

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def libauc():
    losses = pytest.importorskip("libauc.losses", reason="LibAUC is not installed: pip install --no-deps libauc==2.0.1")
    optimizers = pytest.importorskip("libauc.optimizers")
    return losses, optimizers


def trio(findings: int, margin: float, losses):
    """Two equal networks and, for both, the loss of LibAUC and ours.

    MultiLabelAUCMLoss for one finding too: AUCMLoss's version "v2" has a parenthesis astray.
    """
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, findings))
    their_loss = losses.MultiLabelAUCMLoss(margin=margin, version="v2", num_labels=findings, device="cpu")
    return copy.deepcopy(theirs), AUCMarginLoss(findings, margin), theirs, their_loss


def batch(step: int, findings: int):
    x = 2 * torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
    y = (x[:, :findings] > 1).float()
    y[0], y[1] = 1, 0
    return x, y


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("margin", [0.3, 1.0])
@pytest.mark.parametrize("findings", [1, 3])
def test_the_steps_are_the_same(libauc, findings, margin, momentum):
    losses, optimizers = libauc
    ours, our_loss, theirs, their_loss = trio(findings, margin, losses)
    settings = {"lr": 0.5, "weight_decay": 1e-3, "momentum": momentum}
    their_optimizer = optimizers.PESG(
        theirs.parameters(), their_loss, epoch_decay=0.05, device="cpu", verbose=False, **settings
    )
    their_v = [*theirs.parameters(), their_loss.a, their_loss.b]
    our_v = [*ours.parameters(), our_loss.a, our_loss.b]
    # Noise there; its step is what is compared.
    for reference, parameter in zip(their_optimizer.model_ref, their_v, strict=True):
        reference.copy_(parameter.detach())
    our_optimizer = PESG(ours.parameters(), our_loss, gamma=0.05, update="libauc", **settings)
    clamped = 0
    for step in range(40):
        x, y = batch(step, findings)
        our_optimizer.zero_grad()
        (20 * our_loss(ours(x), y)).backward()  # enough for gradients to be clamped
        for one, other in zip(our_v, their_v, strict=True):
            other.grad = one.grad.clone()
            clamped += int((one.grad.abs() > 1).sum())
        their_loss.alpha.grad = our_loss.alpha.grad.clone()
        our_optimizer.step(), their_optimizer.step()
        if step == 19:
            their_optimizer.update_regularizer(3)
            our_optimizer.end_stage(3)
        for one, other in zip([*our_v, our_loss.alpha], [*their_v, their_loss.alpha], strict=True):
            torch.testing.assert_close(one.data, other.data, rtol=1e-4, atol=1e-5)
    assert clamped > 40


@pytest.mark.parametrize("findings", [1, 3])
def test_the_losses_are_the_same_on_hard_labels_and_both_classes(libauc, findings):
    losses, _ = libauc
    network, our_loss, _, their_loss = trio(findings, 0.7, losses)
    for value, name in enumerate(("a", "b", "alpha"), 1):
        getattr(our_loss, name).data.fill_(0.2 * value)
        getattr(their_loss, name).data.fill_(0.2 * value)
    x, y = batch(0, findings)
    torch.testing.assert_close(our_loss(network(x), y), their_loss(network(x).sigmoid(), y))
