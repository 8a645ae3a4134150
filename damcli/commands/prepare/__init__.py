"""`damcli prepare`: a download becomes a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from damcli import console
from damcli.commands import engine as engines
from damcli.commands import options
from damcli.commands.prepare import showing
from damcli.commands.prepare.reading import SOURCES, read
from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.cluster.session import Session
    from damcli.data.images import Contract
    from damcli.data.remote import Mirror
    from damcli.data.sources import Source
    from damcli.data.workers import Decoded
    from damcli.data.writer import Progress

__all__ = ["SOURCES", "command", "prepare", "read"]

option = partial(typer.Option, show_default=False)


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
    decode: Callable[[Iterable[Path], Contract], Iterator[Decoded]] | None = None,
) -> Iterator[Progress]:
    """Write `source` as a dataset to `output`; yields where it starts (0 unless it continues), then once per scan.

    `size`, `channels` and `fit` default to the source's, `workers` to the number of cores at hand; 0 decodes in this
    process; or `decode` turns paths into scans, as `damcli.cluster.decoding` does on other machines. `frame` and `film`
    are the contract's. Called again after it was killed, it continues. Raises what `damcli.data.writer.write` does, and
    `UsageError` for a `frame` where there are none.
    """
    from damcli.data import workers as processes
    from damcli.data.images import Contract
    from damcli.data.writer import write

    if frame is not None and source.pixels:
        raise UsageError("no image of this source has several frames", where="--frame", fix="leave it out")
    contract = Contract(
        size=size or source.size, channels=channels or source.channels, fit=fit or source.fit, frame=frame, film=film
    )
    number = processes.cores() if workers is None else workers
    local = partial(processes.decode, workers=number)
    return write(
        output,
        source,
        contract,
        lambda paths: (decode or local)(paths, contract),
        seed=seed,
        max_rejected=max_rejected,
        allow_leaks=allow_leaks,
    )


def _split_list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=f"{', '.join(SOURCES)}.")],
    path: Annotated[str | None, typer.Argument(metavar="PATH", help="The folder or table. Default: here.")] = None,
    output: Annotated[str | None, option("-o", "--output", metavar="DATASET", help="Where to write.")] = None,
    size: Annotated[int | None, option(metavar="N", min=8, max=4096, help="Pixels; default: the source's.")] = None,
    channels: Annotated[Literal["1", "3"] | None, option(help="1: grey, 3: colour; default: the source's.")] = None,
    fit: Annotated[Literal["pad", "stretch", "crop"] | None, option(help="To square; default pad.")] = None,
    frame: Annotated[int | None, option(metavar="N", min=0, help="Of files with several, from 0.")] = None,
    uncertain: Annotated[str | None, option(metavar="RULES", help='A rule, or "Edema=ones,Fracture=0.5".')] = None,
    blank: Annotated[Literal["negative", "missing"] | None, option(help="What blank labels mean.")] = None,
    findings: Annotated[str | None, option(metavar="NAMES", help="a,b,c. Default: the source's usual ones.")] = None,
    views: Annotated[Literal["frontal", "all"] | None, option(help="Chest X-rays: default frontal.")] = None,
    labels: Annotated[Path | None, option(metavar="FILE", help="Other labels, as CheXbert's.")] = None,
    readers_rule: Annotated[
        Literal["any", "majority", "mean"] | None, option(metavar="RULE", help="Of several: majority, any or mean.")
    ] = None,
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
    engine: options.Engine = "local",
    address: options.Address = None,
    seed: options.Seed = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a dataset from a download: decode, resize, read labels, split by patient.

    RULES for uncertain labels: ones, zeros, ignore, ones-lsr, zeros-lsr or a number. Without -o: data/SOURCE. With Ray
    PATH and DATASET may be URLs.

    Example: damcli prepare chexpert CheXpert-v1.0-small -o cxr --size 224
    """
    options.apply(quiet, verbose, as_json)
    engines.check(engine, address, path, output)
    import polars as pl

    from damcli.data import remote
    from damcli.data.store import read_info

    with ExitStack() as held:
        mirror = held.enter_context(remote.mirrored(path)) if path and remote.is_url(path) else None
        taken = read(
            source,
            mirror.path if mirror else path and Path(path),
            uncertain=uncertain,
            blank=blank,
            valid_fraction=valid_fraction,
            folds=folds,
            allow_leaks=allow_leaks,
            seed=seed or 0,
            findings=_split_list(findings),
            views=views,
            labels=labels,
            readers_rule=readers_rule,
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
        if mirror:
            notes = [note.replace(str(mirror.root), mirror.url) for note in taken.notes]
            inside = taken.root.is_relative_to(mirror.root)
            taken = replace(taken, url=mirror.url_of(taken.root) if inside else None, notes=notes)
            if crops or taken.name.startswith("ddsm:films"):
                what = "lesions and films of DDSM are found by what the files hold, which a listing does not tell"
                raise UsageError(what, where=mirror.url, fix="copy or mount it here")
        if film == "density" and not taken.name.startswith("ddsm:films"):
            raise UsageError("--film density belongs to DDSM's .LJPEG films", fix="leave it out")
        if engine == "ray" and taken.pixels:
            what = "the scans of this source lie in files of many, which one process reads"
            raise UsageError(what, where="--engine ray", fix="leave it out")
        output = output or str(Path("data", taken.name.rpartition(":")[2] if source == "benchmark" else source))
        size = size or taken.size
        depth: Literal[1, 3] = taken.channels if channels is None else 1 if channels == "1" else 3
        shape = fit or taken.fit
        written = remote.shown(output) if remote.is_url(output) else output
        showing.say(taken, written, size, depth, shape)
        if dry_run:
            showing.plan(taken)
            return
        sees = [] if mirror else [taken.root, Path(taken.scans["path"][0])]
        cluster = held.enter_context(engines.opened(engine, address, sees, workers))
        folder = held.enter_context(remote.staged(output)) if remote.is_url(output) else Path(output)
        steps = prepare(
            taken, folder, size=size, channels=depth, fit=shape, frame=frame, film=film, seed=seed or 0,
            workers=workers, max_rejected=max_rejected, allow_leaks=allow_leaks, decode=_decoder(cluster, mirror),
        )  # fmt: skip
        _work(steps, folder, written, len(taken.refused))
        info, reasons = read_info(folder), pl.read_csv(folder / "rejected.csv", infer_schema=False)["reason"]
    showing.made(info, reasons, written)
    if info.rejected:
        raise typer.Exit(4)


def _decoder(
    cluster: Session | None, mirror: Mirror | None
) -> Callable[[Iterable[Path], Contract], Iterator[Decoded]] | None:
    if cluster is None:
        return None
    from damcli.cluster import decoding

    return partial(decoding.decode, cluster, mirror=mirror)


def _work(steps: Iterator[Progress], folder: Path, written: str, refused: int) -> None:
    there = (folder / "dataset.json").exists()
    with closing(steps):  # type: ignore[type-var]
        try:
            start = next(steps)
            if there:
                console.note(f"{written} is there already, from the same table and settings: nothing to do")
            elif start.done > refused:
                console.note(f"continuing after {start.done} of {start.total} scans")
            for _ in console.track(steps, start.total - start.done, "prepare"):
                pass
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and SIGTERM
            console.note("stopped: the same command again continues with what is finished")
            raise
