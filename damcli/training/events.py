"""What training tells of itself while it runs; `commands` draws it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from damcli.metrics import Components


@dataclass(frozen=True)
class Warned:
    """Something the user must know before trusting the figures, in words."""

    text: str


@dataclass(frozen=True)
class Noted:
    """Something worth knowing, in words."""

    text: str


@dataclass(frozen=True)
class PrecisionChosen:
    """The arithmetic of this run, and the best of the timed steps of each kind in seconds."""

    precision: str
    seconds: dict[str, float]
    reason: str


@dataclass(frozen=True)
class Started:
    """All is checked and the run folder exists. `batches` counts the `Step`s and `Scored`s that are still to come."""

    run: Path
    device: str
    precision: str
    train_scans: int
    tune_scans: int
    batches: int
    resumed_at: str | None


@dataclass(frozen=True)
class StageStarted:
    """A stage begins, or goes on after a resume."""

    stage: int
    loss: str
    optimizer: str
    epochs: int
    steps: int


@dataclass(frozen=True)
class Step:
    """One batch was learnt from. `step` counts from 1 within the epoch."""

    stage: int
    epoch: int
    step: int
    loss: float


@dataclass(frozen=True)
class Boundary:
    """A stage boundary: the learning rate is divided, or (`next_lr` None) the training stage ends.

    `step` counts the stage's steps before it, `distance` is ‖v − v_ref‖ there (None unless the optimizer is PESG).
    """

    stage: int
    step: int
    lr: float
    next_lr: float | None
    distance: float | None


@dataclass(frozen=True)
class Scored:
    """One batch of the tune part was scored."""

    scans: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch ended, counted from 1. `aurocs` are those of the tune part, nan where undefined."""

    stage: int
    epoch: int
    epochs: int
    loss: float
    aurocs: dict[str, float]
    mean_auroc: float
    best: bool
    scans_per_second: float


@dataclass(frozen=True)
class Finished:
    """The run is complete: the best epoch, and its AUROC per finding on the tune part that chose it."""

    run: Path
    best_epoch: int
    aurocs: dict[str, Components]
    mean_auroc: float


Event = Warned | Noted | PrecisionChosen | Started | StageStarted | Step | Boundary | Scored | EpochDone | Finished
