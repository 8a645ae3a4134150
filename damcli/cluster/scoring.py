"""Scoring on a cluster: an actor for each GPU, fed by tasks that decode; else one for each CPU, which does both.

The lots are those of the local engine, so the same model on the same provider gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from damcli.bundle.batching import best_batch
from damcli.bundle.pipeline import Draw, Scored, Scorer, Whose
from damcli.bundle.runtime import Model
from damcli.bundle.schema import ModelInfo
from damcli.bundle.table import Row
from damcli.cluster import decoding, waves
from damcli.cluster.session import Session, check_version, here, ray_errors
from damcli.data.decoding import Status
from damcli.data.images import Contract
from damcli.data.inputs import Input
from damcli.data.remote import Mirror
from damcli.data.workers import Decoded, Lot
from damcli.errors import MachineError, UsageError

Metadata = Mapping[str, NDArray[np.float32]]
# What may be on a GPU.
GPU_DEVICES = ("auto", "cuda", "tensorrt")


class _Taken(NamedTuple):
    """The inputs of a lot, and what a table says of them."""

    inputs: list[Input]
    metadata: Metadata | None


class _Lot(NamedTuple):
    """A lot as the node decoded it: `scans` without their pixels, which are in `images`, as in `Lot`."""

    taken: _Taken
    scans: list[Decoded]
    images: NDArray[np.uint8]
    node: str


class _Done(NamedTuple):
    """A lot as it was scored, `most` scans at a time."""

    scored: Scored
    most: int
    node: str


class _Opened(NamedTuple):
    """What a worker says of the model that it opened."""

    info: ModelInfo
    sha256: str
    provider: str
    note: str
    fell_back: bool
    on_gpu: bool
    batch: int


@dataclass(frozen=True)
class _Opener:
    """How workers open the model: each actor on the one GPU that it has, or with one thread."""

    path: Path
    device: str
    require_gpu: bool

    def open(self) -> Model:
        return Model.open(self.path, self.device, self.require_gpu, threads=1)


class Scoring:
    """A model at work on a cluster: what `Pipeline` and its `Model` are to the local engine.

    `batch` inputs are taken at a time (default: found on a worker), `threads` CPUs score (default: all; no matter for
    GPUs). `metadata`, `whose` and `draw` are as in `Pipeline`. `whose` is asked here; `draw` goes to the workers, so it
    must be possible to pickle it, and is called again for a scan whose worker was lost. `most` is the least number of
    scans that a worker took at a time.

    Raises what `Model.open` and `best_batch` do, on a worker of the kind that scores.
    """

    def __init__(
        self,
        session: Session,
        model: Path,
        device: str = "auto",
        require_gpu: bool = False,
        *,
        batch: int | None = None,
        threads: int | None = None,
        metadata: Metadata | None = None,
        whose: Whose | None = None,
        draw: Draw | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        import ray

        self.session, self.metadata, self.whose, self.draw, self.mirror = session, metadata, whose, draw, mirror
        self.by_gpu = session.gpus > 0 and device in GPU_DEVICES
        self.actors = session.gpus if self.by_gpu else min(session.cpus, threads or session.cpus)
        self.opener = _Opener(model.absolute(), device, require_gpu)
        # As many models as a node has CPUs share its memory.
        streams = 1 if self.by_gpu else max(node.cpus for node in session.nodes)
        worker: Any = ray.remote(_open)
        worker = worker.options(num_cpus=0, num_gpus=1) if self.by_gpu else worker.options(num_cpus=1)
        with ray_errors():
            opened: _Opened = ray.get(worker.remote(self.opener, batch, streams, here()))
        self.info, self.sha256, self.provider, note, self.fell_back, self.on_gpu, self.batch = opened
        self.provider_note = f"{note}; {self.actors} actor{'s' * (self.actors > 1)} on the cluster"
        self.most = self.batch

    def rows(self, inputs: Iterable[Input]) -> Generator[Scored, None, None]:
        """Yield the lots in order, each with a row for every input, as `Pipeline.rows` does.

        Raises `UsageError` for what lies in a compressed tar, `MachineError` where a node cannot read a file that this
        machine can, has another model file than the others, or runs it on something else.
        """
        contract, ids = self.info.contract, self.whose is not None
        decode = partial(_decode, contract=contract, ids=ids, mirror=self.mirror)
        score = _Score(self.opener, self.sha256, self.provider, self.batch, ids, self.draw)
        if self.by_gpu:
            stages = [waves.Stage(decode), waves.Stage(score, self.actors, on_gpu=True)]
        else:
            stages = [waves.Stage(_Both(decode, score), self.actors)]
        size = max(1, decoding.group_size(contract) // self.batch)
        with closing(waves.run(self.session, self._lots(iter(inputs)), size, *stages)) as found:
            for (given, rows), most, node in found:
                self.most = min(self.most, most)
                yield Scored(given, [self._own(one, row, node) for one, row in zip(given, rows, strict=True)])

    def _lots(self, inputs: Iterator[Input]) -> Iterator[_Taken]:
        while lot := [_placed(one) for one in islice(inputs, self.batch)]:
            table = self.metadata
            # Of a table of millions of rows a worker gets those that it needs.
            yield _Taken(lot, table and {one.name: table[one.name] for one in lot if one.name in table})

    def _own(self, one: Input, row: Row, node: str) -> Row:
        """Check a row, and put the ids that are wanted in place of those of its header."""
        if self.mirror is None:
            decoding.check_seen(node, one.source, row.error)
        if self.whose is None:
            return row
        header = Decoded(0, None, cast(Status, row.status), row.error, row.patient, row.study)
        patient, study = self.whose(one, header)
        return row._replace(patient=patient, study=study)


def _placed(one: Input) -> Input:
    """Return an input whose place is the same from any folder."""
    if one.place.content is not None:
        raise UsageError(
            "a compressed tar can only be read from its start, so a cluster cannot share it out",
            where=one.place.path,
            fix="unpack it, or leave out --engine ray",
        )
    return one._replace(place=one.place._replace(path=one.place.path.absolute()))


def _open(opener: _Opener, batch: int | None, streams: int, expected: str) -> _Opened:
    check_version(expected)
    model = opener.open()
    said = model.info, model.sha256, model.provider, model.provider_note, model.fell_back, model.on_gpu
    return _Opened(*said, batch or best_batch(model, streams))


def _decode(lots: list[_Taken], contract: Contract, ids: bool, mirror: Mirror | None) -> list[_Lot]:
    """Decode a group of lots, on a worker."""
    places = [(one.source, one.stamp) for lot in lots for one in lot.inputs]
    units = iter(decoding.units(places, contract, ids, mirror))
    decoded = []
    for lot in lots:
        own = [next(units) for _ in lot.inputs]
        images = [scan.pixels for _, scan, _ in own if scan.pixels is not None]
        scans = [scan._replace(pixels=None) for _, scan, _ in own]
        decoded.append(_Lot(lot, scans, np.array(images, np.uint8).reshape(-1, *contract.shape), own[0].node))
    return decoded


class _Score:
    """Scores groups of lots, in an actor: with its first group it opens the model."""

    def __init__(self, opener: _Opener, sha256: str, provider: str, batch: int, ids: bool, draw: Draw | None) -> None:
        self.opener, self.sha256, self.provider = opener, sha256, provider
        self.batch, self.ids, self.draw = batch, ids, draw
        self.scorer: Scorer | None = None

    def __call__(self, lots: list[_Lot]) -> list[_Done]:
        scorer = self.scorer = self.scorer or Scorer(
            self._opened(), self.batch, 1, _header_ids if self.ids else None, self.draw
        )
        done = []
        for (inputs, metadata), scans, images, node in lots:
            scored = scorer.score(inputs, Lot(scans, images, lambda: None), metadata)
            done.append(_Done(scored, scorer.most, node))
        return done

    def _opened(self) -> Model:
        model = self.opener.open()
        if model.sha256 != self.sha256:
            raise MachineError(
                f"node {waves.node()} of the Ray cluster has another model than the one asked first",
                where=self.opener.path,
                fix="put the same file on all nodes",
            )
        if model.provider != self.provider:
            raise MachineError(
                f"node {waves.node()} of the Ray cluster runs the model on {model.provider}, the one asked first "
                f"on {self.provider}: their scores would differ ({model.provider_note})",
                fix="choose a --device that all nodes have",
            )
        return model


class _Both:
    """Decodes and scores, in one actor."""

    def __init__(self, decode: Any, score: _Score) -> None:
        self.decode, self.score = decode, score

    def __call__(self, lots: list[_Taken]) -> list[_Done]:
        return self.score(self.decode(lots))


def _header_ids(_: Input, scan: Decoded) -> tuple[str, str]:
    return scan.patient, scan.study
