"""`damcli predict`: score scans with a packaged model, one row per file."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, project
from damcli.commands import options
from damcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from damcli.bundle.schema import ModelInfo
    from damcli.bundle.table import Row
    from damcli.data.metadata import Encoding

FORMATS = ("csv", "json", "jsonl", "parquet")
# More sessions than this at a time would only take memory.
MAX_STREAMS = 8


def find_scans(given: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (path to show, file) for every file given and every file in the folders given, folder by folder, sorted.

    The path to show is relative to the one folder given (one file: its name); where several are given it starts with
    what was given, so that it stays unique.
    Raises `UsageError` for a folder that cannot be read.
    """
    for root in given:
        for file in _files(root) if root.is_dir() else [root]:
            if len(given) > 1:
                yield file.as_posix(), file
            else:
                yield (file.relative_to(root).as_posix() if file != root else file.name), file


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not _loops(Path(folder, name)))
        yield from (Path(folder, name) for name in sorted(names))


def _refuse(problem: OSError) -> None:
    raise UsageError(
        f"this folder cannot be read: {problem.strerror}", where=problem.filename, fix="its scans would be missed"
    )


def _loops(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.absolute().parents)


def _check(scans: Sequence[Path]) -> None:
    """Raise `UsageError` for what is not there, and for what would be scored twice."""
    known: set[Path] = set()
    for path in scans:
        if not path.exists():
            raise UsageError("there is no such file or folder", where=path)
        known.add(path.absolute())
    inside = [path for path in scans if not known.isdisjoint(path.absolute().parents)]
    if inside or len(known) < len(scans):
        raise UsageError(
            "something is given twice, or lies in a folder that is given too",
            where=inside[0] if inside else ", ".join(map(str, scans[:5])),
            fix="give it once: a folder stands for all below it",
        )


def _output(output: Path | None, form: str | None) -> tuple[Path | None, str]:
    """Return where to write (None: stdout) and in which format; without `--export` the file's suffix decides."""
    suffix = output.suffix.removeprefix(".") if output else ""
    form = form or (suffix if suffix in FORMATS else "csv")
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", where="--export", fix=f"choose one of: {', '.join(FORMATS)}")
    if output == Path("-"):
        return None, form
    target = output or Path(f"scores.{form}")
    if target.is_dir():
        raise UsageError("this is a folder", where=target, fix=f"name a file: -o {target / f'scores.{form}'}")
    if target.exists() and target.suffix.removeprefix(".") not in FORMATS:
        # It may be a scan: `-o scans/*.dcm` would put the table in the place of the first.
        raise UsageError("this file is there already and is no table by its name", where=target, fix="name another")
    return target, form


def _metadata(info: ModelInfo, table: Path | None, scans: Iterator[tuple[str, Path]]) -> dict[str, np.ndarray] | None:
    """Return the encoded metadata of the scans that have a row in `table`, by name; None where there is no table.

    Raises `UsageError` where the model takes none, or the table lacks a column; `DataError` as `ScanTable.read` and
    `joining.rows_of` do.
    """
    from damcli.data import joining, labels
    from damcli.data.scores import ScanTable

    if info.encoding is None:
        if table is not None:
            raise UsageError("this model takes no metadata", where="--metadata", fix="leave it out")
        return None
    names = list(dict.fromkeys(info.encoding.names))
    if table is None:
        console.warn(f"the model also takes {', '.join(names)}: without --metadata all of it counts as missing")
        return None
    rows = ScanTable.read(table)
    spelled = labels.choose(names, rows.frame.columns, "column", table)
    values = info.encoding.encode(
        rows.frame.select(rows.frame[own].alias(name) for own, name in zip(spelled, names, strict=True)), table
    )
    joined = joining.rows_of(scans, rows.ids, table)
    if unused := len(values) - len(joined):
        console.note(f"{unused} rows of {table} belong to none of these files")
    return {name: values[row] for name, row in joined.items()}


def _doubts(encoding: Encoding, metadata: dict[str, np.ndarray], scored: Sequence[str]) -> Iterator[str]:
    """Yield, in words, what was not known of the scans that were scored."""
    import numpy as np

    known = [metadata[name] for name in scored if name in metadata]
    if without := len(scored) - len(known):
        yield f"{without} scans have no row of metadata: all of it counted as missing"
    for column, missing, unseen in encoding.doubts(np.stack(known)) if known else ():
        if missing:
            yield f"{missing} scans have no {column}"
        if unseen:
            yield f"{unseen} scans have a {column} that the model never met in training"


