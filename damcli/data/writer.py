"""Writes a dataset so that it can be killed at any moment: the same call again continues, to the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from damcli import files
from damcli.data import audit, images, journal, labels, shards
from damcli.data.audit import Print
from damcli.data.images import Contract
from damcli.data.sources import Source
from damcli.data.store import SCHEMA_VERSION, UNFINISHED, Counts, DatasetInfo, Shard, column, count, read_info, shape
from damcli.data.workers import Decoded
from damcli.errors import DataError, UsageError

Decoder = Callable[[Iterable[Path]], Iterator[Decoded]]
SPLITS = ("train", "valid", "test")


class Progress(NamedTuple):
    """How many of the source's scans are done, of how many, and how many of them were refused."""

    done: int
    total: int
    rejected: int


def write(
    path: Path,
    source: Source,
    contract: Contract,
    decode: Decoder,
    *,
    seed: int = 0,
    max_rejected: float = 0.05,
    allow_leaks: bool = False,
    shard_scans: int = shards.SHARD_SCANS,
) -> Iterator[Progress]:
    """Decode the scans of `source` into a dataset at `path`; yields where it starts, then once per scan.

    Every scan must have a split. `decode` turns paths into `Decoded` in order (see `workers.decode`). A dataset that
    was left unfinished continues if source and settings are the same, else it starts over; one that is finished and the
    same is left as it is. Images are never in memory together.

    Raises `UsageError` if `path` holds anything else or another process writes there, `DataError` if more than
    `max_rejected` of the scans are refused (one always may be, unless it is 0) or, unless leaks are allowed, if the
    same image turns up in two splits, `MachineError` if the disk is full.
    """
    assert source.scans["split"].null_count() == 0, "every scan needs a split before it is written"
    if path.exists() and not path.is_dir():
        raise UsageError("there is a file where the dataset should go", where=path, fix="choose another place with -o")
    inputs = _inputs(source, contract, seed, shard_scans)
    try:
        with files.only_writer(path):
            if (path / "dataset.json").exists():
                (path / UNFINISHED).unlink(missing_ok=True)
                yield _same(path, inputs, allow_leaks)
                return
            try:
                start = journal.resume(path, inputs, source.scans["path"].to_list())
                prints = [p for part in start.parts for p in _prints(path / part.shard.file)]
                end = yield from _decode(path, source, contract, decode, start, prints, max_rejected, shard_scans)
                _finish(path, source, contract, seed, end, prints, allow_leaks)
            finally:
                journal.leave(path)
    finally:
        with suppress(OSError):  # it is not empty: there is a dataset, or something to continue from
            path.rmdir()


def _decode(
    path: Path,
    source: Source,
    contract: Contract,
    decode: Decoder,
    done: journal.Journal,
    prints: list[Print],
    max_rejected: float,
    shard_scans: int,
) -> Generator[Progress, None, journal.Journal]:
    """Write the shards that are missing; returns the journal of all, the scans refused after the last one included.

    The print of every image written is added to `prints`.
    """
    done.save(path)
    paths = source.scans["path"].to_list()
    before = len(source.refused)
    total = before + len(paths)
    allowed = max(max_rejected * total, 1) if max_rejected else 0
    rejected, remarks = dict(done.rejected), dict(done.remarks)
    reasons = Counter(reason for _, reason in [*source.refused, *rejected.items()])
    if reasons.total() > allowed:
        raise _too_many(reasons, total, source)
    first = done.consumed
    yield Progress(before + first, total, reasons.total())

    stamps: deque[bytes] = deque()
    digest = hashlib.sha256()
    with ExitStack() as decoding, ExitStack() as writing:
        files_of_scans = journal.watched(paths[first:], stamps)
        decoded = (
            decode(files_of_scans) if source.pixels is None else _unpacked(source, contract, files_of_scans, first)
        )
        if isinstance(decoded, Generator):  # which ends its worker processes
            decoding.callback(decoded.close)
        shard: shards.Writer | None = None
        for row, scan in enumerate(decoded, first):
            digest.update(stamps.popleft())
            if scan.pixels is None:
                rejected[row] = scan.reason
                reasons[scan.reason] += 1
                if reasons.total() > allowed:
                    raise _too_many(reasons, before + row + 1, source)
            else:
                if shard is None:
                    file = path / shards.name(len(done.parts))
                    shard = writing.enter_context(shards.creating(file, shape(contract)))
                shard.append(scan.pixels)
                prints.append(audit.image_print(scan.pixels))
                if scan.reason:
                    remarks[row] = scan.reason
            if shard is not None and (shard.scans == shard_scans or row + 1 == len(paths)):
                writing.close()
                made = Shard(file=file.name, scans=shard.scans, sha256=files.sha256(file))
                part = journal.Part(shard=made, consumed=row + 1, stamps=digest.hexdigest())
                done = done.model_copy(
                    update={
                        "parts": (*done.parts, part),
                        "rejected": tuple(rejected.items()),
                        "remarks": tuple(remarks.items()),
                    }
                )
                done.save(path)
                shard, digest = None, hashlib.sha256()
            yield Progress(before + row + 1, total, reasons.total())
    if not done.parts or reasons.total() > allowed:
        raise _too_many(reasons, total, source)
    return done.model_copy(update={"rejected": tuple(rejected.items())})


