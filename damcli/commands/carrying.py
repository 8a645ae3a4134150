"""What `damcli export` puts into a model beside its networks: what its runs decided, and what their scans are like.

Both come from the tune part. For one run they are the run's own. Scores of several networks, or of other views, are
other scores: for them both are made anew on the scans that are in the tune part of every run, and that none has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from damcli import console
from damcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.bundle.build import Member
    from damcli.data.store import Dataset
    from damcli.data.units import Reduce
    from damcli.metrics.decisions import Decisions
    from damcli.metrics.drift import Reference
    from damcli.training.folder import RunInfo

    Rows = npt.NDArray[np.int64]

REFERENCE_SCANS = 500
UNDECIDED = "no operating points, no calibration: damcli evaluate RUN --operating RULE chooses them, then export again"


@dataclass(frozen=True)
class Carried:
    """What a model carries; `notes` say where it is from, or why there is none."""

    decisions: Decisions | None
    reference: Reference | None
    notes: tuple[str, ...]


def of(members: Sequence[Member], runs: Sequence[RunInfo], dataset: Dataset, views: int = 1) -> Carried:
    """Return what a model of these networks carries, `runs` being those they are from and `dataset` scans like theirs.

    `views` is how many of a scan each of them scores. Scores tune scans anew where it must, and shows how far it is.
    Raises `UsageError` where runs were decided otherwise than each other, `DataError` for damaged decisions.
    """
    from damcli.training import decisions

    stored = [found for run in runs if (found := decisions.read(run.path))]
    references = [kept for run in runs if (kept := decisions.read_reference(run.path))]
    asked = _asked(stored)
    # Of one network that scores as it did then, what was made stays.
    alone = len(runs) == 1
    made = next((found for found in stored if alone and found.views == views), None)
    reference = next((kept for kept in references if alone and kept.views == views), None)
    notes = [] if asked else [UNDECIDED]
    deciding = asked is not None and made is None
    if deciding or reference is None:
        rows, why = _unseen(runs, dataset)
        if not len(rows):
            made = _undecided(asked, views, why) if asked and deciding else made
            notes += [] if reference else [f"nothing to tell drift by: {why}"]
        else:
            rows = rows if deciding else rows[_spread(len(rows), REFERENCE_SCANS)]
            findings = list(dict.fromkeys(finding for member in members for finding in member.findings))
            scores = _scores(members, runs, findings, dataset, rows)
            if asked and deciding:
                made = _decided(asked, findings, scores, dataset, rows, views)
                whose = "the run" if alone else "every run"
                notes.append(f"decided anew, on {len(rows)} scans that are in the tune part of {whose}")
            reference = reference or decisions.refer(
                findings, scores, dataset, rows, scans=REFERENCE_SCANS, views=views
            )
    if made:
        made = made.model_copy(update={"weights_sha256": None})
        notes += _said(made)
    if reference:
        reference = reference.calibrated(made.calibration if made else {})
        reference = reference.model_copy(update={"weights_sha256": None})
    return Carried(made, reference, tuple(notes))


def _asked(stored: Sequence[Decisions]) -> Decisions | None:
    """Return the decisions of the first run, with the rules of all; None of none.

    Raises `UsageError` where the runs differ in anything but rules: which is meant, nobody can tell.
    """
    if not stored:
        return None
    first, reduce = stored[0], dict(stored[0].reduce)
    for other in stored[1:]:
        shared = {finding: reduce.get(finding, rule) for finding, rule in other.reduce.items()}
        for what, ours, theirs in (
            ("calibrated", first.method, other.method),
            ("judged by units", first.by, other.by),
            ("reduced to these", shared, other.reduce),
            ("weighed by prevalence", first.prevalence, other.prevalence),
        ):
            if ours != theirs:
                raise UsageError(
                    f"the runs' scores were {what} differently: {ours} and {theirs}",
                    fix="decide alike for all of them (damcli evaluate RUN), or export them one by one",
                )
        reduce |= other.reduce
    rules = tuple(dict.fromkeys(rule for found in stored for rule in found.rules))
    return first.model_copy(update={"rules": rules, "reduce": reduce})


def _unseen(runs: Sequence[RunInfo], dataset: Dataset) -> tuple[Rows, str]:
    """Return the rows of the scans that are in the tune part of every run; where there are none, why."""
    import numpy as np

    nothing = np.empty(0, np.int64)
    if len({run.facts.fingerprint for run in runs}) > 1:
        return nothing, "the runs were trained on different datasets, and have no tune part together"
    if dataset.info.fingerprint != runs[0].facts.fingerprint:
        return nothing, "the dataset given is not the one trained on, so the tune part is not at hand"
    shared = set(runs[0].tune_ids).intersection(*(run.tune_ids for run in runs[1:]))
    rows = np.flatnonzero(dataset.manifest["id"].is_in(list(shared)).to_numpy()).astype(np.int64)
    return rows, "" if len(rows) else "no scan is in the tune part of every run, as with folds or other seeds"


def _scores(
    members: Sequence[Member], runs: Sequence[RunInfo], findings: Sequence[str], dataset: Dataset, rows: Rows
) -> npt.NDArray[Any]:
    """Return the scores that the finished model gives before calibration, float64 (n,K), columns as `findings`."""
    import numpy as np
    import torch

    from damcli.training import launch, metadata, scoring

    sums, voters = np.zeros((len(rows), len(findings))), np.zeros(len(findings))
    place = torch.device(launch.accelerator("auto"))
    console.note(f"scoring {len(rows)} scans of the tune part with {len(members)} network(s)")

    def scored() -> Iterator[tuple[Member, RunInfo, Rows, npt.NDArray[np.float32]]]:
        for member, run in zip(members, runs, strict=True):
            network = member.network.to(place)
            for taken, scores in scoring.score(network, dataset, rows, device=place, views=member.views):
                yield member, run, taken, scores
            member.network.to("cpu")

    def weights(member: Member) -> npt.NDArray[np.float64]:
        return np.array([member.weights.get(finding, 1.0) for finding in member.findings])

    where = {row: number for number, row in enumerate(rows.tolist())}
    mixtures = {run.path: metadata.load(run.path, run.recipe) for run in runs}
    total = len(members) * scoring.batches_of(len(rows))
    for member, run, taken, scores in console.track(scored(), total, "tune part", unit="batches"):
        mixture = mixtures[run.path]
        mixed = mixture.mixed(scores, dataset, taken) if mixture else scores
        columns = [findings.index(finding) for finding in member.findings]
        sums[np.ix_([where[row] for row in taken.tolist()], columns)] += mixed * weights(member)
    for member in members:
        voters[[findings.index(finding) for finding in member.findings]] += weights(member)
    return sums / voters


def _decided(
    asked: Decisions, findings: Sequence[str], scores: npt.NDArray[Any], dataset: Dataset, rows: Rows, views: int
) -> Decisions:
    """Decide as was `asked` on other scores."""
    import numpy as np

    from damcli.data.units import Units
    from damcli.metrics.decisions import decide
    from damcli.report.evaluation import Truth

    truth = Truth.of_dataset(dataset, "tune", rows).part(findings)
    units = Units.of(asked.by, truth.patients, truth.studies, truth.ids, dataset.path)
    labels = units.labels(truth.raw).labels
    targets = np.where(labels == -1, np.nan, labels)
    # A finding of a run that nothing was decided for has the rule that --reduce leaves to others.
    reduce = {} if asked.by == "scan" else {finding: asked.reduce.get(finding, "mean") for finding in findings}

    def reduced(calibrated: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return targets, units.scores(calibrated, cast("list[Reduce]", [*reduce.values()])).scores

    return decide(
        findings,
        truth.values,
        scores,
        asked.rules,
        asked.method,
        prevalence=asked.prevalence,
        by=asked.by,
        reduce=reduce,
        units=None if asked.by == "scan" else reduced,
        views=views,
    )


def _undecided(asked: Decisions, views: int, why: str) -> Decisions:
    """Return decisions without any, that say why."""
    nothing = {"tune_scans": 0, "views": views, "calibration": {}, "points": {}, "notes": (why,)}
    return asked.model_copy(update=nothing)


def _said(made: Decisions) -> Iterator[str]:
    """Yield, in words, what a model carries and what it does not."""
    points = [f"{name} for {', '.join(by_finding)}" for name, by_finding in made.points.items() if by_finding]
    if points:
        yield f"operating points: {'; '.join(points)}"
    elif made.rules:
        yield "no operating points"
    if made.calibration:
        yield f"calibration: {made.method} for {', '.join(made.calibration)}"
    elif made.method != "none":
        yield "no calibration"
    yield from made.notes


def _spread(total: int, number: int) -> npt.NDArray[np.int64]:
    """Return at most `number` of the numbers below `total`, evenly."""
    import numpy as np

    return np.unique(np.linspace(0, total - 1, number).astype(np.int64))
