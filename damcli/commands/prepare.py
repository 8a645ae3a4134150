"""`damcli prepare`: a download becomes a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from damcli import console
from damcli.commands import options
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from damcli.data.sources import Source
    from damcli.data.store import Counts
    from damcli.data.writer import Progress

option = partial(typer.Option, show_default=False)
KINDS = ("chexpert", "ddsm", "pcam", "melanoma", "benchmark", "table")
# What only some sources understand, by the name of its option.
ONLY = {
    "findings": ("chexpert", "ddsm"),
    "views": ("chexpert",),
    "labels": ("chexpert",),
    "crops": ("ddsm",),
    "imratio": ("pcam", "benchmark"),
    **dict.fromkeys(
        ("label_columns", "image_column", "patient_column", "study_column", "view_column", "split_column", "images"),
        ("table",),
    ),
}


def read(
    kind: str,
    path: Path | None = None,
    *,
    uncertain: str | None = None,
    blank: str | None = None,
    valid_fraction: float | None = None,
    folds: int | None = None,
    allow_leaks: bool = False,
    seed: int = 0,
    **special: Any,
) -> Source:
    """Read a download, ready to be written: labels with their policies, and a split for every scan.

    `special` are the arguments of the source's own `read`. Raises `UsageError` for what the source does not
    understand, `DataError` for a table that cannot be used or, unless leaks are allowed, a patient in two splits.
    """
    from damcli.data import audit, labels, parts
    from damcli.data.sources import benchmark, chexpert, ddsm, melanoma, pcam, table
    from damcli.data.writer import commonest

    given = {name: value for name, value in special.items() if value is not None}
    for name in given:
        if kind not in ONLY[name]:
            belongs = " and ".join(f"`damcli prepare {source}`" for source in ONLY[name])
            raise UsageError(f"--{name.replace('_', '-')} belongs to {belongs}", fix="leave it out")
    if kind == "table" and path is None and table.find(Path.cwd()) is None:
        raise UsageError("which table? there is none here", where=Path.cwd(), fix="damcli prepare table FILE_OR_FOLDER")
    path = path or Path.cwd()
    try:
        if kind == "chexpert":
            source = chexpert.read(path, **given)
        elif kind == "ddsm":
            source = ddsm.read(path, **given)
        elif kind == "pcam":
            source = pcam.read(path, seed=seed, **given)
        elif kind == "melanoma":
            source = melanoma.read(path)
        elif kind == "benchmark":
            source = benchmark.read(path, seed=seed, **given)
        elif kind == "table":
            source = table.read(path, given.pop("label_columns", ()), **given)
        else:
            raise UsageError(
                f"there is no source {kind!r}", where="SOURCE", fix=f"choose {', '.join(KINDS[:-1])} or {KINDS[-1]}"
            )
    except OSError as error:  # a folder or file without permission, or on a disk that fails
        raise UsageError(f"this cannot be read: {error.strerror}", where=error.filename or path) from error
    if not len(source.scans):
        why = f": {commonest(reason for _, reason in source.refused)}" if source.refused else ""
        raise DataError(f"no scan is left to prepare{why}", where=source.root)
    labels.check_findings(source.findings)
    source = replace(source, policies=labels.with_rules(source.policies, uncertain, blank))
    source = parts.assign(source, valid_fraction, folds, seed)
    audit.stop(audit.of_table(source.scans, source.findings), allow_leaks)
    return source


def prepare(
    source: Source,
    output: Path,
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    fit: Literal["pad", "stretch", "crop"] | None = None,
    frame: int | None = None,
    film: Literal["grey", "density"] = "grey",
    seed: int = 0,
    workers: int | None = None,
    max_rejected: float = 0.05,
    allow_leaks: bool = False,
) -> Iterator[Progress]:
    """Write `source` as a dataset to `output`; yields where it starts (0 unless it continues), then once per scan.

    `size`, `channels` and `fit` default to the source's, `workers` to the number of cores at hand; 0 decodes in this
    process. `frame` and `film` are the contract's. Called again after it was killed, it continues. Raises what
    `damcli.data.writer.write` does, and `UsageError` for a `frame` where there are none.
    """
    from damcli.data.images import Contract
    from damcli.data.workers import cores, decode
    from damcli.data.writer import write

    if frame is not None and source.pixels:
        raise UsageError("no image of this source has several frames", where="--frame", fix="leave it out")
    contract = Contract(
        size=size or source.size, channels=channels or source.channels, fit=fit or source.fit, frame=frame, film=film
    )
    processes = cores() if workers is None else workers
    return write(
        output,
        source,
        contract,
        lambda paths: decode(paths, contract, processes),
        seed=seed,
        max_rejected=max_rejected,
        allow_leaks=allow_leaks,
    )


def _rows(counts: dict[str, dict[str, Counts]]) -> list[list[str]]:
    """Return the label counts as rows of a table: finding, split, positive, negative, uncertain, missing."""
    findings = list(next(iter(counts.values())))
    return [
        [finding, split, *(str(number) for number in counts[split][finding].model_dump().values())]
        for finding in findings
        for split in counts
    ]


def _say(source: Source, output: Path, size: int, channels: int, fit: str) -> None:
    for note in source.notes:
        console.note(note)
    rules = ", ".join(f"{finding} {policy.uncertain}" for finding, policy in source.policies.items())
    blanks = ", ".join(sorted({policy.blank for policy in source.policies.values()}))
    console.note(f"uncertain labels: {rules}; blank labels: {blanks}")
    console.note(f"writing {output}: {size} x {size} pixels, {'grey' if channels == 1 else 'colour'}, fit {fit}")


def _split_list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="chexpert, ddsm, pcam, melanoma, benchmark, table.")],
    path: Annotated[Path | None, typer.Argument(metavar="PATH", help="The folder or table. Default: here.")] = None,
    output: options.Output = None,
    size: Annotated[int | None, option(metavar="N", min=8, max=4096, help="Pixels; default: the source's.")] = None,
    channels: Annotated[Literal["1", "3"] | None, option(help="1: grey, 3: colour; default: the source's.")] = None,
    fit: Annotated[Literal["pad", "stretch", "crop"] | None, option(help="To square; default pad.")] = None,
    frame: Annotated[int | None, option(metavar="N", min=0, help="Of files with several, from 0.")] = None,
    uncertain: Annotated[str | None, option(metavar="RULES", help='A rule, or "Edema=ones,Fracture=0.5".')] = None,
    blank: Annotated[Literal["negative", "missing"] | None, option(help="What blank labels mean.")] = None,
    findings: Annotated[
        str | None, option(metavar="NAMES", help="chexpert, ddsm: a,b,c. Default: the paper's.")
    ] = None,
    views: Annotated[Literal["frontal", "all"] | None, option(help="chexpert: default frontal.")] = None,
    labels: Annotated[Path | None, option(metavar="FILE", help="chexpert: other labels, as CheXbert's.")] = None,
    crops: Annotated[bool, option("--crops", help="ddsm: the lesions, not whole images.")] = False,
    film: Annotated[Literal["grey", "density"], option(help="ddsm .LJPEG: default grey.")] = "grey",
    imratio: Annotated[float | None, option(metavar="X", help="pcam, benchmark: positives to leave.")] = None,
    label_columns: Annotated[str | None, option(metavar="NAMES", help="table: the findings, a,b,c.")] = None,
    image_column: Annotated[str | None, option(metavar="NAME", help="table: the image files.")] = None,
    patient_column: Annotated[str | None, option(metavar="NAME", help="table: what scans are split by.")] = None,
    study_column: Annotated[str | None, option(metavar="NAME", help="table: the studies.")] = None,
    view_column: Annotated[str | None, option(metavar="NAME", help="table: the views.")] = None,
    split_column: Annotated[str | None, option(metavar="NAME", help="table: train, valid or test.")] = None,
    images: Annotated[Path | None, option(metavar="DIR", help="table: their folder, if not the CSV's.")] = None,
    valid_fraction: Annotated[float | None, option(metavar="X", min=0, max=0.9, help="Valid's share: 0.2.")] = None,
    folds: Annotated[int | None, option(metavar="K", min=2, help="Folds by patient; melanoma: 5.")] = None,
    allow_leaks: Annotated[bool, option("--allow-leaks", help="Go on with patients or images in two splits.")] = False,
    max_rejected: Annotated[float, option(metavar="X", min=0, max=1, help="Share of bad scans: 0.05.")] = 0.05,
    workers: Annotated[int | None, option(metavar="N", min=0, help="Default: one per core.")] = None,
    seed: options.Seed = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a dataset from a download: decode, resize, read labels, split by patient.

    RULES for uncertain labels: ones, zeros, ignore, ones-lsr, zeros-lsr or a number. Without -o: data/SOURCE.

    Example: damcli prepare chexpert CheXpert-v1.0-small -o cxr --size 224
    """
    options.apply(quiet, verbose, as_json)
    taken = read(
        source,
        path,
        uncertain=uncertain,
        blank=blank,
        valid_fraction=valid_fraction,
        folds=folds,
        allow_leaks=allow_leaks,
        seed=seed or 0,
        findings=_split_list(findings),
        views=views,
        labels=labels,
        crops=crops or None,
        imratio=imratio,
        label_columns=_split_list(label_columns),
        image_column=image_column,
        patient_column=patient_column,
        study_column=study_column,
        view_column=view_column,
        split_column=split_column,
        images=images,
    )
    if film == "density" and not taken.name.startswith("ddsm:films"):
        raise UsageError("--film density belongs to DDSM's .LJPEG films", fix="leave it out")
    output = output or Path("data", taken.name.rpartition(":")[2] if source == "benchmark" else source)
    size = size or taken.size
    depth: Literal[1, 3] = taken.channels if channels is None else 1 if channels == "1" else 3
    shape = fit or taken.fit
    _say(taken, output, size, depth, shape)
    if dry_run:
        _show_plan(taken)
        return
    steps = prepare(
        taken, output, size=size, channels=depth, fit=shape, frame=frame, film=film, seed=seed or 0, workers=workers,
        max_rejected=max_rejected, allow_leaks=allow_leaks,
    )  # fmt: skip
    _work(steps, output, len(taken.refused))
    _show(output)


