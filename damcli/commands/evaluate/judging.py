"""From a subject to its figures: scores, calibration, units, intervals, and whatever else was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.commands.evaluate import deciding, further, gallery, reducing, saving, subjects
from damcli.commands.evaluate.asked import Asked
from damcli.errors import GateError, UsageError

if TYPE_CHECKING:
    from damcli.metrics.calibration import Calibration
    from damcli.report.evaluation import Evaluation
    from damcli.report.judgement import Judgement
    from damcli.report.method import Method

# With fewer numbers to draw than this the bootstrap takes a second, and no progress is shown.
WORTH_SHOWING = 200_000_000
NOTHING = Asked()


def judge(
    subject: Path,
    on: Path,
    asked: Asked = NOTHING,
    split: str | None = None,
    device: str = "auto",
    tta: int | None = None,
) -> Judgement:
    """Score what is to be evaluated, and return its figures as `asked` wants them.

    The other arguments are those of `subjects.evaluate`, which says what it raises; besides, `UsageError` and
    `DataError` for what was asked and cannot be had. What the tune part decided is written into the run, last of all.

    The ranking is judged by the scores as they are; calibration bears on operating points and on what is said of
    probabilities. So a run's AUROC does not depend on what it keeps.
    """
    from damcli.report import comparison
    from damcli.report import judgement as figures

    kind = subjects.check(subject, on, split, tta)
    if asked.gallery:
        gallery.check(kind, on)
    scored = subjects.evaluate(subject, on, split, device, tta)
    asked = asked.named(scored.truth.findings)
    other = asked.against and _other(asked.against, on, scored, device, tta)
    decided = deciding.of(subject, on, kind, asked, device, tta)
    evaluation = reducing.at(scored, asked)
    method = figures.Method.of(evaluation, asked.cluster, asked.draws, asked.seed)
    judgement = figures.judge(evaluation, method, list(_tracked(figures.draws(evaluation, method), evaluation, method)))
    ways = {
        name: reducing.at(_calibrated(scored, fits), asked) for name, fits in (decided.fits if decided else {}).items()
    }
    if decided:
        scored = _calibrated(scored, decided.decisions.calibration)
    # Thresholds are those of a model's output, which is calibrated and float32.
    as_output = reducing.at(replace(scored, scores=scored.scores.astype("float32")), asked)
    calibration, reliability, said = further.calibration(evaluation, ways, method, decided)
    parts: dict[str, Any] = {
        "networks": saving.networks(kind, subject),
        "operating": decided and further.operating(as_output, method, asked, decided.decisions),
        "calibration": calibration,
        "comparison": other and comparison.section(evaluation, reducing.at(other, asked), method),
        "readers": asked.readers and further.readers(evaluation, method, asked),
        "subgroups": [further.subgroup(evaluation, method, column) for column in asked.subgroups],
    }
    pictures, of_pictures = gallery.gallery(scored, device) if asked.gallery else ((), ())
    decided = decided and deciding.keep(decided, subject)
    parts["decisions"] = decided and decided.document()
    for part in (parts["decisions"], parts["comparison"], parts["readers"], *parts["subgroups"]):
        said += part["notes"] if part else ()
    if decided and decided.decisions.calibration:
        said.append(
            f"thresholds are of the scores after {decided.decisions.method} calibration, all curves of those before"
        )
    if asked.prevalence and not parts["operating"]:
        said.append("--prevalence has no effect: there are no operating points")
    if decided and decided.fits and scored.truth.split in ("tune", "train"):
        said.append(
            "operating points and calibration were decided on some of these scans, so their figures flatter too"
        )
    sections = {name: part for name, part in parts.items() if part} | {"notes": [*said, *of_pictures]}
    judgement = replace(judgement, scored=scored, sections=sections, reliability=reliability, gallery=pictures)
    gates = [gate.result(judgement.document()) for gate in asked.gates]
    return replace(judgement, sections={**judgement.sections, "gates": gates})


def stop_at_gates(document: Mapping[str, Any], asked: Asked, where: str) -> None:
    """Raise `GateError` where a condition of `--require` is not met, `UsageError` where it is of no figure.

    `document` is the content of `metrics.json` or `merged.json`, with the `gates` in it.
    """
    from damcli.report import gates

    for gate in asked.gates:
        gate.value(document)
    results = document["gates"]
    missed = gates.failed(results)
    if missed:
        raise GateError(f"{len(missed)} of {len(results)} conditions are not met: {'; '.join(missed)}", where=where)


def _calibrated(scored: Evaluation, calibration: Mapping[str, Calibration]) -> Evaluation:
    from damcli.metrics.calibration import calibrated

    return replace(scored, scores=calibrated(calibration, scored.truth.findings, scored.scores))


def _other(path: Path, on: Path, scored: Evaluation, device: str, tta: int | None) -> Evaluation:
    """Score what is compared with, on the same scans; a run over as many views."""
    from damcli.data.scores import ScanTable

    kind, of_folds = subjects.kind_of(path), scored.kind == "folds"
    if of_folds and kind == "scores":
        return subjects.joined(ScanTable.read(path).named(scored.truth.findings), scored.truth)
    if of_folds != (kind == "folds"):
        raise UsageError(
            "scores out of fold can be compared with other ones out of fold, or with a table of scores of these scans",
            where=path,
            fix="damcli evaluate FOLDS --against FOLDS, or damcli evaluate FOLDS --against SCORES.csv",
        )
    split = None if of_folds else scored.truth.split
    return subjects.evaluate(path, on, split, device, tta if kind == "run" else None)


def _tracked(parts: Iterable[Any], evaluation: Evaluation, method: Method) -> Iterable[Any]:
    """Show how far the bootstrap is, where it takes long."""
    if evaluation.truth.values.size * method.draws < WORTH_SHOWING:
        return parts
    return console.track((draw[None] for part in parts for draw in part), method.draws, "bootstrap", unit="draws")
