"""W processes with a part of each batch each are one process with all of it (ALGORITHM section 7)."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from damcli.deepauc import PESG, AUCMarginLoss, AUCSquareLoss, CrossEntropyLoss, FocalLoss
from damcli.deepauc.losses import Loss

STEPS, SCANS, FINDINGS = 20, 16, 3
PRIOR = [0.2, 0.4, 0.3]
# How the 16 scans of a batch lie on the ranks, by the number of ranks; "one" keeps the last rank empty.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
PARTS = {2: {"even": [8, 8], "one": [16, 0]}, 3: {"even": [6, 5, 5], "one": [5, 11, 0]}}


def losses() -> dict[str, Loss]:
    made: dict[str, Loss] = {"ce": CrossEntropyLoss(), "focal": FocalLoss()}
    for kind, form, score in itertools.product(
        (AUCMarginLoss, AUCSquareLoss), ("conditional", "prior"), ("sigmoid", "bsn", "identity")
    ):
        prior = PRIOR if form == "prior" else None
        made[f"{kind.__name__}-{form}-{score}"] = kind(FINDINGS, form=form, prior=prior, score=score)
    return made


def network(dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 7), nn.ELU(), nn.Linear(7, FINDINGS)).to(torch.float64)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return made.to(dtype)


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scans and targets, soft and missing ones too; all positives lie in the first scans, so on one rank."""
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(SCANS, 5, generator=generator, dtype=torch.float64)
    y = torch.rand(SCANS, FINDINGS, generator=generator, dtype=torch.float64) * 0.4
    y[:4] += 0.6
    y[4:8].round_()
    y[torch.rand(SCANS, FINDINGS, generator=generator) < 0.2] = float("nan")
    if step % 5 == 4:
        y[:, 2] = float("nan")  # a finding that is missing everywhere
    return x.to(dtype), y.to(dtype)


def train(loss: Loss, dtype: torch.dtype, part: slice, ranks: int) -> list[Tensor]:
    """Return the weights, then a, b and α, after 20 steps on this rank's part of every batch."""
    model, loss = network(dtype), loss.to(dtype)
    called = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    optimizer: torch.optim.Optimizer
    if isinstance(loss, AUCMarginLoss):
        optimizer = PESG(model.parameters(), loss, 0.2, gamma=0.05, weight_decay=1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for step in range(STEPS):
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        loss(called(x[part]), y[part]).backward()
        optimizer.step()
        if isinstance(optimizer, PESG) and step == 9:
            optimizer.end_stage(2)
    return [parameter.detach() for parameter in [*model.parameters(), *loss.parameters()]]


def worker(rank: int, ranks: int, meeting: str) -> None:
    """What each process of the test below does; a difference is an error."""
    torch.set_num_threads(1)
    cases = [(dtype, name) for dtype in TOLERANCE for name in losses()]
    alone = {(dtype, name): train(losses()[name], dtype, slice(None), ranks=1) for dtype, name in cases}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for (dtype, name), (kind, sizes) in itertools.product(cases, PARTS[ranks].items()):
        if (dtype, kind) == (torch.float32, "even"):  # the harder one will do
            continue
        stop = sum(sizes[: rank + 1])
        together = train(losses()[name], dtype, slice(stop - sizes[rank], stop), ranks)
        case = f"{name}, {dtype}, {kind}"
        for one, other in zip(together, alone[dtype, name], strict=True):
            atol = TOLERANCE[dtype] * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=atol, msg=lambda m: f"{case}: {m}")  # noqa: B023
            everywhere = [torch.empty_like(one) for _ in range(ranks)]
            dist.all_gather(everywhere, one.contiguous())
            assert all(torch.equal(one, each) for each in everywhere), f"{case}: the ranks differ"
    starts(rank)
    dist.destroy_process_group()
    print(f"{len(cases)} cases alike")


def starts(rank: int) -> None:
    """PESG begins at rank 0's values on every rank, and an evaluation is the rank's own affair."""
    weight, loss = nn.Parameter(torch.full((3,), float(rank))), AUCMarginLoss(1)
    loss.a.data.fill_(0.5 + rank)
    PESG([weight], loss, 0.1)
    assert weight.tolist() == [0.0] * 3
    assert loss.a.item() == 0.5
    # A NaN on one rank is one on all, although the maximum over the ranks may lose it.
    for logit, one in itertools.product((0.0, 1.0), range(dist.get_world_size())):
        logits = torch.full((2, 1), float("nan") if rank == one else logit)
        assert AUCMarginLoss(1, score="bsn")(logits, torch.tensor([[1.0], [0.0]])).isnan()
    if rank == dist.get_world_size() - 1:  # were it a collective, it would wait for the others in vain
        loss.eval()(torch.zeros(4, 1), torch.tensor([[1.0], [0.0], [0.0], [1.0]]))
        PESG([own := nn.Parameter(torch.full((2,), float(rank)))], loss, 0.1)
        assert own.tolist() == [float(rank)] * 2


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_parts_on_several_ranks_are_one_batch(ranks, tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, str(ranks), str(tmp_path / "meeting")]
    processes = [
        subprocess.Popen(
            [*command, str(rank)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
        assert f"{2 * len(losses())} cases alike" in text


if __name__ == "__main__":
    worker(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