def _work(steps: Iterator[Progress], output: Path, refused: int) -> None:
    there = (output / "dataset.json").exists()
    with closing(steps):  # type: ignore[type-var]
        try:
            start = next(steps)
            if there:
                console.note(f"{output} is there already, from the same table and settings: nothing to do")
            elif start.done > refused:
                console.note(f"continuing after {start.done} of {start.total} scans")
            for _ in console.track(steps, start.total - start.done, "prepare"):
                pass
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and SIGTERM
            console.note("stopped: the same command again continues with what is finished")
            raise


def _show_plan(source: Source) -> None:
    from damcli.data import audit
    from damcli.data.writer import commonest, counts

    found = counts(source.scans, source)
    concerns = audit.of_table(source.scans, source.findings)
    if console.state.json:
        console.emit_json(
            {
                "dry_run": True,
                "scans": len(source.scans),
                "refused": len(source.refused),
                "notes": source.notes,
                "counts": {split: {f: c.model_dump() for f, c in row.items()} for split, row in found.items()},
                "audit": [concern.model_dump(mode="json") for concern in concerns],
            }
        )
    console.table(f"{len(source.scans)} scans", HEADER, _rows(found))
    for concern in concerns:
        console.warn(concern.text)
    if source.refused:
        total = len(source.refused) + len(source.scans)
        common = commonest(reason for _, reason in source.refused)
        console.warn(f"{len(source.refused)} of {total} scans would be refused: {common}")
    console.note("nothing was written (--dry-run)")


HEADER = ("finding", "split", "positive", "negative", "uncertain", "missing")


def _show(output: Path) -> None:
    import polars as pl

    from damcli.data.store import read_info
    from damcli.data.writer import commonest

    info = read_info(output)
    kept = ", ".join(f"{scans} {split}" for split, scans in info.splits.items())
    if console.state.json:
        console.emit_json({"dataset": str(output), **info.model_dump(mode="json")})
    console.table(f"{sum(info.splits.values())} scans: {kept}", HEADER, _rows(info.counts))
    for concern in info.audit:
        where = f" ({' and '.join(concern.scans)})" if concern.scans else ""
        console.warn(f"{concern.text}{where}")
    console.result(str(output))
    if info.rejected:
        common = commonest(pl.read_csv(output / "rejected.csv", infer_schema=False)["reason"])
        total = info.rejected + sum(info.splits.values())
        console.warn(f"{info.rejected} of {total} scans were refused: {common}; all are in {output / 'rejected.csv'}")
    console.next_step(f"damcli train {output}" if "train" in info.splits else f"damcli evaluate RUN {output}")
    if info.rejected:
        raise typer.Exit(4)
