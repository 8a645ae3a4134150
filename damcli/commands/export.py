"""`damcli export`: package one run, or several as an ensemble, as one ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, project
from damcli.commands import carrying, options, views
from damcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from damcli.bundle.build import Member
    from damcli.data.store import Dataset
    from damcli.training.folder import RunInfo

PARITY_SCANS = 64
# The scans that no run was trained on come first.
PARITY_SPLITS = ("valid", "test", "train")


def load_member(run: Path, tta: int | None = None) -> tuple[Member, RunInfo]:
    """Return the best network of a run as a member of a model, with `tta` views of each scan, and the run."""
    from damcli.bundle.build import Member, Mixed
    from damcli.training import checkpoint, metadata, scoring

    network, info = checkpoint.load_network(run)
    provenance = {
        "run": run.resolve().name,
        "recipe": info.facts.recipe_name,
        "loss": info.loss,
        "seed": info.recipe.seed,
        "dataset": info.facts.fingerprint,
        "fold": info.facts.fold,
        "weights_sha256": checkpoint.weights_sha256(run),
        "started_from": info.facts.weights_sha256,
    }
    maps = None if tta is None else scoring.views(info.recipe, tta, run)
    own = metadata.load(run, info.recipe)
    mixed = own and Mixed(own.network, own.encoding, own.weight)
    return Member(network, info.findings, info.contract, provenance, views=maps, metadata=mixed), info


def parity_scans(dataset: Dataset, findings: Sequence[str]) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """Return up to 64 scans spread evenly over a split, uint8 (N, S, S[, 3]), their truth (N, findings), and what the
    manifest has of them."""
    import numpy as np

    [split, *_] = [name for name in (*PARITY_SPLITS, *dataset.info.splits) if dataset.info.splits.get(name)]
    rows = dataset.rows(split)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, PARITY_SCANS).astype(int))]
    known = dict(zip(dataset.info.findings, dataset.truth(rows).T, strict=True))
    unknown = np.full(len(rows), np.nan)
    truth = np.column_stack([known.get(finding, unknown) for finding in findings])
    return dataset.read(rows), truth, dataset.manifest[rows]


def _dataset(given: Path | None, members: Sequence[Member], runs: Sequence[RunInfo]) -> Dataset:
    """Open the dataset given, else that of the member that the model takes its size from."""
    from damcli.bundle.build import common_contract
    from damcli.data.store import Dataset

    contract = common_contract([member.contract for member in members])
    path = given or next(run.dataset for run in runs if run.contract == contract)
    if given is None and not (path / "dataset.json").is_file():
        raise UsageError(
            "the run's dataset is no longer there, and real scans are needed to compare with PyTorch",
            where=path,
            fix="say where it is: --dataset DATASET",
        )
    dataset = Dataset.open(path)
    if dataset.info.contract != contract:
        raise UsageError(
            f"this dataset was decoded by another contract ({dataset.info.contract}) than the model's ({contract})",
            where=path,
            fix="give the dataset that the run was trained on, or one prepared in the same way",
        )
    return dataset


def _output(output: Path | None, runs: Sequence[Path], infos: Sequence[RunInfo]) -> Path:
    if output is None:
        name = runs[0].resolve().name if len(runs) == 1 else f"{infos[0].facts.recipe_name}-{len(runs)}-runs"
        return Path("models", f"{name}.onnx")
    if output.suffix != ".onnx":
        raise UsageError("a model's name ends in .onnx", where=output, fix=f"write -o {output}.onnx")
    return output


def command(
    runs: Annotated[list[Path] | None, typer.Argument(help="[default: the newest in runs/]", metavar="RUN")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="[default: models/<run>.onnx]")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Scans to compare with PyTorch on. [default: the run's dataset]")
    ] = None,
    tta: views.Number = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Package a run, or several as an ensemble, as one ONNX file with the preprocessing inside.

    Of folds and ensembles trained together the folder is enough.

    The scores are compared with PyTorch's on real scans first; if one differs by more than 1e-4 nothing is written
    (exit code 6). A card for people, NAME.onnx.md, is written beside the model.

    What damcli evaluate decided on the run's tune part is put into the file: the calibration into the scores, the
    thresholds beside them. For several runs, and with other views, it is decided anew on the scans that none has seen.

    With --tta N the views are put into the file, so that damcli predict and other programs score them all.

    Example: damcli export runs/seed0 runs/seed1 -o models/cxr.onnx
    """
    options.apply(quiet, verbose, json)
    named = runs or [project.newest_run()]

    from damcli.bundle import build
    from damcli.training import group

    # Of runs that were trained together, those that are the result.
    taken = [member for run in named for member in (group.results(run) if group.are_in(run) else [run])]
    twice = [run for number, run in enumerate(taken) if run.resolve() in {other.resolve() for other in taken[:number]}]
    if twice:
        raise UsageError("this run is named twice, and would weigh double", where=twice[0], fix="name each run once")

    loaded = [load_member(run, tta) for run in taken]
    console.note(f"runs: {', '.join(map(str, taken))}")
    members, infos = [member for member, _ in loaded], [info for _, info in loaded]
    path = _output(output, named, infos)
    findings = build.all_findings(members)
    scans = _dataset(dataset, members, infos)
    images, truth, table = parity_scans(scans, findings)
    console.note(f"comparing with PyTorch on {len(images)} scans of {scans.path}")
    if dry_run:
        console.note(f"would write {path} with {len(members)} network(s) for {', '.join(findings)}")
        return
    carried = carrying.of(members, infos, scans, tta or 1)
    parity = build.export(members, path, images, truth, table, carried.decisions, carried.reference)
    shift = "n/a" if parity.auroc_difference is None else f"{parity.auroc_difference:.2g}"
    console.note(
        f"parity: scores differ from PyTorch's by at most {parity.max_difference:.2g}"
        f" (allowed: {parity.tolerance:g}), AUROC by at most {shift}"
    )
    for remark in (*views.remark([tta]), *carried.notes):
        console.note(remark)
    console.note(f"{len(members)} network(s), {path.stat().st_size / 1e6:.1f} MB, findings: {', '.join(findings)}")
    console.result(str(path))
    if json:
        document = {"model": str(path), "card": f"{path}.md", "findings": findings, "parity": parity.model_dump()}
        points = {} if carried.decisions is None else carried.decisions.model_dump(mode="json")["points"]
        console.emit_json(document | {"points": points, "notes": list(carried.notes)})
    console.next_step(f"damcli predict SCANS --model {path} --export csv")
