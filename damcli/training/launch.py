"""The device and the precision of a run: the only file that knows Lightning Fabric."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric

from damcli.errors import MachineError

Precision = Literal["32", "bf16"]
FABRIC_NAMES: dict[Precision, Literal["32-true", "bf16-mixed"]] = {"32": "32-true", "bf16": "bf16-mixed"}
# Less than this is within the drift of a machine, and bf16 costs digits.
WORTHWHILE_SPEEDUP = 1.3
ROUNDS = 3

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Choice:
    """The faster precision and the seconds of the best timed step of each."""

    precision: Precision
    seconds: dict[str, float]

    @property
    def reason(self) -> str:
        """Why, in words, for `config.toml` and the console.

        >>> Choice("32", {"32": 0.5, "bf16": 0.4}).reason
        'measured: bf16 is 1.25 times as fast as 32, taken from 1.3 on'
        """
        speedup = self.seconds["32"] / self.seconds["bf16"]
        return f"measured: bf16 is {speedup:.2f} times as fast as 32, taken from {WORTHWHILE_SPEEDUP:g} on"


def start(device: str, precision: Precision) -> Fabric:
    """Return a Fabric for one device: `auto` (a GPU where there is one), `cpu` or `cuda`.

    Raises `MachineError` where CUDA is asked for and not there.
    """
    return Fabric(accelerator=accelerator(device), devices=1, precision=FABRIC_NAMES[precision])


def accelerator(device: str) -> str:
    """Return `cpu` or `cuda` for `auto`, `cpu` or `cuda`. Raises `MachineError` where there is no CUDA device."""
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise MachineError(
            "CUDA was asked for, but torch finds no usable GPU here",
            where=f"torch {torch.__version__}",
            fix="see damcli info doctor, or train with --device cpu",
        )
    return "cuda" if found and device != "cpu" else "cpu"


def setup(fabric: Fabric, network: torch.nn.Module) -> torch.nn.Module:
    """Move `network` to the device, channels last, and return what to call for logits (float32) in its place."""
    # channels_last is at least as fast as the default in either precision, on CPUs and GPUs alike.
    network.to(memory_format=torch.channels_last)
    return fabric.setup_module(network)


def faster_precision(device: str, network: torch.nn.Module, images: torch.Tensor) -> Choice:
    """Time forward and backward passes of both precisions in turn, on copies of `network`.

    `images` (N,C,H,W) float is a batch of the run's own shape. Takes bf16 only if its best step is at least 1.3 times
    as fast as that of 32 bit. `network` and the random state are as before.
    """
    arms = {}
    for precision in FABRIC_NAMES:
        fabric = start(device, precision)
        arms[precision] = fabric, setup(fabric, copy.deepcopy(network))
    seconds = dict.fromkeys(FABRIC_NAMES, float("inf"))
    for _ in range(ROUNDS):
        for precision, (fabric, model) in arms.items():
            seconds[precision] = min(seconds[precision], _step_seconds(fabric, model, images))
    faster = seconds["32"] >= WORTHWHILE_SPEEDUP * seconds["bf16"]
    return Choice("bf16" if faster else "32", {str(name): value for name, value in seconds.items()})


def _step_seconds(fabric: Fabric, model: torch.nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    batch = images.to(fabric.device).contiguous(memory_format=torch.channels_last)
    fabric.backward(model(batch).square().mean())
    model.zero_grad(set_to_none=True)
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
