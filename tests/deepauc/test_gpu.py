"""The core on a CUDA device does what it does on the CPU, and waits for nothing."""

import pytest
import torch
from torch import nn

from damcli.deepauc import PESG, AUCMarginLoss

pytestmark = pytest.mark.gpu


def train(device: str, update: str, momentum: float, score: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 3)).double()
    x = torch.randn(20, 16, 6, dtype=torch.float64)
    y = (torch.rand(20, 16, 3) < 0.4).double()
    y[torch.rand(20, 16, 3) < 0.1] = float("nan")
    network, x, y = network.to(device), x.to(device), y.to(device)
    loss = AUCMarginLoss(3, 0.5, score=score).double().to(device)
    optimizer = PESG(network.parameters(), loss, 0.1, 0.05, 1e-3, momentum, update=update)
    for step in range(20):
        optimizer.zero_grad()
        loss(network(x[step]), y[step]).backward()
        optimizer.step()
        if step == 9:
            optimizer.end_stage(3)
    return [p.detach().cpu() for p in [*network.parameters(), *loss.parameters()]]


@pytest.mark.parametrize("score", ["sigmoid", "bsn", "identity"])
@pytest.mark.parametrize(("update", "momentum"), [("plain", 0.0), ("plain", 0.9), ("adam", 0.0), ("libauc", 0.9)])
def test_a_gpu_ends_where_the_cpu_does(update, momentum, score):
    for one, other in zip(train("cuda", update, momentum, score), train("cpu", update, momentum, score), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("update", ["plain", "adam", "libauc"])
def test_loss_and_step_never_wait_for_the_device(update):
    network, loss = nn.Linear(6, 3).cuda(), AUCMarginLoss(3).cuda()
    optimizer = PESG(network.parameters(), loss, 0.1, update=update)
    x, y = torch.randn(16, 6, device="cuda"), torch.randint(0, 2, (16, 3), device="cuda").float()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.zero_grad()
            loss(network(x), y).backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
