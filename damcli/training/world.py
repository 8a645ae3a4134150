"""The processes that one training run consists of, as their launcher tells in the environment. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from damcli.errors import UsageError

# What each launcher calls the processes per node, all of them, and the number of this one.
LAUNCHERS = {
    "torchrun": ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK"),
    "Slurm": ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS", "SLURM_PROCID"),
    "MPI": ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
INTERACTIVE = ("bash", "interactive")


@dataclass(frozen=True)
class World:
    """`devices` processes on each of `nodes` machines; `launcher` started them all, or is None and damcli will."""

    devices: int = 1
    nodes: int = 1
    rank: int = 0
    launcher: str | None = None

    @property
    def processes(self) -> int:
        """How many there are in all."""
        return self.devices * self.nodes


def detect(devices: int | None = None, nodes: int | None = None, environment: Mapping[str, str] = os.environ) -> World:
    """Return the world that this process is in: what a launcher started, else what is asked for.

    Raises `UsageError` where the launcher started something else than is asked for, and for several machines that do
    not know of one another.

    >>> detect(environment={"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3"})
    World(devices=2, nodes=2, rank=3, launcher='torchrun')
    >>> detect(devices=2, environment={})
    World(devices=2, nodes=1, rank=0, launcher=None)
    """
    for launcher, names in LAUNCHERS.items():
        total, rank = (environment.get(name, "") for name in names[1:])
        if not (total.isdigit() and rank.isdigit()) or (launcher == "Slurm" and _by_hand(environment)):
            continue
        local = environment.get(names[0], "")
        if not local.isdigit():
            local = str(int(total) // int(environment.get("SLURM_NNODES", "1")))
        found = World(int(local), int(total) // int(local), int(rank), launcher)
        if found.processes == 1:
            continue
        if (devices or found.devices, nodes or found.nodes) != (found.devices, found.nodes):
            raise UsageError(
                f"{launcher} started {found.devices} processes on each of {found.nodes} nodes, and "
                f"--devices {devices or 1} --nodes {nodes or 1} asks for others",
                fix="leave out --devices and --nodes, or start as many",
            )
        return found
    if (nodes or 1) > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= environment.keys():
        raise UsageError(
            "several machines must know of one another",
            where="--nodes",
            fix="start with torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each",
        )
    local_rank = environment.get("LOCAL_RANK", "0")  # of the processes that Fabric starts for us
    devices, nodes = devices or 1, nodes or 1
    return World(devices, nodes, int(environment.get("NODE_RANK", "0")) * devices + int(local_rank))


def _by_hand(environment: Mapping[str, str]) -> bool:
    """Whether a person works in a shell of a Slurm job, whose tasks are then not ours."""
    return environment.get("SLURM_JOB_NAME", "") in INTERACTIVE
