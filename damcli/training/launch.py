"""Devices, processes and precision of a run: the only file that knows Lightning Fabric."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision

from damcli.errors import MachineError, UsageError
from damcli.training.world import World

PrecisionName = Literal["32", "bf16", "fp16"]
# Less than this is within the drift of a machine, and bf16 costs digits.
WORTHWHILE_SPEEDUP = 1.3
ROUNDS = 3
# A processor that has no bf16 emulates it, many times as slow: not worth a second look.
HOPELESS = 2.0
TIMED: tuple[PrecisionName, ...] = ("32", "bf16")

for name in ("lightning_fabric", "lightning.fabric", "lightning_fabric.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Choice:
    """The faster precision and the seconds of the best timed step of each."""

    precision: PrecisionName
    seconds: dict[str, float]

    @property
    def reason(self) -> str:
        """Why, in words, for `config.toml` and the console.

        >>> Choice("32", {"32": 0.5, "bf16": 0.4}).reason
        'measured: bf16 is 1.25 times as fast as 32, taken from 1.3 on'
        """
        speedup = self.seconds["32"] / self.seconds["bf16"]
        return f"measured: bf16 is {speedup:.2f} times as fast as 32, taken from {WORTHWHILE_SPEEDUP:g} on"


@dataclass(frozen=True)
class Machine:
    """What a run computes on: this process's device, its place among the others, and how numbers are rounded.

    `scaler` keeps the gradients of fp16 from vanishing; for other precisions it does nothing.
    """

    fabric: Fabric
    scaler: torch.amp.GradScaler

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def processes(self) -> int:
        return self.fabric.world_size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.fabric.is_global_zero

    def setup(self, network: torch.nn.Module, compiled: bool = False) -> torch.nn.Module:
        """Move `network` to the device, channels last, and return what to call for logits (float32) in its place.

        With several processes its gradients are averaged over them as they come. `compiled` is torch.compile's.
        """
        # channels_last is at least as fast as the default in either precision, on CPUs and GPUs alike.
        network.to(memory_format=torch.channels_last)
        module = torch.compile(network) if compiled else network
        return self.fabric.setup_module(module)  # type: ignore[arg-type]

    def backward(self, value: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
        """Compute gradients from `value` (with that of a value that is no scalar), scaled where precision is fp16."""
        self.fabric.backward(value, gradient)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their own scale, before anybody looks at them."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights, except where fp16's gradients have overflowed: then the scale is lowered instead."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def share(self, value: Any) -> Any:
        """Return the leading process's `value` on every process."""
        return self.fabric.broadcast(value)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.fabric.barrier()


def start(device: str, precision: PrecisionName, world: World | None = None) -> Machine:
    """Return the machine for `device`: `auto` (GPUs where there are any), `cpu` or `cuda`.

    With several processes in `world`, those that nobody has started yet are started: each runs this command from its
    beginning, and gets to this place. Raises `MachineError` where CUDA is asked for and not there, or not so many GPUs,
    or mpi4py under MPI; `UsageError` where a launcher's processes are not those asked for.
    """
    world = world or World()
    kind = accelerator(device)
    if kind == "cuda" and torch.cuda.device_count() < world.devices:
        raise MachineError(
            f"{world.devices} GPUs were asked for, and this machine has {torch.cuda.device_count()}",
            fix=f"--devices {torch.cuda.device_count()}",
        )
    if world.launcher == "MPI" and importlib.util.find_spec("mpi4py") is None:
        # Fabric would take each of MPI's processes for the first one, and start the others of it anew.
        raise MachineError("the processes of MPI meet by mpi4py, which is not installed", fix="pip install mpi4py")
    if world.launcher == "Slurm":  # Fabric refuses srun --ntasks without it
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(world.devices))
    scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")
    plugin = {
        "32": Precision(),
        "bf16": MixedPrecision("bf16-mixed", kind),
        "fp16": MixedPrecision("16-mixed", kind, scaler),
    }
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=world.devices,
            num_nodes=world.nodes,
            strategy="ddp" if world.processes > 1 else "auto",
            plugins=[plugin[precision]],
        )
        fabric.launch()
    except ValueError as error:  # Fabric's word for a launcher that started other numbers
        raise UsageError(f"the processes cannot be started: {error}", fix="see --devices and --nodes") from error
    return Machine(fabric, scaler)


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


def faster_precision(device: str, network: torch.nn.Module, images: torch.Tensor) -> Choice:
    """Time forward and backward passes of 32 bit and bf16 in turn, on copies of `network`.

    `images` (N,C,H,W) float is a batch of the run's own shape. Takes bf16 only if its best step is at least 1.3 times
    as fast as that of 32 bit. `network` and the random state are as before.
    """
    arms = {}
    for precision in TIMED:
        machine = start(device, precision)
        arms[precision] = machine, machine.setup(copy.deepcopy(network))
    seconds = dict.fromkeys(TIMED, float("inf"))
    for _ in range(ROUNDS):
        for precision, (machine, model) in arms.items():
            seconds[precision] = min(seconds[precision], _step_seconds(machine, model, images))
        if seconds["bf16"] > HOPELESS * seconds["32"]:
            break
    faster = seconds["32"] >= WORTHWHILE_SPEEDUP * seconds["bf16"]
    return Choice("bf16" if faster else "32", {str(name): value for name, value in seconds.items()})


def _step_seconds(machine: Machine, model: torch.nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    batch = images.to(machine.device).contiguous(memory_format=torch.channels_last)
    machine.backward(model(batch).square().mean())
    model.zero_grad(set_to_none=True)
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