def _unpacked(source: Source, contract: Contract, watched: Iterator[Path], first: int) -> Iterator[Decoded]:
    """Yield the scans of files that hold many, from row `first` on: there is nothing to decode."""
    assert source.pixels is not None
    for row, (_, pixels) in enumerate(zip(watched, source.pixels(first), strict=True), first):
        if isinstance(pixels, DataError):
            yield Decoded(row, None, "failed", pixels.what)
        else:
            yield Decoded(row, images.resize(pixels, contract), "ok", "")


def _prints(file: Path) -> Iterator[Print]:
    """Yield the print of every image of a finished shard."""
    return map(audit.image_print, np.load(file, mmap_mode="r"))


def _finish(
    path: Path,
    source: Source,
    contract: Contract,
    seed: int,
    done: journal.Journal,
    prints: Sequence[Print],
    allow_leaks: bool,
) -> None:
    """Write what makes finished shards a dataset: `rejected.csv`, `manifest.parquet`, and last `dataset.json`."""
    made = [part.shard for part in done.parts]
    kept = np.ones(len(source.scans), np.bool_)
    kept[[row for row, _ in done.rejected]] = False
    ids = source.scans["id"]
    refused = [*source.refused, *((ids[row], reason) for row, reason in done.rejected)]
    table = pl.DataFrame(refused, schema={"path": pl.String, "reason": pl.String}, orient="row")
    files.write_text(path / "rejected.csv", table.write_csv())
    remarks = dict(done.remarks)
    noted = pl.Series("remark", [remarks.get(row) for row in range(len(kept))], pl.String)
    scans = _named(source).with_columns(noted).filter(pl.Series(kept))
    manifest = _manifest(scans, source, seed, [shard.scans for shard in made])
    files_apart = None if source.pixels or source.url else manifest["path"].to_list()
    concerns = [
        *audit.of_table(source.scans, source.findings),
        *audit.of_images(prints, manifest["id"].to_list(), manifest["split"].to_list(), files_apart),
        *audit.of_remarks(remarks.values()),
    ]
    audit.stop(concerns, allow_leaks)
    # In memory first: then it is the operating system, not polars, that says when the disk is full.
    buffer = io.BytesIO()
    manifest.write_parquet(buffer, compression="zstd")
    with files.replacing(path / "manifest.parquet") as draft:
        draft.write_bytes(buffer.getvalue())
    number = dict(manifest["split"].value_counts().iter_rows())
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        source=source.name,
        findings=tuple(source.findings),
        contract=contract,
        policies={finding: source.policies[finding] for finding in source.findings},
        seed=seed,
        splits={split: number[split] for split in SPLITS if split in number},
        counts=counts(manifest, source),
        rejected=len(refused),
        notes=tuple(source.notes),
        audit=tuple(concerns),
        shards=tuple(made),
        manifest_sha256=files.sha256(path / "manifest.parquet"),
        inputs=done.inputs,
        fingerprint="",
    )
    known = {"schema_version", "findings", "contract", "policies", "seed", "shards"}
    # Where the files lay does not count: the same scans prepared elsewhere are the same dataset.
    fingerprint = _hash(manifest.drop("path"), info.model_dump(mode="json", include=known))
    files.write_json(
        path / "dataset.json", info.model_copy(update={"fingerprint": fingerprint}).model_dump(mode="json")
    )


