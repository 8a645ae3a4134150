"""Image shards: plain `.npy` files of uint8, appended to while preparing and read by pread while training.

Reading by pread beats a memory map about five times once a dataset is larger than memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from damcli.errors import DataError
from damcli.files import replacing

SHARD_SCANS = 8192
READERS = 4


def name(number: int) -> str:
    """Return the file name of a shard.

    >>> name(3)
    'images-00003.npy'
    """
    return f"images-{number:05d}.npy"


class Writer:
    """Appends images of one shape to an open `.npy` file."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...]) -> None:
        self.scans = 0
        self._file, self._shape = file, shape
        self._write_header()

    def append(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Append one image, uint8 of the shard's shape."""
        assert pixels.shape == self._shape, f"an image of shape {pixels.shape} in a shard of {self._shape}"
        assert pixels.dtype == np.uint8, f"an image of {pixels.dtype} in a shard of uint8"
        self._file.write(np.ascontiguousarray(pixels).data)
        self.scans += 1

    def finish(self) -> None:
        """Put the number of images into the header, which leaves room for any."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.scans, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def creating(path: Path, shape: tuple[int, ...]) -> Iterator[Writer]:
    """Yield a `Writer` for a new shard of images of `shape`; the file appears whole, or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with creating(Path(folder, name(0)), (2, 2)) as shard:
    ...         shard.append(np.eye(2, dtype=np.uint8))
    ...     np.load(Path(folder, name(0))).tolist()
    [[[1, 0], [0, 1]]]
    """
    with replacing(path) as draft, draft.open("wb") as file:
        writer = Writer(file, shape)
        yield writer
        writer.finish()


class Reader:
    """Images of several shards, read in batches by a few threads.

    Raises `DataError` if a shard is missing, cut short, or holds other images than `shape` uint8.
    """

    def __init__(self, files: Sequence[Path], scans: Sequence[int], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._bytes = int(np.prod(shape))
        self._files = list(files)
        self._offsets = [_data_offset(file, (n, *shape)) for file, n in zip(files, scans, strict=True)]
        self._open: dict[int, int] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(
        self,
        shards: npt.NDArray[np.integer],
        rows: npt.NDArray[np.integer],
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Return the images at (shards, rows), both (n,), as uint8 (n, *shape), in `out` where it is given.

        Neighbouring rows are read in one go. Raises `ValueError` for an `out` that does not fit.
        """
        if out is None:
            out = np.empty((len(rows), *self.shape), np.uint8)
        if out.shape != (len(rows), *self.shape) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous uint8 of shape {(len(rows), *self.shape)}, got {out.shape}")
        if not len(rows):
            return out
        starts = np.flatnonzero(np.r_[True, (np.diff(shards) != 0) | (np.diff(rows) != 1)])
        stops = np.r_[starts[1:], len(rows)]
        runs = list(zip(starts.tolist(), stops.tolist(), shards[starts].tolist(), rows[starts].tolist(), strict=True))
        target = out.data.cast("B")
        with self._lock:
            for shard in {run[2] for run in runs} - self._open.keys():
                self._open[shard] = os.open(self._files[shard], os.O_RDONLY)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="shards")
        if len(runs) == 1:
            self._read_runs(runs, target)
            return out
        jobs = [self._pool.submit(self._read_runs, runs[k::READERS], target) for k in range(READERS)]
        for job in jobs:
            job.result()
        return out

    def _read_runs(self, runs: Sequence[tuple[int, int, int, int]], target: memoryview) -> None:
        for start, stop, shard, row in runs:
            place, end = start * self._bytes, stop * self._bytes
            position = self._offsets[shard] + row * self._bytes
            while place < end:
                got = os.preadv(self._open[shard], [target[place:end]], position)
                if got == 0:
                    raise DataError("a shard of the dataset is cut short", where=self._files[shard], fix=PREPARE_AGAIN)
                place, position = place + got, position + got


PREPARE_AGAIN = "prepare the dataset again into another folder"


def _data_offset(file: Path, shape: tuple[int, ...]) -> int:
    """Return where the images of a shard begin, after checking its header and its length."""
    try:
        with file.open("rb") as handle:
            np.lib.format.read_magic(handle)
            found, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
            offset, size = handle.tell(), os.fstat(handle.fileno()).st_size
    except FileNotFoundError as error:
        raise DataError("a shard of the dataset is missing", where=file, fix=PREPARE_AGAIN) from error
    except ValueError as error:
        raise DataError("a shard of the dataset is no .npy file", where=file, fix=PREPARE_AGAIN) from error
    if found != shape or fortran or dtype != np.uint8 or size != offset + int(np.prod(shape)):
        raise DataError(
            f"a shard of the dataset holds {dtype} {found} in {size} bytes, not uint8 {shape}",
            where=file,
            fix=PREPARE_AGAIN,
        )
    return offset


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
