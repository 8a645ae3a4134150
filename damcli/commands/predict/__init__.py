"""`damcli predict`: score scans with a packaged model, one row per input."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from damcli import __version__, console, files, project
from damcli.commands import options
from damcli.commands.predict import about, asked, running
from damcli.commands.predict.tally import Tally
from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.bundle.runtime import Model

# More calls than this at a time would only take memory.
MAX_STREAMS = 8
# On a GPU: while one batch is computed, the next one is copied.
GPU_STREAMS = 2


def command(
    scans: Annotated[
        list[str],
        typer.Argument(help="Folders, files, zip, tar, 'globs', a CSV of paths; -: from stdin.", metavar="PATHS"),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", help="NAME.onnx [default: $DAMCLI_MODEL, or the newest in models/]")
    ] = None,
    export: Annotated[str | None, typer.Option("--export", help="csv, json, jsonl or parquet. [default: csv]")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="[default: scores.csv; -: stdout]")] = None,
    by: Annotated[str, typer.Option("--by", help="A row for each scan, study or patient.")] = "scan",
    reduce: Annotated[str | None, typer.Option(help="mean, max or first; by finding: max,Edema=mean.")] = None,
    threshold: Annotated[str | None, typer.Option(metavar="NAME", help="An operating point of the model.")] = None,
    heatmaps: Annotated[Path | None, typer.Option(metavar="DIR", help="PNGs, of a model with maps (--cam).")] = None,
    metadata: Annotated[Path | None, typer.Option(help="CSV: `path`, what the model takes, patient, study.")] = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Show ids as they are.")] = False,
    hide_paths: Annotated[bool, typer.Option("--hide-paths", help="Pseudonyms in place of paths.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode. [default: all cores]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Scans at a time. [default: found]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that score. [default: all cores]")] = None,
    device: options.ScoringDevice = "auto",
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="Stop (exit 5) if there is no GPU.")] = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Score scans with a model: one row per input, with its scores or why there are none.

    DICOM, JPEG, PNG and TIFF are told apart by content. What is no image is "skipped"; images that cannot be scored
    are "failed", and the exit code is then 4. A killed run goes on where it was, if started again.

    --by study makes one row of a study's scans (ids of --metadata, the DICOM header, or CheXpert's folders) and writes
    the scans' own table beside it. Ids are pseudonyms, made with a secret of yours.

    Example: damcli predict scans/ --model models/cxr.onnx --export csv -o scores.csv
    """
    options.apply(quiet, verbose, json)
    target = asked.target(output, export, by)
    if target.path is None and json:
        raise UsageError("--json and -o - both want stdout", fix="leave out one of them")
    if require_gpu and device in ("cpu", "openvino"):
        raise UsageError(f"--require-gpu and --device {device} contradict each other", fix="leave out one of them")
    if metadata is not None and metadata.resolve() in {path.resolve() for path in target.own}:
        raise UsageError("the scores would take the place of the metadata", where=metadata, fix="name another with -o")
    _check_heatmaps(heatmaps, scans)

    from damcli.bundle import journal
    from damcli.bundle.batching import best_batch
    from damcli.bundle.pipeline import Pipeline
    from damcli.bundle.runtime import DEVICES
    from damcli.data import inputs
    from damcli.data.workers import cores

    options.check_device(device, DEVICES)
    given = inputs.given(scans)
    total = given.total(*target.own)
    if total == 0:
        raise UsageError("there is no file to score", where=", ".join(scans[:5]), fix="give a folder with scans")
    path = model or Path(os.environ.get("DAMCLI_MODEL") or project.newest_model())
    console.note(f"model: {path}")
    opened, streams = _opened(path, device, require_gpu, threads)
    want = asked.of(opened.info, by, reduce, threshold, keep_ids)
    if heatmaps and opened.info.cams is None:
        fix = "export it with --cam"
        raise UsageError("this model gives no class activation maps", where=path, fix=fix)
    columns = want.columns(opened.info.findings)
    known = about.read(opened.info, metadata, given.find(*target.own), bool(want.ids))
    shown = running.shown(hide_paths)
    if dry_run:
        number = "all" if total is None else total
        console.note(f"would score {number} files on {opened.provider} and write {target.path or 'to stdout'}")
        return

    # A run that goes on takes the batch that it began with, since what is found depends on the memory at hand.
    begun = journal.settings(target.path).get("batch") if target.path else None
    at_a_time = batch or begun or best_batch(opened, streams)
    pipeline = Pipeline(
        opened,
        workers=cores() if workers is None else workers,
        batch=at_a_time,
        streams=streams,
        metadata=known.encoded,
        whose=running.whose(known, keep_ids) if want.ids else None,
        draw=running.draw(heatmaps, opened, shown) if heatmaps else None,
    )
    settings = {
        "damcli": __version__,
        "model": opened.sha256,
        "provider": opened.provider,
        "batch": at_a_time,
        "metadata": metadata and files.sha256(metadata),
        "ids": (bool(want.ids), keep_ids),
        "hidden": hide_paths,
        "secret": running.key_check() if want.ids and not keep_ids else None,
        "heatmaps": heatmaps and str(heatmaps.resolve()),
    }
    tally = Tally(opened.info.encoding, known.encoded, shown)
    job = running.Job(given, total, target, pipeline, want, columns, tally, shown)
    start = time.monotonic()
    if target.path is None:
        running.stream(job)
    else:
        running.keep(job, settings)
    seconds = time.monotonic() - start
    if pipeline.most < at_a_time:
        console.warn(f"{at_a_time} scans at a time did not fit into memory: scored by {pipeline.most}")
    tally.say(opened.provider, seconds)
    if target.path is not None:
        for written in target.own:
            console.result(str(written))
        console.next_step(f"damcli evaluate {target.scans or target.path} LABELS.csv")
    if json:
        document: dict[str, Any] = {"output": str(target.path), "model": str(path), "provider": opened.provider}
        if target.scans is not None:
            document["scans_table"] = str(target.scans)
        console.emit_json(document | tally.document() | {"seconds": round(seconds, 3)})
    if tally.counts["failed"]:
        raise typer.Exit(4)


def _opened(path: Path, device: str, require_gpu: bool, threads: int | None) -> tuple[Model, int]:
    """Open the model; return it and how many threads call it at a time, for each of its devices."""
    from damcli.bundle.runtime import Model
    from damcli.data.workers import cores

    computing = threads or cores()
    streams = min(computing, MAX_STREAMS)
    opened = Model.open(path, device, require_gpu, threads=computing // streams, streams=streams)
    if opened.fell_back:
        console.warn(f"{opened.provider_note} (see damcli info doctor)")
    else:
        console.note(f"device: {opened.provider_note}")
    return opened, GPU_STREAMS if opened.on_gpu else streams


def _check_heatmaps(folder: Path | None, scans: list[str]) -> None:
    """Raise `UsageError` where the maps would become scans of the next run."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is no folder", where=folder, fix="name another with --heatmaps")
    for given in map(Path, scans):
        if given.is_dir() and folder.resolve().is_relative_to(given.resolve()):
            raise UsageError("the heat maps would lie among the scans", where=folder, fix="choose another folder")
