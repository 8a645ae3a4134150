"""From a subject to its figures: scores, calibration, units, intervals, and whatever else was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.commands.evaluate import deciding, further, gallery, reducing, subjects
from damcli.commands.evaluate.asked import Asked
from damcli.errors import GateError, UsageError

if TYPE_CHECKING:
    from damcli.metrics.calibration import Calibration
    from damcli.report.evaluation import Evaluation
    from damcli.report.judgement import Judgement
    from damcli.report.page import GalleryItem

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
    `DataError` for what was asked and cannot be had. Writes nothing but what the tune part decided, into the run.
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
    raw = evaluation = reducing.at(scored, asked)
    ways = {
        name: reducing.at(_calibrated(scored, fits), asked) for name, fits in (decided.fits if decided else {}).items()
    }
    if decided and decided.decisions.calibration:
        scored = _calibrated(scored, decided.decisions.calibration)
        evaluation = reducing.at(scored, asked)
    # Thresholds are those of a model's output, which is float32; the ranking is judged in float64.
    as_output = reducing.at(replace(scored, scores=scored.scores.astype("float32")), asked)
    method = figures.Method.of(evaluation, asked.cluster, asked.draws, asked.seed)
    drawn = _tracked(figures.draws(evaluation, method), evaluation, method.draws)
    judgement = replace(figures.judge(evaluation, method, list(drawn)), scored=scored)
    calibration, reliability, said = further.calibration(raw, ways, method, decided)
    parts: dict[str, Any] = {
        "decisions": decided and decided.document(),
        "operating": decided and further.operating(as_output, method, asked, decided.decisions),
        "calibration": calibration,
        # Both as scored: a calibration of one alone would move units and make ties, which is no difference of networks.
        "comparison": other and comparison.section(raw, reducing.at(other, asked), method),
        "readers": asked.readers and further.readers(evaluation, method, asked),
        "subgroups": [further.subgroup(evaluation, method, column) for column in asked.subgroups],
    }
    for part in (parts["decisions"], parts["comparison"], parts["readers"], *parts["subgroups"]):
        said += part["notes"] if part else ()
    if other and evaluation is not raw:
        said.append("comparison: of the scores before calibration")
    if decided and decided.decisions.calibration and decided.decisions.method == "isotonic":
        said.append(
            f"all figures are of isotonic scores ({decided.kept}), whose ties change AUROCs and may narrow intervals:"
            " --calibrate none takes them off"
        )
    if asked.prevalence and not parts["operating"]:
        said.append("--prevalence has no effect: there are no operating points")
    if decided and decided.fits and scored.truth.split in ("tune", "train"):
        said.append(
            "operating points and calibration were decided on some of these scans, so their figures flatter too"
        )
    pictures: Sequence[GalleryItem] = ()
    if asked.gallery:
        pictures, of_pictures = gallery.gallery(scored, device)
        said += of_pictures
    sections = {name: part for name, part in parts.items() if part} | {"notes": said}
    judgement = replace(judgement, sections=sections, reliability=reliability, gallery=pictures)
    gates = [gate.result(judgement.document()) for gate in asked.gates]
    return replace(judgement, sections={**judgement.sections, "gates": gates})


def stop_at_gates(judgement: Judgement, asked: Asked) -> None:
    """Raise `GateError` where a condition of `--require` is not met, `UsageError` where it is of no figure."""
    from damcli.report import gates

    document = judgement.document()
    for gate in asked.gates:
        gate.value(document)
    results = judgement.sections.get("gates", [])
    missed = gates.failed(results)
    if missed:
        raise GateError(
            f"{len(missed)} of {len(results)} conditions are not met: {'; '.join(missed)}",
            where=judgement.evaluation.title,
        )


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


def _tracked(parts: Iterable[Any], evaluation: Evaluation, draws: int) -> Iterable[Any]:
    """Show how far the bootstrap is, where it takes long."""
    if evaluation.truth.values.size * draws < WORTH_SHOWING:
        return parts
    return console.track((draw[None] for part in parts for draw in part), draws, "bootstrap", unit="draws")
