"""`damcli export`: package one run, or several as an ensemble, as one ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from damcli import console, project
from damcli.commands import carrying, options, views
from damcli.commands.export.members import load_member, weights
from damcli.commands.export.scans import NUMBER, NUMBER_JUDGED, dataset_of, parity_scans
from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.bundle.schema import ModelInfo, Precision
    from damcli.training.folder import RunInfo

__all__ = ["command", "load_member", "parity_scans"]


def _output(output: Path | None, runs: Sequence[Path], infos: Sequence[RunInfo]) -> Path:
    if output is None:
        name = runs[0].resolve().name if len(runs) == 1 else f"{infos[0].facts.recipe_name}-{len(runs)}-runs"
        return Path("models", f"{name}.onnx")
    if output.suffix != ".onnx":
        raise UsageError("a model's name ends in .onnx", where=output, fix=f"write -o {output}.onnx")
    return output


def _precision(precision: str, force: bool) -> Precision:
    if precision == "int8":
        raise UsageError(
            "int8 is not offered: measured on a CPU it was no faster than fp32 (static) or half as fast (dynamic)",
            where="--precision int8",
            fix="choose fp16 for a GPU; on a CPU see damcli predict --device openvino",
        )
    if precision not in ("fp32", "fp16"):
        raise UsageError(f"there is no precision {precision!r}", where="--precision", fix="choose fp32 or fp16")
    if force and precision == "fp32":
        raise UsageError("fp32 has to agree with PyTorch, and is never forced", where="--force", fix="leave it out")
    return cast("Precision", precision)


def _check_combine(combine: str) -> None:
    if combine == "rank-mean":
        raise UsageError(
            "a rank is a scan's place among others, so that its score would change with the scans predicted with it",
            where="--combine rank-mean",
            fix="take the mean, with --weights if one run is better than another",
        )
    if combine != "mean":
        raise UsageError(f"scores cannot be combined by {combine!r}", where="--combine", fix="leave it at mean")


def _said(info: ModelInfo) -> Iterator[str]:
    """Yield, in words, how a model compares with PyTorch, and OpenVINO with it."""
    parity = info.parity
    allowed = "" if parity.tolerance is None else f" (allowed: {parity.tolerance:g})"
    yield (
        f"parity: scores differ from PyTorch's by at most {parity.max_difference:.2g}{allowed},"
        f" AUROC by at most {_figure(parity.auroc_difference)}"
    )
    if found := parity.openvino:
        yield (
            f"OpenVINO {found.version} in {found.precision}: scores differ from ONNX Runtime's by at most"
            f" {found.max_difference:.2g}, AUROC by at most {_figure(found.auroc_difference)}"
        )
    else:
        yield f"OpenVINO was not measured ({parity.openvino_note}): --device openvino will refuse this model"


def _figure(shift: float | None) -> str:
    return "n/a (no finding has both classes)" if shift is None else f"{shift:.2g}"


def command(
    runs: Annotated[list[Path] | None, typer.Argument(help="[default: the newest in runs/]", metavar="RUN")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="[default: models/<run>.onnx]")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Scans to compare with PyTorch on. [default: the run's dataset]")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="[FINDING=]W,W,…", help="What each run weighs in the mean. Repeatable."),
    ] = None,
    combine: Annotated[str, typer.Option(help="How runs become one: mean.")] = "mean",
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for GPUs.")] = "fp32",
    force: Annotated[bool, typer.Option("--force", help="Write fp16 though an AUROC moved.")] = False,
    cam: Annotated[bool, typer.Option("--cam", help="Add class activation maps (predict --heatmaps).")] = False,
    tta: views.Number = None,
    license: Annotated[str, typer.Option("--license", metavar="TEXT", help="Terms of use, for the card.")] = "",
    intended_use: Annotated[str, typer.Option(metavar="TEXT", help="What it is for, for the card.")] = "",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Package a run, or several as an ensemble, as one ONNX file with the preprocessing inside.

    Of folds and ensembles trained together the folder is enough.

    The scores are compared with PyTorch's on real scans first; if one differs by more than 1e-4 (in fp16: an AUROC by
    more than 0.001) nothing is written (exit code 6). A card for people, NAME.onnx.md, is written beside the model.

    What damcli evaluate decided on the run's tune part is put into the file: the calibration into the scores, the
    thresholds beside them. For several runs, and with other views, it is decided anew on the scans that none has seen.

    Example: damcli export runs/seed0 runs/seed1 -o models/cxr.onnx
    """
    options.apply(quiet, verbose, json)
    _check_combine(combine)
    half = _precision(precision, force)
    named = runs or [project.newest_run()]

    from damcli.bundle import build, openvino
    from damcli.training import group

    # Of runs that were trained together, those that are the result.
    taken = [member for run in named for member in (group.results(run) if group.are_in(run) else [run])]
    twice = [run for number, run in enumerate(taken) if run.resolve() in {other.resolve() for other in taken[:number]}]
    if twice:
        raise UsageError("this run is named twice, and would weigh double", where=twice[0], fix="name each run once")

    loaded = [load_member(run, tta) for run in taken]
    console.note(f"runs: {', '.join(map(str, taken))}")
    members, infos = [member for member, _ in loaded], [info for _, info in loaded]
    shares = weights(weight or [], [str(run) for run in taken], [member.findings for member in members])
    members = [replace(member, weights=share) for member, share in zip(members, shares, strict=True)]
    path = _output(output, named, infos)
    build.check(members, cam)
    findings = build.all_findings(members)
    scans = dataset_of(dataset, members, infos)
    number = NUMBER_JUDGED if half == "fp16" or openvino.installed() else NUMBER
    images, truth, table = parity_scans(scans, findings, number)
    console.note(f"comparing with PyTorch on {len(images)} scans of {scans.path}")
    if dry_run:
        console.note(f"would write {path} with {len(members)} network(s) for {', '.join(findings)}")
        return
    carried = carrying.of(members, infos, scans, tta or 1)
    info = build.export(
        members,
        path,
        images,
        truth,
        table,
        carried.decisions,
        carried.reference,
        precision=half,
        maps=cam,
        force=force,
        licence=license,
        intended_use=intended_use,
    )
    if info.parity.forced:
        console.warn(f"forced: {info.parity.forced}")
    for remark in (*_said(info), *views.remark([tta]), *carried.notes):
        console.note(remark)
    size = path.stat().st_size + (info.external.bytes if info.external else 0)
    console.note(f"{len(members)} network(s), {size / 1e6:.1f} MB, findings: {', '.join(findings)}")
    if info.external:
        console.note(f"its weights are in {path.with_name(info.external.file)}, which has to stay beside it")
    console.result(str(path))
    if json:
        document = {"model": str(path), "card": f"{path}.md", "findings": findings, "parity": info.parity.model_dump()}
        document |= {"external": info.external and str(path.with_name(info.external.file))}
        points = {} if carried.decisions is None else carried.decisions.model_dump(mode="json")["points"]
        console.emit_json(document | {"points": points, "notes": list(carried.notes)})
    console.next_step(f"damcli predict SCANS --model {path} --export csv")