def _manifest(scans: pl.DataFrame, source: Source, seed: int, sizes: Sequence[int]) -> pl.DataFrame:
    ids = scans["id"].to_list()
    first = ["id", "path", "patient", "study", "view", "split", "fold"]
    raw = [f"label:{finding}" for finding in source.findings]
    targets = [
        labels.targets(column(scans, f"label:{finding}"), ids, finding, source.policies[finding], seed)
        for finding in source.findings
    ]
    if "fold" not in scans.columns:
        scans = scans.with_columns(pl.lit(None, pl.Int32).alias("fold"))
    return scans.select(
        *first,
        *raw,
        *(pl.Series(f"target:{f}", t).fill_nan(None) for f, t in zip(source.findings, targets, strict=True)),
        pl.exclude(*first, *raw),
        pl.Series("shard", np.repeat(np.arange(len(sizes)), sizes), pl.Int64),
        pl.Series("row", np.concatenate([np.arange(size) for size in sizes]), pl.Int64),
    )


def counts(scans: pl.DataFrame, source: Source) -> dict[str, dict[str, Counts]]:
    """Count the labels of `scans` by split and finding, under the source's policies."""
    parts = scans.partition_by("split", as_dict=True)
    return {
        split: {f: count(column(parts[split,], f"label:{f}"), source.policies[f]) for f in source.findings}
        for split in SPLITS
        if (split,) in parts
    }


def _inputs(source: Source, contract: Contract, seed: int, shard_scans: int) -> str:
    settings = {
        "schema": SCHEMA_VERSION,
        "source": source.name,
        "contract": contract.model_dump(mode="json"),
        "policies": {finding: source.policies[finding].model_dump(mode="json") for finding in source.findings},
        "refused": source.refused,
        "seed": seed,
        "shard_scans": shard_scans,
    }
    return _hash(_named(source), settings)


def _named(source: Source) -> pl.DataFrame:
    """Return the scans by where they lie: those of a mirror by their URLs, which are the same on every machine."""
    if source.url is None:
        return source.scans
    root = f"{source.root}/"
    inside = pl.col("path").str.starts_with(root)
    return source.scans.with_columns(
        pl.when(inside).then(source.url + "/" + pl.col("path").str.strip_prefix(root)).otherwise("path").alias("path")
    )


def _hash(table: pl.DataFrame, settings: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(table.write_csv().encode())
    return digest.hexdigest()


def _same(path: Path, inputs: str, allow_leaks: bool) -> Progress:
    info = read_info(path)
    if info.inputs != inputs:
        raise UsageError(
            "this folder holds another dataset already", where=path, fix="choose another with -o, or remove this one"
        )
    audit.stop(info.audit, allow_leaks)
    total = sum(info.splits.values()) + info.rejected
    return Progress(total, total, info.rejected)


def commonest(reasons: Iterable[str]) -> str:
    """Return the three commonest of the reasons why scans were refused, with their numbers.

    >>> commonest(["cut off", "empty", "cut off"])
    'cut off (2); empty (1)'
    """
    return "; ".join(f"{reason} ({number})" for reason, number in Counter(reasons).most_common(3))


def _too_many(reasons: Counter[str], done: int, source: Source) -> DataError:
    total = len(source.scans) + len(source.refused)
    looked = f"the first {done} of {total}" if done < total else str(total)
    return DataError(
        f"{reasons.total()} of {looked} scans cannot be used: {commonest(reasons.elements())}",
        where=source.root,
        fix="mend or remove them, or allow more with --max-rejected",
    )
