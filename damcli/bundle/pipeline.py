"""Decoding and scoring at the same time: processes decode into shared memory while threads score. Memory stays flat.

Inputs are taken in lots of `batch`, always the same ones, whatever fails in them: the batches that are scored, and so
the last bits of the scores, are a function of the inputs alone, and a run that was killed repeats them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import PurePath
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from damcli.bundle.engines import OutOfMemory
from damcli.bundle.runtime import Model, Output
from damcli.bundle.table import Row
from damcli.data.archives import Place, Refused
from damcli.data.images import NO_IMAGE
from damcli.data.inputs import Input
from damcli.data.workers import Decoded, Lot, batches
from damcli.errors import MachineError

# What is called like this and is no image may have been one.
IMAGE_SUFFIXES = (".dcm", ".dicom", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
# What is done with a scan that was scored: its input, its pixels (H, W[, 3]) and its maps (K, h, w).
Draw = Callable[[Input, NDArray[np.uint8], NDArray[np.float32]], None]
# The patient and the study of a scan, from what the decoder found in its header.
Whose = Callable[[Input, Decoded], tuple[str, str]]


class Scored(NamedTuple):
    """The inputs of a lot, and a row for each of them."""

    inputs: list[Input]
    rows: list[Row]


class Scorer:
    """A model that scores lots as they were decoded, on each of its devices in as many threads as there are `streams`.

    Where `batch` scans do not fit into memory they are scored in pieces from then on: `most` is how many at a time.
    `whose` is asked for the ids of every scan, `draw` is given every one that was scored, from any thread.
    """

    def __init__(
        self, model: Model, batch: int, streams: int = 1, whose: Whose | None = None, draw: Draw | None = None
    ) -> None:
        self.model, self.most, self.whose, self.draw = model, batch, whose, draw
        self.threads = model.devices * streams
        self.free: SimpleQueue[int] = SimpleQueue()
        for _ in range(streams):
            for device in range(model.devices):
                self.free.put(device)

    def score(self, inputs: list[Input], lot: Lot, metadata: Mapping[str, NDArray[np.float32]] | None = None) -> Scored:
        """Return a row for every input of a lot, and release it. From any thread.

        `metadata` holds, by a scan's name, its row (width,) of `model.info.encoding`; of a scan without one all is
        missing. Raises `MachineError` where not even one scan fits into memory.
        """
        decoded = [one for one, scan in zip(inputs, lot.scans, strict=True) if scan.status == "ok"]
        device = self.free.get()
        try:
            found = iter(self._outputs(lot.images, self._metadata(decoded, metadata), device))
        finally:
            self.free.put(device)
        images = iter(lot.images)
        rows = []
        for one, scan in zip(inputs, lot.scans, strict=True):
            patient, study = self.whose(one, scan) if self.whose else ("", "")
            row = Row(one.name, scan.status, scan.reason, None, _doubt(one.name, scan.reason), patient, study)
            if scan.status == "ok":
                row = self._row(row, one, next(images), *next(found))
            rows.append(row)
        lot.release()
        return Scored(inputs, rows)

    def _row(
        self,
        row: Row,
        one: Input,
        pixels: NDArray[np.uint8],
        scores: NDArray[np.float32],
        cams: NDArray[np.float32] | None,
    ) -> Row:
        if not np.isfinite(scores).all():
            return row._replace(status="failed", error="the model gave a score that is no number")
        if self.draw and cams is not None:
            self.draw(one, pixels, cams)
        return row._replace(error="", scores=scores, remark=row.error)

    def _metadata(
        self, decoded: Sequence[Input], metadata: Mapping[str, NDArray[np.float32]] | None
    ) -> NDArray[np.float32] | None:
        encoding = self.model.info.encoding
        if encoding is None or metadata is None:
            return None
        nothing = encoding.nothing
        rows = [metadata.get(one.name, nothing) for one in decoded]
        return np.array(rows, np.float32).reshape(len(rows), encoding.width)

    def _outputs(
        self, images: NDArray[np.uint8], metadata: NDArray[np.float32] | None, device: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Return the scores and maps of every image, scored in pieces as large as memory allows."""
        start = 0
        pieces: list[Output] = []
        while start < len(images):
            piece = slice(start, min(start + self.most, len(images)))
            try:
                own = None if metadata is None else metadata[piece]
                pieces.append(self.model.run(images[piece], own, device, cams=self.draw is not None))
            except OutOfMemory as error:
                size = piece.stop - piece.start
                if size == 1:
                    raise MachineError(
                        "there is not enough memory to score even one scan at a time",
                        fix="free some memory; on a GPU: --device cpu",
                    ) from error
                self.most = min(self.most, size // 2)
                continue
            start = piece.stop
        return [
            (scores, None if output.cams is None else output.cams[row])
            for output in pieces
            for row, scores in enumerate(output.scores)
        ]


class Pipeline:
    """A model at work: `streams` threads on each of its devices, `workers` processes that decode.

    `batch` inputs are taken at a time. Where that many images do not fit into memory they are scored in pieces from
    then on: `most` is how many at a time. `metadata` holds, by a scan's name, its row (width,) of
    `model.info.encoding`; of a scan without one all is missing. `whose` is asked for the ids of every scan that was
    decoded, `draw` is given every scan that was scored, from any thread, before its row is yielded.
    """

    def __init__(
        self,
        model: Model,
        *,
        workers: int,
        batch: int,
        streams: int = 1,
        metadata: Mapping[str, NDArray[np.float32]] | None = None,
        whose: Whose | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.scorer = Scorer(model, batch, streams, whose, draw)
        self.workers, self.batch, self.metadata = workers, batch, metadata
        self.threads = self.scorer.threads

    @property
    def most(self) -> int:
        """How many scans are scored at a time: fewer than `batch` where those did not fit into memory."""
        return self.scorer.most

    def rows(self, inputs: Iterable[Input]) -> Iterator[Scored]:
        """Yield the lots in order, each with a row for every input.

        Raises `MachineError` where not even one scan fits into memory, or processes cannot start.
        """
        taken: deque[Input] = deque()

        def places() -> Iterator[Place | Refused]:
            for one in inputs:
                # What the decoder needs of a compressed archive is let go by it; held here, it would fill the memory.
                taken.append(one._replace(place=one.place._replace(content=None)))
                yield one.source

        # One lot waits for each thread, so that none is idle while the next ones are decoded.
        waiting = 2 * self.threads
        pending: deque[Future[Scored]] = deque()
        lots = batches(
            places(),
            self.scorer.model.info.contract,
            self.workers,
            self.batch,
            ids=self.scorer.whose is not None,
            ahead=waiting + 2,
        )
        with closing(lots), ThreadPoolExecutor(self.threads) as pool:
            try:
                for lot in lots:
                    pending.append(
                        pool.submit(self.scorer.score, [taken.popleft() for _ in lot.scans], lot, self.metadata)
                    )
                    # What is done is handed on, so that it is on the disk should the next lots take their time.
                    while pending and (len(pending) > waiting or pending[0].done()):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


def _doubt(name: str, reason: str) -> str:
    """Return what is remarkable of a file that was passed over; macOS writes a `._a.dcm` beside every `a.dcm`."""
    path = PurePath(name)
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")
    return f"{NO_IMAGE}, though named like one: damaged?" if named and reason == NO_IMAGE else ""
