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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("margin", [0.3, 1.0])
@pytest.mark.parametrize("findings", [1, 3])
def test_the_steps_are_the_same(libauc, findings, margin, momentum):
    losses, optimizers = libauc
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, findings))
    with torch.no_grad():
        theirs[2].weight.mul_(8)
    ours = copy.deepcopy(theirs)
    # For one finding too: AUCMLoss's version 'v2' has a parenthesis astray, and is not the loss of its own page.
    their_loss = losses.MultiLabelAUCMLoss(margin=margin, version="v2", num_labels=findings, device="cpu")
    our_loss = AUCMarginLoss(findings, margin)
    settings = {"lr": 0.5, "weight_decay": 1e-3, "momentum": momentum}
    their_optimizer = optimizers.PESG(
        theirs.parameters(), their_loss, epoch_decay=0.05, device="cpu", verbose=False, **settings
    )
    # Noise there; its step is what is compared.
    v = [*theirs.parameters(), their_loss.a, their_loss.b]
    for reference, parameter in zip(their_optimizer.model_ref, v, strict=True):
        reference.copy_(parameter.detach())
    our_optimizer = PESG(ours.parameters(), our_loss, gamma=0.05, update="libauc", **settings)
    clamped = 0
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        x = 4 * torch.randn(32, 6, generator=generator)
        y = (x[:, :findings] > 1).float()
        y[0], y[1] = 1, 0
        their_optimizer.zero_grad(), our_optimizer.zero_grad()
        their_loss(torch.sigmoid(theirs(x)), y).backward()
        our_loss(ours(x), y).backward()
        clamped += sum(int((p.grad.abs() > 1).sum()) for p in [*ours.parameters(), our_loss.a, our_loss.b])
        their_optimizer.step(), our_optimizer.step()
        if step == 19:
            their_optimizer.update_regularizer(3)
            our_optimizer.end_stage(3)
        for name in ("a", "b", "alpha"):
            torch.testing.assert_close(getattr(our_loss, name).data, getattr(their_loss, name), rtol=1e-4, atol=1e-5)
    assert clamped
    assert clamped
    assert clamped
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
