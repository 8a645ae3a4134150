"""`damcli predict`: score scans with a packaged model, one row per input."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from damcli import __version__, console, files, project
from damcli.commands import engine as engines
from damcli.commands import options
from damcli.commands.predict import about, asked, opening, running
from damcli.commands.predict.tally import Tally
from damcli.errors import UsageError


def command(
    scans: Annotated[
        list[str],
        typer.Argument(help="Folders, files, zip, tar, 'globs', a CSV of paths; -: from stdin.", metavar="PATHS"),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", help="NAME.onnx [default: $DAMCLI_MODEL, or the newest in models/]")
    ] = None,
    export: Annotated[str | None, typer.Option("--export", help="csv, json, jsonl or parquet. [default: csv]")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="[default: scores.csv; -: stdout]")] = None,
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
    engine: options.Engine = "local",
    address: options.Address = None,
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
    engines.check(engine, address, *scans, output)
    if require_gpu and device in ("cpu", "openvino"):
        raise UsageError(f"--require-gpu and --device {device} contradict each other", fix="leave out one of them")
    _check_heatmaps(heatmaps, scans)

    from damcli.bundle import journal
    from damcli.bundle.runtime import DEVICES
    from damcli.data import inputs, remote

    options.check_device(device, DEVICES)
    with ExitStack() as held:
        mirror = held.enter_context(remote.mirrored(_alone(scans))) if any(map(remote.is_url, scans)) else None
        url = remote.shown(output) if output and remote.is_url(output) else None
        place: Path | None
        if output and url and not dry_run:
            place = held.enter_context(remote.staged(output))
        else:
            place = Path(url.rpartition("/")[2] if url else output) if output else None
        target = asked.target(place, export, by)
        if target.path is None and json:
            raise UsageError("--json and -o - both want stdout", fix="leave out one of them")
        if metadata is not None and metadata.resolve() in {path.resolve() for path in target.own}:
            what = "the scores would take the place of the metadata"
            raise UsageError(what, where=metadata, fix="name another with -o")
        written = {path: f"{url.rpartition('/')[0]}/{path.name}" if url else str(path) for path in target.own}
        given = inputs.given([str(mirror.path)] if mirror else scans)
        total = given.total(*target.own)
        if total == 0:
            raise UsageError("there is no file to score", where=_named(scans), fix="give a folder with scans")
        path = model or Path(os.environ.get("DAMCLI_MODEL") or project.newest_model())
        console.note(f"model: {path}")
        # A run that goes on takes the batch that it began with, since what is found depends on the memory at hand.
        begun = batch or (journal.settings(target.path).get("batch") if target.path else None)
        if heatmaps and engine == "ray" and not dry_run:
            # Workers write them: a folder that is nowhere yet would become another one on each machine.
            heatmaps.mkdir(parents=True, exist_ok=True)
        sees = [path, *(given.places if mirror is None else ()), *([heatmaps] if heatmaps else ())]
        cluster = held.enter_context(engines.opened(engine, address, sees, workers))
        if cluster:
            opened = opening.on(cluster, path, device, require_gpu, threads, begun, mirror)
        else:
            opened = opening.here(path, device, require_gpu, threads, workers, begun)
        if opened.fell_back:
            console.warn(f"{opened.provider_note} (see damcli info doctor)")
        else:
            console.note(f"device: {opened.provider_note}")
        want = asked.of(opened.info, by, reduce, threshold, keep_ids)
        if heatmaps and opened.info.cams is None:
            fix = "export it with --cam"
            raise UsageError("this model gives no class activation maps", where=path, fix=fix)
        columns = want.columns(opened.info.findings)
        known = about.read(opened.info, metadata, given.find(*target.own), bool(want.ids))
        shown = running.shown(hide_paths)
        if dry_run:
            number = "all" if total is None else total
            where = ", ".join(written.values()) or "to stdout"
            console.note(f"would score {number} files on {opened.provider} and write {where}")
            return

        working = opened.start(
            metadata=known.encoded,
            whose=running.whose(known, keep_ids) if want.ids else None,
            draw=running.draw(heatmaps, opened.info.findings, shown) if heatmaps else None,
        )
        settings = {
            "damcli": __version__,
            "model": opened.sha256,
            "provider": opened.provider,
            "batch": opened.batch,
            "metadata": metadata and files.sha256(metadata),
            "ids": (bool(want.ids), keep_ids),
            "hidden": hide_paths,
            "secret": running.key_check() if want.ids and not keep_ids else None,
            "heatmaps": heatmaps and str(heatmaps.resolve()),
        }
        tally = Tally(opened.info.encoding, known.encoded, shown)
        job = running.Job(given, total, target, working, want, columns, tally, shown)
        start = time.monotonic()
        if target.path is None:
            running.stream(job)
        else:
            running.keep(job, settings)
        seconds = time.monotonic() - start
    if working.most < opened.batch:
        console.warn(f"{opened.batch} scans at a time did not fit into memory: scored by {working.most}")
    tally.say(opened.provider, seconds)
    for name in written.values():
        console.result(name)
    if target.path is not None:
        console.next_step(f"damcli evaluate {written[target.scans or target.path]} LABELS.csv")
    if json:
        assert target.path is not None, "refused with --json"
        document: dict[str, Any] = {"output": written[target.path], "model": str(path), "provider": opened.provider}
        if target.scans is not None:
            document["scans_table"] = written[target.scans]
        console.emit_json(document | tally.document() | {"seconds": round(seconds, 3)})
    if tally.counts["failed"]:
        raise typer.Exit(4)


def _alone(scans: list[str]) -> str:
    """Return the URL that was given. Raises `UsageError` where more was."""
    if len(scans) > 1:
        raise UsageError("a URL is given alone", where=_named(scans), fix="run the command once for each")
    return scans[0]


def _named(scans: list[str]) -> str:
    from damcli.data import remote

    return ", ".join(remote.shown(scan) if remote.is_url(scan) else scan for scan in scans[:5])


def _check_heatmaps(folder: Path | None, scans: list[str]) -> None:
    """Raise `UsageError` where the maps would become scans of the next run."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is no folder", where=folder, fix="name another with --heatmaps")
    for given in map(Path, scans):
        if given.is_dir() and folder.resolve().is_relative_to(given.resolve()):
            raise UsageError("the heat maps would lie among the scans", where=folder, fix="choose another folder")
