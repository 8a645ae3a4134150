"""What a run's tune part decides for an evaluation: calibration and operating points, made or read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.commands.evaluate import reducing, subjects
from damcli.commands.evaluate.asked import Asked
from damcli.errors import DataError, MachineError, UsageError

if TYPE_CHECKING:
    from damcli.metrics.calibration import Calibration
    from damcli.metrics.decisions import Decisions
    from damcli.report.evaluation import Evaluation

FITTED = ("temperature", "platt", "isotonic")
DEFAULT_RULE = "youden"
TO_KEEP = "to be kept in the run"
FEW = 30  # of a class, below which a threshold is said to be chosen on few
REFUSED = {
    "model": "a model has those that were chosen on the tune part of its runs before it was exported",
    "folds": "folds have no tune part in common, and thresholds chosen on the scans that they are judged by flatter",
    "scores": "scores have no tune part, and thresholds chosen on the scans that they are judged by flatter",
}


@dataclass(frozen=True)
class Decided:
    """What the tune part decided, in words on which one (`made_on`) and whether the run keeps it (`kept`).

    `fits` holds every way of calibrating, by method and finding, for comparison; empty where there are no tune scans.
    `must` says that the user asked for it to be kept.
    """

    decisions: Decisions
    made_on: str
    kept: str
    fits: Mapping[str, Mapping[str, Calibration]] = field(default_factory=dict)
    must: bool = False

    def document(self) -> dict[str, Any]:
        """Return the part `decisions` of `metrics.json`."""
        made = self.decisions
        return {
            "made_on": self.made_on,
            "tune_scans": made.tune_scans,
            "stored": self.kept,
            "calibration": made.method,
            "points": [rule.name for rule in made.rules],
            "notes": [*made.notes, *_small(made)],
        }


def _small(made: Decisions) -> list[str]:
    """Say which operating points were chosen on few scans of a class."""
    few = {
        finding: min(point.chosen_on.positives, point.chosen_on.negatives)
        for points in made.points.values()
        for finding, point in points.items()
    }
    listed = ", ".join(f"{finding} {number}" for finding, number in few.items() if number < FEW)
    said = f"operating points were chosen on few of the rarer class, and may lie elsewhere: {listed}"
    return [said] if listed else []


def of(subject: Path, on: Path, kind: str, asked: Asked, device: str, tta: int | None) -> Decided | None:
    """Return what was decided for a subject, after deciding it where that was asked for or was not done yet.

    What is new is not written yet: `keep` does, once all else has gone well.

    Raises `UsageError` where there is no tune part to decide on and it was asked for.
    """
    wanted = "--operating" if asked.rules else "--calibrate" if asked.calibrate else None
    if kind != "run":
        if wanted:
            fix = "name a run: damcli evaluate RUN DATASET --operating …; damcli export carries what it decides"
            raise UsageError(REFUSED[kind], where=wanted, fix=fix)
        return _of_model(subject, asked) if kind == "model" else None
    own = next((path for path in (on, _dataset(subject)) if path.is_dir() and subjects.is_own(subject, path)), None)
    if own is None:
        if wanted:
            raise UsageError(
                "the dataset that the run was trained on is not there, and its tune part is needed to decide on",
                where=wanted,
                fix=f"damcli evaluate {subject} DATASET {wanted} …, with that dataset",
            )
        return _kept_only(subject, asked, tta)
    return _of_run(subject, own, asked, device, tta)


def _of_run(run: Path, dataset: Path, asked: Asked, device: str, tta: int | None) -> Decided:
    from damcli.metrics.decisions import decide
    from damcli.metrics.operating import Rule
    from damcli.report.evaluation import Unit
    from damcli.training import checkpoint

    kept = _read(run)
    tune = _tune(run, dataset, device, tta)
    findings, truth = tune.truth.findings, tune.truth.values
    fits = {method: decide(findings, truth, tune.scores, (), method).calibration for method in FITTED}
    reduce = reducing.reductions(asked, findings)
    fits_in = kept is not None and (kept.by, kept.reduce, kept.views) == (asked.by, reduce, tune.views)
    if kept is not None and asked.prevalence and any(rule.kind == "cost" for rule in kept.rules):
        fits_in = fits_in and kept.prevalence == asked.prevalence
    if kept is not None and fits_in and not (asked.rules or asked.calibrate):
        return Decided(kept, f"the tune part of {run}", "kept in the run before", fits)
    rules = asked.rules or (kept.rules if kept and kept.rules else (Rule.parse(DEFAULT_RULE),))
    made = decide(
        findings,
        truth,
        tune.scores,
        rules,
        asked.calibrate or (kept.method if kept else "none"),
        # Of no rule but that of costs it is a part.
        prevalence=asked.prevalence if any(rule.kind == "cost" for rule in rules) else None,
        by=asked.by,
        reduce=reduce,
        units=reducing.reducer(tune, asked),
        views=tune.views,
        weights_sha256=checkpoint.weights_sha256(run),
    )
    if kept is None or asked.rules or asked.calibrate:
        return Decided(made, f"the tune part of {run}", TO_KEEP, fits, must=bool(asked.rules or asked.calibrate))
    other = f"not kept: the run keeps those of {Unit(kept.by).plural} over {kept.views} view(s)"
    return Decided(made, f"the tune part of {run}", other, fits)


def keep(decided: Decided, run: Path) -> Decided:
    """Write into the run what is to be kept, and return it saying so.

    Raises `MachineError` where the run cannot be written and keeping was asked for; else it says that it was not kept.
    """
    from damcli.training import decisions

    if decided.kept != TO_KEEP:
        return decided
    try:
        decisions.write(run, decided.decisions)
    except MachineError as problem:
        if decided.must:
            fix = "copy the run to where it can be kept, and name the copy"
            raise MachineError(problem.what, where=problem.where, fix=fix) from problem
        return replace(decided, kept=f"not kept: {problem.what}")
    return replace(decided, kept="kept in the run now")


def _kept_only(run: Path, asked: Asked, tta: int | None) -> Decided | None:
    """Return what a run decided earlier, for scans of another dataset, where it is of such scores."""
    kept = _read(run)
    if kept is None or not _is_of(kept, asked, tta or 1, run):
        return None
    return Decided(kept, f"the tune part of {run}", "kept in the run before")


def _of_model(path: Path, asked: Asked) -> Decided | None:
    from damcli.bundle.runtime import read_info

    info = read_info(path)
    if info.decisions is None or not _is_of(info.decisions, asked, info.decisions.views, path):
        return None
    # The graph calibrates already.
    made = info.decisions.model_copy(update={"calibration": {}})
    return Decided(made, f"the tune part of the runs in {path}", "carried by the model")


def _is_of(kept: Decisions, asked: Asked, views: int, where: Path) -> bool:
    """Return whether decisions are of the units, their scores and the views that are asked for; say it if not."""
    from damcli.report.evaluation import Unit

    alike = (kept.by, kept.views) == (asked.by, views)
    if alike and kept.reduce == reducing.reductions(asked, tuple(kept.reduce)):
        return True
    reduced = f" ({', '.join(sorted(set(kept.reduce.values())))} of scans)" if kept.reduce else ""
    console.warn(
        f"what {where} decided is left out: it is of {Unit(kept.by).plural}{reduced} over {kept.views} view(s)"
    )
    return False


def _read(run: Path) -> Decisions | None:
    from damcli.training import decisions

    try:
        return decisions.read(run)
    except DataError as problem:
        console.warn(f"{problem.what}: decided anew")
        return None


def _tune(run: Path, dataset: Path, device: str, tta: int | None) -> Evaluation:
    """Return the run's tune part with its scores, those that training ended with where they will do."""
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth
    from damcli.training.checkpoint import read_run

    file = run / "scores-tune.parquet"
    if tta is not None or not file.is_file():
        return subjects.evaluate(run, dataset, "tune", device, tta)
    info, opened = read_run(run), Dataset.open(dataset)
    truth = Truth.of_dataset(opened, "tune", subjects.rows_of(opened, "tune", info.tune_ids)).part(info.findings)
    scores = ScanTable.read(file).scores(truth.ids, info.findings).scores
    return Evaluation("run", run, truth, scores, Selection(True, "these scans chose the epoch"))


def _dataset(run: Path) -> Path:
    from damcli.training.checkpoint import read_run

    return read_run(run).dataset