def command(
    scans: Annotated[list[Path], typer.Argument(help="Folders (with all below them) or files.", metavar="SCANS")],
    model: Annotated[
        Path | None, typer.Option("--model", help="NAME.onnx [default: $DAMCLI_MODEL, or the newest in models/]")
    ] = None,
    export: Annotated[str | None, typer.Option("--export", help="csv, json, jsonl or parquet. [default: csv]")] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="CSV of what the model takes beside images: `path` and its columns.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="[default: scores.csv; -: stdout]")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode. [default: all cores]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Scans scored at a time.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that score. [default: all cores]")] = None,
    device: options.Device = "auto",
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="Stop (exit 5) if there is no GPU.")] = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Score scans with a model: one row per file, with its scores or why there are none.

    Reads DICOM, JPEG, PNG and TIFF, told apart by content. Files that are no image are "skipped"; images that cannot
    be scored are "failed", and the exit code is then 4.

    A model with a metadata network takes --metadata: a row belongs to the scan whose path it names or ends in, never
    by position. What is blank, or a scan without a row, counts as missing, and is said.

    Example: damcli predict scans/ --model models/cxr.onnx --export csv -o scores.csv
    """
    options.apply(quiet, verbose, json)
    options.check_device(device)
    target, form = _output(output, export)
    if target is None and json:
        raise UsageError("--json and -o - both want stdout", fix="leave out one of them")
    if require_gpu and device == "cpu":
        raise UsageError("--require-gpu and --device cpu contradict each other", fix="leave out one of them")
    if metadata is not None and target is not None and target.resolve() == metadata.resolve():
        raise UsageError("the scores would take the place of the metadata", where=target, fix="name another with -o")
    _check(scans)
    total = sum(1 for _ in _found(scans, target))
    if not total:
        raise UsageError("there is no file to score", where=", ".join(map(str, scans)), fix="give a folder with scans")

    from damcli.bundle import pipeline
    from damcli.bundle.runtime import CPU, Model
    from damcli.bundle.table import write
    from damcli.data.workers import cores

    path = model or Path(os.environ.get("DAMCLI_MODEL") or project.newest_model())
    console.note(f"model: {path}")
    computing = threads or cores()
    streams = min(computing, MAX_STREAMS)
    opened = Model.open(path, device, require_gpu, threads=computing // streams)
    if opened.provider != CPU:
        streams = 1
    if opened.fell_back:
        console.warn(f"scoring on the CPU: {opened.provider_note} (see damcli info doctor)")
    known = _metadata(opened.info, metadata, _found(scans, target))
    if dry_run:
        console.note(f"would score {total} files on {opened.provider} and write {target or 'to stdout'}")
        return

    counts: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    scored: list[str] = []
    start = time.monotonic()

    def counted() -> Iterator[Row]:
        rows = pipeline.predict(
            opened,
            _found(scans, target),
            workers=cores() if workers is None else workers,
            batch=batch,
            streams=streams,
            metadata=known,
        )
        for row in console.track(rows, total, "predict"):
            counts[row.status] += 1
            remarks[row.remark] += bool(row.remark)
            if known is not None and row.status == "ok":
                scored.append(row.path)
            yield row

    write(target, form, opened.info.findings, counted())
    seconds = time.monotonic() - start
    done = counts.total()
    console.note(
        f"{done} scans: {counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} skipped;"
        f" provider {opened.provider}; {done / seconds:.3g} scans/s"
    )
    for remark, number in (+remarks).most_common():
        console.warn(f"{number} scans: {remark}")
    if known is not None and opened.info.encoding is not None:
        for doubt in _doubts(opened.info.encoding, known, scored):
            console.warn(doubt)
    if target is not None:
        console.result(str(target))
        console.next_step(f"damcli evaluate {target} LABELS.csv")
    if json:
        statuses = {status: counts[status] for status in ("ok", "failed", "skipped")}
        console.emit_json(
            {"output": str(target), "model": str(path), "provider": opened.provider, "scans": done, **statuses}
            | {"seconds": round(seconds, 3)}
        )
    if counts["failed"]:
        raise typer.Exit(4)


def _found(scans: Sequence[Path], target: Path | None) -> Iterator[tuple[str, Path]]:
    """Find the scans, leaving out the table that is written, also under its temporary name."""
    own = None if target is None else target.resolve()
    for name, file in find_scans(scans):
        ours = own is not None and (file.name == own.name or file.name.startswith(f".{own.stem}.{os.getpid()}."))
        if not (ours and own and file.resolve().parent == own.parent):
            yield name, file
