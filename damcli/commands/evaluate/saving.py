"""What `damcli evaluate` writes: the scores, the figures as JSON and CSV, the pictures and the page."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from damcli import __version__, files

if TYPE_CHECKING:
    from damcli.report.evaluation import Evaluation
    from damcli.report.judgement import Judgement
    from damcli.report.page import Extras


def save(judgement: Judgement, folder: Path) -> list[str]:
    """Write the scores of every scan, the picture, the page and, last, `metrics.json`, each whole; return their names.

    Scores are calibrated where that was decided: they are those that thresholds are of.
    """
    from damcli.data import scores
    from damcli.report import flat, page, plots

    scored, truth = judgement.scored, judgement.evaluation.truth
    name = f"scores-{truth.split}.parquet" if truth.split else "scores.parquet"
    scores.write(folder / name, scored.truth.ids, scored.truth.findings, scored.scores)
    title = f"{scored.subject.name} on {truth.path.name}" + (f", {truth.split}" if truth.split else "")
    plots.roc({title: judgement.lines()}, folder / "roc.png")
    document = judgement.document()
    page.write(folder / "report.html", document, judgement.curves(), _extras(judgement))
    files.write_text(folder / "metrics.csv", flat.text(document))
    files.write_json(folder / "metrics.json", document)
    return ["metrics.csv", "metrics.json", "report.html", "roc.png", name]


def networks(kind: str, path: Path) -> list[str] | None:
    """Return the SHA-256 of the weights that scored: of a run, or of a model's or folds' members; None if unknown."""
    if kind == "model":
        from damcli.bundle import runtime

        return [member.weights_sha256 for member in runtime.read_info(path).members]
    if kind == "scores":
        return None
    from damcli.training import checkpoint

    runs = _runs(path) if kind == "folds" else [path]
    if not all((run / "checkpoints").is_dir() for run in runs):
        return None
    return [checkpoint.weights_sha256(run) for run in runs]


def _extras(judgement: Judgement) -> Extras:
    from damcli.report.page import Extras

    scored = judgement.scored
    concerns, remarks = None, ()
    if scored.truth.fingerprint is not None:
        from damcli.data.store import read_info

        info = read_info(scored.truth.path)
        concerns, remarks = info.audit, info.notes
    return Extras(
        course=scored.subject / "metrics.jsonl" if scored.kind == "run" else None,
        concerns=concerns,
        remarks=remarks,
        provenance=dict(_provenance(scored)),
        gallery=judgement.gallery,
    )


def _provenance(scored: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield what is needed to make the figures again, and to know that they are those of these files."""
    yield "command", shlex.join(["damcli", *sys.argv[1:]])
    yield "damcli", __version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "libraries", ", ".join(_versions("numpy", "torch", "onnxruntime-gpu", "onnxruntime"))
    yield from {"run": _run, "model": _model, "folds": _folds, "scores": _table}[scored.kind](scored.subject)
    truth = scored.truth
    if truth.fingerprint is None:
        yield "labels", f"{truth.path}, SHA-256 {files.sha256(truth.path)}"
        return
    from damcli.data.store import read_info

    info = read_info(truth.path)
    yield "dataset", f"{truth.path}, fingerprint {info.fingerprint}"
    yield "prepared", f"source {info.source}, seed {info.seed}, {info.contract}"
    yield "refused scans", str(info.rejected)
    for finding, policy in info.policies.items():
        yield f"labels of {finding}", f"uncertain: {policy.uncertain}, blank: {policy.blank}"


def _run(path: Path) -> Iterator[tuple[str, str]]:
    from damcli.training import checkpoint

    info = checkpoint.read_run(path)
    yield "run", str(path)
    yield "recipe", f"{info.facts.recipe_name}: {info.loss}, {info.recipe.backbone}, seed {info.recipe.seed}"
    yield "weights", f"SHA-256 {checkpoint.weights_sha256(path)}"
    yield "trained from", "random weights" if not info.facts.weights_sha256 else f"SHA-256 {info.facts.weights_sha256}"


def _folds(path: Path) -> Iterator[tuple[str, str]]:
    from damcli.training import checkpoint

    yield "folds", str(path)
    for run in _runs(path):
        # The scores out of fold may have outlived a run that was removed.
        weights = f"SHA-256 {checkpoint.weights_sha256(run)}" if (run / "checkpoints").is_dir() else "no longer there"
        yield f"weights of {run.name}", weights


def _runs(path: Path) -> list[Path]:
    from damcli.training import group

    found = group.read(path)
    return [found.run(member) for member in found.group.members if not member.helper]


def _model(path: Path) -> Iterator[tuple[str, str]]:
    from damcli.bundle import runtime

    info = runtime.read_info(path)
    yield "model", f"{path}, SHA-256 {files.sha256(path)}"
    yield "exported", f"{info.created} by damcli {info.damcli}"
    for member in info.members:
        yield (
            f"member {member.run}",
            f"{member.recipe}: {member.loss}, {member.backbone}, seed {member.seed}, SHA-256 {member.weights_sha256}",
        )


def _table(path: Path) -> Iterator[tuple[str, str]]:
    yield "scores", f"{path}, SHA-256 {files.sha256(path)}"


def _versions(*packages: str) -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    for name in packages:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
