"""How a training run is shown: its events as they come, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from damcli import console

if TYPE_CHECKING:
    from damcli.training.events import Event, Finished, Scored, Step


def draw(events: Iterator[Event]) -> Finished:
    """Show the events of a run as they come, and return the last one."""
    from damcli.training.events import Finished, Started

    for event in events:
        _say(event)
        if isinstance(event, Started):
            last: list[Event] = []
            for _ in console.track(_batches(events, last), event.batches, "training", unit="batches"):
                pass
            assert isinstance(last[0], Finished)
            return last[0]
    raise AssertionError("training ended before it started")


def _batches(events: Iterator[Event], last: list[Event]) -> Iterator[Step | Scored]:
    """Yield what a progress bar counts, say the rest, and leave the last event in `last`."""
    from damcli.training.events import Scored, Step

    for event in events:
        if isinstance(event, Step | Scored):
            yield event
        else:
            _say(event)
            last[:] = [event]


def _say(event: Event) -> None:
    from damcli.training.events import Boundary, EpochDone, Noted, PrecisionChosen, StageStarted, Started, Warned

    match event:
        case Warned(text):
            console.warn(text)
        case Noted(text):
            console.note(text)
        case PrecisionChosen(precision, _, reason):
            console.note(f"precision: {precision} ({reason})")
        case Started():
            again = f", going on at {event.resumed_at}" if event.resumed_at else ""
            console.note(
                f"{event.run}: {event.train_scans} scans to train on, {event.tune_scans} of other patients to choose "
                f"the epoch by, {event.device}, precision {event.precision}{again}"
            )
        case StageStarted():
            console.note(
                f"stage {event.stage}: {event.loss} by {event.optimizer}, {event.epochs} epochs of {event.steps} steps"
            )
        case Boundary():
            far = f", ‖v − v_ref‖ {event.distance:.4g}" if event.distance is not None else ""
            if event.next_lr is None:
                console.note(f"stage {event.stage} ends after step {event.step}: learning rate {event.lr:.4g}{far}")
            else:
                rates = f"{event.lr:.4g} → {event.next_lr:.4g}"
                console.note(f"stage {event.stage}, after step {event.step}: learning rate {rates}{far}")
        case EpochDone():
            each = ", ".join(f"{name} {_figure(value)}" for name, value in event.aurocs.items())
            console.note(
                f"stage {event.stage}, epoch {event.epoch}/{event.epochs}: loss {event.loss:.4f}, tune AUROC "
                f"{_figure(event.mean_auroc)} ({each}), {event.scans_per_second:.3g} scans/s"
                + (", best so far" if event.best else "")
            )


def _figure(value: float) -> str:
    return "n/a" if value != value else f"{value:.3f}"


def result(finished: Finished) -> None:
    """Show the AUROCs on the tune part, and where the run lies."""
    from damcli.metrics import estimate
    from damcli.report import tables

    found = {name: estimate([part]) for name, part in finished.aurocs.items()}
    mean = estimate(list(finished.aurocs.values()))
    if console.state.json:
        figures = {name: tables.document(one) for name, one in found.items()}
        console.emit_json(
            {
                "run": str(finished.run),
                "best_epoch": finished.best_epoch,
                "tune_auroc": figures,
                "mean_tune_auroc": tables.document(mean),
            }
        )
    title = f"Best epoch {finished.best_epoch}, on the tune part, which chose it (so these figures flatter)"
    rows = [
        tables.auroc_row(name, part.positives, part.negatives, found[name]) for name, part in finished.aurocs.items()
    ]
    console.table(title, tables.AUROC_COLUMNS, [*rows, tables.mean_row("mean", mean)])
    console.result(str(finished.run))
