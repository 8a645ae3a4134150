"""What training tells of itself while it runs; `commands` draws it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from damcli.metrics import Components
from damcli.training.observation import Observation


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
    processes: int
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
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One batch of `scans` was learnt from, on all processes together. `step` counts from 1 within the epoch."""

    stage: int
    epoch: int
    step: int
    scans: int
    lr: float
    observed: Observation

    @property
    def loss(self) -> float:
        """The batch's loss."""
        return self.observed.loss


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
    """An epoch ended, counted from 1. `aurocs` are those of the tune part, nan where undefined.

    `best` says whether it is the best so far by what the recipe monitors; only epochs of the last stage are.
    """

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
    """The run is complete: the best epoch, and its AUROC per finding on the tune part that chose it.

    `mixed` says that these are the AUROCs of the scores with the metadata network's, which chose no epoch of it.
    """

    run: Path
    best_epoch: int
    aurocs: dict[str, Components]
    mean_auroc: float
    mixed: bool = False


@dataclass(frozen=True)
class TimeIsUp:
    """The time limit has passed; all is saved. Without a `best_epoch` there is nothing to evaluate yet."""

    run: Path
    at: str
    best_epoch: int | None


Event = (
    Warned
    | Noted
    | PrecisionChosen
    | Started
    | StageStarted
    | Step
    | Boundary
    | Scored
    | EpochDone
    | TimeIsUp
    | Finished
)


@dataclass(frozen=True)
class MemberStarted:
    """One of several runs begins or goes on; all events up to its `Finished` or `MemberStopped` are its own.

    `number` counts from 1, `total` is None where it is not known; `what` says how it differs from the others.
    """

    run: Path
    number: int
    total: int | None
    what: str


@dataclass(frozen=True)
class MemberStopped:
    """A trial ended before its time: `failed`, or `pruned` because it fell behind the others; `reason` in words."""

    run: Path
    status: str
    reason: str


@dataclass(frozen=True)
class FoldScoring:
    """After a member's `Finished`: the fold that it has not seen is scored, in as many `Scored`s as `batches`."""

    run: Path
    fold: int
    scans: int
    batches: int


@dataclass(frozen=True)
class MembersFinished:
    """All members are trained, and what is made of them together lies in the folder."""

    folder: Path


MemberEvent = Event | MemberStarted | MemberStopped | FoldScoring | MembersFinished
