"""How training is shown: its events as they come, what it leaves as pictures, and its result."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from damcli import console
from damcli.commands.train.board import Board, figure

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.events import Finished, MemberEvent, MembersFinished, Scored, Step, TimeIsUp

    End: TypeAlias = Finished | TimeIsUp | MembersFinished


def draw(events: Iterator[MemberEvent]) -> End:
    """Show the events of a run, or of several in turn, as they come, and return the last one."""
    from damcli.training.events import Finished, FoldScoring, MembersFinished, Started, TimeIsUp

    last: list[MemberEvent] = []  # one of these at most
    for event in events:
        _say(event)
        last[:] = [event]
        if isinstance(event, Started):
            console.state.together = True
            board = Board()
            counted = _counted(events, board, last)
            for _ in console.track(counted, event.batches, "training", unit="batches", above=board.table):
                pass
        elif isinstance(event, FoldScoring):
            for _ in console.track(islice(events, event.batches), event.batches, "scoring", unit="batches"):
                pass
    [end] = last
    assert isinstance(end, Finished | TimeIsUp | MembersFinished), "training ended before its end"
    return end


def _counted(events: Iterator[MemberEvent], board: Board, last: list[MemberEvent]) -> Iterator[Step | Scored]:
    """Yield what a progress bar counts up to the end of a run, say the rest, and leave the end in `last`."""
    from damcli.training.events import Finished, MemberStopped, Scored, Step, TimeIsUp

    for event in events:
        board.take(event)
        if isinstance(event, Step | Scored):
            yield event
            continue
        _say(event)
        last[:] = [event]
        if isinstance(event, Finished | MemberStopped) or (isinstance(event, TimeIsUp) and event.best_epoch is None):
            return


def _say(event: MemberEvent) -> None:
    from damcli.training import events

    match event:
        case events.Warned(text):
            console.warn(text)
        case events.Noted(text):
            console.note(text)
        case events.PrecisionChosen(precision, _, reason):
            console.note(f"precision: {precision} ({reason})")
        case events.Started():
            again = f", going on at {event.resumed_at}" if event.resumed_at else ""
            several = f" in {event.processes} processes" if event.processes > 1 else ""
            console.note(
                f"{event.run}: {event.train_scans} scans to train on, {event.tune_scans} of other patients to choose "
                f"the epoch by, {event.device}{several}, precision {event.precision}{again}"
            )
        case events.StageStarted():
            console.note(
                f"stage {event.stage}: {event.loss} by {event.optimizer}, {event.epochs} epochs of {event.steps} steps"
            )
        case events.Boundary():
            far = f", ‖v − v_ref‖ {event.distance:.4g}" if event.distance is not None else ""
            if event.next_lr is None:
                console.note(f"stage {event.stage} ends after step {event.step}: learning rate {event.lr:.4g}{far}")
            else:
                rates = f"{event.lr:.4g} → {event.next_lr:.4g}"
                console.note(f"stage {event.stage}, after step {event.step}: learning rate {rates}{far}")
        case events.EpochDone():
            each = ", ".join(f"{name} {figure(value)}" for name, value in event.aurocs.items())
            console.note(
                f"stage {event.stage}, epoch {event.epoch}/{event.epochs}: loss {event.loss:.4f}, tune AUROC "
                f"{figure(event.mean_auroc)} ({each}), {event.scans_per_second:.3g} scans/s"
                + (", best so far" if event.best else "")
            )
        case events.TimeIsUp():
            console.note(f"the time limit has passed at {event.at}; it can go on: damcli train --resume {event.run}")
        case events.MemberStarted():
            of = f" of {event.total}" if event.total else ""
            console.note(f"{event.run}: {event.number}{of}, {event.what}")
        case events.MemberStopped():
            console.note(f"{event.run}: {event.status}, {event.reason}")
        case events.FoldScoring():
            console.note(
                f"{event.run}: the {event.scans} scans of fold {event.fold}, which it has not seen, are scored"
            )


def pictures(run: Path, dataset: Dataset) -> None:
    """Draw the run's course into `curves.png`, and its scores of the tune part into `histogram.png`."""
    import numpy as np
    import polars as pl

    from damcli.report import plots

    plots.curves(run / "metrics.jsonl", run / "curves.png")
    scores = pl.read_parquet(run / "scores-tune.parquet")
    row_of = {name: row for row, name in enumerate(dataset.manifest["id"].to_list())}
    truth = dataset.truth(np.array([row_of[name] for name in scores["path"].to_list()]))
    known = {name: truth[:, k] for k, name in enumerate(dataset.info.findings) if name in scores.columns}
    panels = {name: (targets, scores[name].to_numpy()) for name, targets in known.items()}
    plots.histogram(panels, run / "histogram.png")


def result(end: End) -> None:
    """Show the AUROCs on the tune part, and where the run lies; of several runs together, where they lie."""
    from damcli.training.events import MembersFinished, TimeIsUp

    match end:
        case MembersFinished(folder):
            if console.state.json:
                console.emit_json({"folder": str(folder)})
            console.result(str(folder))
        case TimeIsUp(run, at, best_epoch):
            if console.state.json:
                console.emit_json({"run": str(run), "stopped_at": at, "best_epoch": best_epoch})
            console.result(str(run))
        case _:
            _finished(end)


def _finished(end: Finished) -> None:
    from damcli.metrics import estimate
    from damcli.report import tables

    found = {name: estimate([part]) for name, part in end.aurocs.items()}
    mean = estimate(list(end.aurocs.values()))
    if console.state.json:
        figures = {name: tables.document(one) for name, one in found.items()}
        console.emit_json(
            {
                "run": str(end.run),
                "best_epoch": end.best_epoch,
                "tune_auroc": figures,
                "mean_tune_auroc": tables.document(mean),
            }
        )
    of = ": the images' scores, which chose it, mixed with the metadata's" if end.mixed else ", which chose it"
    title = f"Best epoch {end.best_epoch}, on the tune part{of} (so these figures flatter)"
    rows = [tables.auroc_row(name, part.positives, part.negatives, found[name]) for name, part in end.aurocs.items()]
    console.table(title, tables.AUROC_COLUMNS, [*rows, tables.mean_row("mean", mean)])
    console.result(str(end.run))
