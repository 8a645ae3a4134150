"""The live table of a training run: what the last step and the last epoch showed, finding by finding."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from damcli.training.events import EpochDone, MemberEvent, StageStarted, Step

STEPS_OF_RATE = 50
SADDLE = {"a": "a", "b": "b", "alpha": "α"}


class Board:
    """Takes a run's events, and draws where it stands whenever it is asked to."""

    def __init__(self) -> None:
        self._stage: StageStarted | None = None
        self._step: Step | None = None
        self._last: EpochDone | None = None
        self._best: EpochDone | None = None
        self._times: deque[tuple[float, int]] = deque(maxlen=STEPS_OF_RATE)  # when a step was done, scans up to there
        self._rate = 0.0

    def take(self, event: MemberEvent) -> None:
        """Take over what an event tells: for every step, so nothing is drawn or worked out here."""
        from damcli.training.events import EpochDone, StageStarted, Step

        match event:
            case Step():
                self._step = event
                before = self._times[-1][1] if self._times else 0
                self._times.append((time.monotonic(), before + event.scans))
            case StageStarted():
                self._stage, self._step, self._last = event, None, None
                self._times.clear()
            case EpochDone():
                self._last = event
                self._best = event if event.best else self._best
                self._rate = self.rate
                self._times.clear()  # the tune part was scored meanwhile

    @property
    def rate(self) -> float:
        """Images learnt from in a second, over the last steps; before there are any, the last epoch's."""
        if len(self._times) < 2:
            return self._rate
        (start, none), (end, scans) = self._times[0], self._times[-1]
        return (scans - none) / max(end - start, 1e-9)

    def table(self) -> RenderableType:
        """Return the line of the run and the rows of its findings, for Rich to draw."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        stage, step = self._stage, self._step
        if stage is None:
            return Text("starting")
        saddle = {
            name: step.observed.saddle[key] for key, name in SADDLE.items() if step and key in step.observed.saddle
        }
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.add_column("finding", no_wrap=True)
        for name in ("loss", *saddle, "tune AUROC", "best"):
            drawn.add_column(name, justify="right", no_wrap=True)
        for k, finding in enumerate(stage.findings):
            now = [values[k] for values in (step.observed.losses, *saddle.values())] if step else [None]
            epochs = [epoch.aurocs.get(finding) if epoch else None for epoch in (self._last, self._best)]
            drawn.add_row(Text(finding), *(figure(value) for value in (*now, *epochs)))
        if len(stage.findings) > 1:
            means = [epoch.mean_auroc if epoch else None for epoch in (self._last, self._best)]
            loss = step.loss if step else None
            drawn.add_row("mean", figure(loss), *([""] * len(saddle)), *(figure(value) for value in means))
        return Group(Text(self._line(stage, step)), drawn)

    def _line(self, stage: StageStarted, step: Step | None) -> str:
        parts = [f"stage {stage.stage}: {stage.loss} by {stage.optimizer}"]
        if step:
            parts += [f"epoch {step.epoch}/{stage.epochs}", f"step {step.step}/{stage.steps}"]
            parts += [f"loss {step.loss:.4f}", f"learning rate {step.lr:.4g}"]
        if self.rate:
            parts.append(f"{self.rate:.3g} images/s")
        return ", ".join(parts)


def figure(value: float | None) -> str:
    """Write a figure for a table: nothing where there is none yet, n/a where it is undefined.

    >>> figure(0.91234), figure(float("nan")), figure(None)
    ('0.912', 'n/a', '')
    """
    if value is None:
        return ""
    return "n/a" if value != value else f"{value:.3f}"
