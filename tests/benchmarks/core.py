"""The core beside LibAUC 2.0.1 on the CPU: PESG's step, the multi-label loss, operators, memory and bandwidth.

Both sides run in one process, in turn, and medians are compared. LibAUC is no dependency:

    pip install --no-deps libauc==2.0.1
    python tests/benchmarks/core.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `damcli train` does, before torch is loaded

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from damcli.deepauc import PESG, AUCMarginLoss

try:
    from libauc import losses as libauc_losses
    from libauc import optimizers as libauc_optimizers
except ImportError:
    sys.exit("LibAUC is not installed: pip install --no-deps libauc==2.0.1")

WORD = 4  # bytes of a float32
# Whole copies of the network that a plain step reads or writes: the fused pass takes weights, gradients and pull, and
# writes weights and pull; the mean takes mean and weights, and writes the mean.
PASSES = {"fused descent": 5, "running mean": 3}


class Counter(TorchDispatchMode):
    """Counts operator calls."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def medians(
    sides: Mapping[str, Callable[[], object]], rounds: int, block: int, before: Callable[[], object]
) -> dict[str, float]:
    """Return the median seconds of each side's call, the sides taking turns by blocks of calls."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, call in sides.items():
            for _ in range(block):
                before()
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[block:]) for name, values in seconds.items()}


def network() -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("densenet121", num_classes=5).to(memory_format=torch.channels_last)
    for parameter in made.parameters():
        parameter.grad = torch.randn_like(parameter)
    return made


def optimizers() -> tuple[PESG, torch.optim.Optimizer]:
    mine, theirs = AUCMarginLoss(1), libauc_losses.AUCMLoss(device="cpu")
    for loss in (mine, theirs):
        for name in ("a", "b", "alpha"):
            getattr(loss, name).grad = torch.ones(1)
    return (
        PESG(network().parameters(), mine, lr=1e-4, weight_decay=1e-5),
        libauc_optimizers.PESG(
            network().parameters(), loss_fn=theirs, lr=1e-4, weight_decay=1e-5, device="cpu", verbose=False
        ),
    )


def loss_sides(findings: int) -> tuple[dict[str, Callable[[], object]], Callable[[], object]]:
    """Return forward and backward of both losses in both forms, and what clears the gradients."""
    logits = torch.randn(32, findings, requires_grad=True)
    targets = (torch.rand(32, findings) < 0.3).float()
    targets[0], targets[1] = 1, 0
    mine = {"conditional": AUCMarginLoss(findings), "prior": AUCMarginLoss(findings, form="prior", prior=0.3)}
    versions = {"conditional": "v2", "prior": "v1"}
    theirs = {
        f: libauc_losses.MultiLabelAUCMLoss(num_labels=findings, version=v, device="cpu") for f, v in versions.items()
    }

    def clear() -> None:
        tensors: list[Tensor] = [logits, *(p for loss in mine.values() for p in loss.parameters())]
        for tensor in [*tensors, *(getattr(t, n) for t in theirs.values() for n in ("a", "b", "alpha"))]:
            tensor.grad = None

    sides: dict[str, Callable[[], object]] = {}
    for form in mine:
        sides[f"{form}, damcli"] = lambda f=form: mine[f](logits, targets).backward()
        sides[f"{form}, LibAUC"] = lambda f=form: theirs[f](logits.sigmoid(), targets).backward()
    return sides, clear


def training_step(batch: int) -> float:
    """Return the median seconds of forward, loss and backward of DenseNet121 at 224 px, float32, channels last."""
    model, loss = network().train(), AUCMarginLoss(5)
    images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(batch, 5) < 0.5).float()
    step = {"": lambda: loss(model(images), targets).backward()}
    return medians(step, rounds=4, block=1, before=lambda: model.zero_grad())[""]


def copy_bandwidth() -> float:
    """Return bytes read and written per second by copying a tensor as large as four DenseNets."""
    source, target = torch.rand(28_000_000), torch.empty(28_000_000)
    seconds = medians({"": lambda: target.copy_(source)}, rounds=15, block=1, before=lambda: None)[""]
    return 2 * WORD * len(source) / seconds


def counted(call: Callable[[], object]) -> int:
    with Counter() as counter:
        call()
    return counter.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    mine, theirs = optimizers()
    weights = sum(p.numel() for group in mine.param_groups for p in group["params"])
    tensors = sum(len(group["params"]) for group in mine.param_groups)

    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, LibAUC 2.0.1\n"
    )
    print("| what | damcli | LibAUC | ratio |\n|---|---|---|---|")
    sides = {"mine": mine.step, "theirs": theirs.step}
    step = medians(sides, rounds, block=1, before=lambda: None)
    print(f"| PESG.step, DenseNet121, {tensors} tensors, {weights / 1e6:.1f} M weights | {step['mine'] * 1e3:.1f} ms "
          f"| {step['theirs'] * 1e3:.1f} ms | {step['theirs'] / step['mine']:.1f} |")  # fmt: skip
    print(f"| its operator calls | {counted(mine.step)} | {counted(theirs.step)} | |")
    for findings in (5, 14):
        calls, clear = loss_sides(findings)
        for kind, block in (("", 40), (", each call after other work", 1)):
            found = medians(calls, rounds * (1 if block > 1 else 10), block, clear)
            for form in ("conditional", "prior"):
                a, b = found[f"{form}, damcli"], found[f"{form}, LibAUC"]
                print(f"| AUC-M {form}, {findings} findings, forward and backward{kind} | {a * 1e3:.2f} ms | "
                      f"{b * 1e3:.2f} ms | {b / a:.1f} |")  # fmt: skip
    whole = training_step(16)
    share = step["mine"] / whole
    print(f"\nA step of DenseNet121 (224 px, batch 16, float32): {whole:.2f} s; PESG.step is {share:.1%} of it.")
    state = sum(t.numel() * t.element_size() for s in mine.state.values() for t in s.values())
    print(f"State of the optimizer: {state / 1e6:.0f} MB, {state / (WORD * weights):.2f} copies of the network.")
    moved, bandwidth = sum(PASSES.values()) * WORD * weights, copy_bandwidth()
    passes = " + ".join(f"{words} ({name})" for name, words in PASSES.items())
    print(
        f"Bytes moved: {passes} = {sum(PASSES.values())} copies = {moved / 1e6:.0f} MB in {step['mine'] * 1e3:.1f} ms, "
        f"{moved / step['mine'] / 1e9:.1f} GB/s; copying alone reaches {bandwidth / 1e9:.1f} GB/s."
    )


if __name__ == "__main__":
    main()
