"""The benchmark sets that come as arrays, many images in a file: CIFAR, STL-10, MedMNIST, LibAUC's cats and dogs.

FORMATS section 9. Nothing in a file is ever executed: CIFAR's pickles are read by an unpickler that knows arrays and
plain containers only, NumPy's files without their pickles.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from damcli.errors import DataError

Image = npt.NDArray[np.uint8]
RECORD = 3 * 32 * 32  # bytes of a CIFAR image: the red plane, the green, the blue, row by row
STL_SIDE = 96


@dataclass(frozen=True)
class Block:
    """The images of one file and split, in its order. `labels` int64 is (n,), or (n, K) of 0 and 1.

    `images` yields them one by one, uint8 (H, W) or (H, W, 3), reading no more than it must at a time.
    """

    file: Path
    split: str
    labels: npt.NDArray[np.int64]
    images: Callable[[], Iterator[Image]]
    side: int
    colour: bool


def cifar(folder: Path) -> list[Block]:
    """Read CIFAR-10 or CIFAR-100 in Python's or in its binary form. Raises `DataError` for files that are neither."""
    suffix = ".bin" if (folder / "data_batch_1.bin").is_file() or (folder / "train.bin").is_file() else ""
    if (folder / f"data_batch_1{suffix}").is_file():
        named = [(f"data_batch_{n}", "train") for n in range(1, 6)] + [("test_batch", "test")]
        label_bytes, key, classes = 1, b"labels", 10
    else:
        named, label_bytes, key, classes = [("train", "train"), ("test", "test")], 2, b"fine_labels", 100
    blocks = []
    for name, split in named:
        file = folder / (name + suffix)
        if suffix:
            records = _records(file, label_bytes + RECORD)
            # CIFAR-100 gives the coarse label first.
            labels, pixels = records[:, label_bytes - 1].astype(np.int64), partial(_binary, file, label_bytes)
        else:
            labels, pixels = np.array(_unpickled(file, key)[key], np.int64), partial(_pixels, file, key)
        _check_labels(labels, classes, file)
        blocks.append(Block(file, split, labels, partial(_planes, pixels), side=32, colour=True))
    return blocks


def stl10(folder: Path) -> list[Block]:
    """Read STL-10's labelled images: planes stored column by column, labels from 1. Raises `DataError`."""
    blocks = []
    for split in ("train", "test"):
        file, label_file = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
        labels = _records(label_file, 1)[:, 0].astype(np.int64) - 1
        records = _records(file, 3 * STL_SIDE**2)
        if len(records) != len(labels):
            raise DataError(f"{len(records)} images have {len(labels)} labels", where=file)
        _check_labels(labels, 10, label_file)
        blocks.append(Block(file, split, labels, partial(_columns, records), STL_SIDE, colour=True))
    return blocks


def cats_and_dogs(folder: Path) -> list[Block]:
    """Read LibAUC's `cat_vs_dog_data.npy` and its labels; the last 5,000 are the test set. Raises `DataError`."""
    file, label_file = folder / "cat_vs_dog_data.npy", folder / "cat_vs_dog_label.npy"
    data, labels = npy(file), npy(label_file).reshape(-1).astype(np.int64)
    if data.dtype != np.uint8 or data.ndim != 4 or data.shape[1] != data.shape[2] or data.shape[3] != 3:
        raise DataError(f"images must be uint8 (N, S, S, 3), got {data.dtype} {data.shape}", where=file)
    if len(data) != len(labels) or len(data) <= 5000:
        raise DataError(f"{len(data)} images have {len(labels)} labels, and 5000 are the test set", where=file)
    _check_labels(labels, 2, label_file)
    start = len(data) - 5000
    return [
        Block(file, "train", labels[:start], lambda: iter(data[:start]), data.shape[1], colour=True),
        Block(file, "test", labels[start:], lambda: iter(data[start:]), data.shape[1], colour=True),
    ]


def medmnist(file: Path) -> list[Block]:
    """Read a MedMNIST `.npz`; its `val` becomes `valid`. Raises `DataError`, for the volumes of its 3D sets too."""
    blocks = []
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        with _reading(file):
            labels = np.load(file, allow_pickle=False)[f"{name}_labels"].astype(np.int64)
        with _member(file, f"{name}_images") as (_, shape):
            pass
        colour = len(shape) == 4 and shape[3] == 3
        if not (len(shape) == 3 or colour) or shape[1] != shape[2]:
            volumes = ": volumes are not images" if len(shape) == 4 else ""
            raise DataError(f"{name}_images has shape {shape}, not (N, S, S) or (N, S, S, 3){volumes}", where=file)
        if len(labels) != shape[0]:
            raise DataError(f"{name}: {shape[0]} images have {len(labels)} labels", where=file)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        blocks.append(Block(file, split, labels, partial(_streamed, file, f"{name}_images"), shape[1], colour))
    return blocks


class _Plain(pickle.Unpickler):
    """Knows what NumPy's arrays are made of, and nothing else: any other name in a pickle is refused unread."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise DataError(f"this pickle asks for {module}.{name}, which no CIFAR file needs: nothing of it was run")


def _unpickled(file: Path, key: bytes) -> dict[bytes, Any]:
    """Read a batch of CIFAR's, whose labels are under `key`."""
    try:
        with file.open("rb") as handle:
            loaded = _Plain(handle, encoding="bytes").load()
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror}", where=file) from error
    except DataError as error:
        raise DataError(error.what, where=file, fix="download the set again from its authors") from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise DataError(f"this is no CIFAR file: {type(error).__name__}", where=file) from error
    data = loaded.get(b"data") if isinstance(loaded, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != RECORD:
        raise DataError(f"this is no CIFAR file: it holds no uint8 data of {RECORD} bytes an image", where=file)
    labels = loaded.get(key)
    if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(x, int) for x in labels):
        raise DataError("this is no CIFAR file: its labels are not one number per image", where=file)
    return dict(loaded)


def _pixels(file: Path, key: bytes) -> Image:
    return np.asarray(_unpickled(file, key)[b"data"])


def _binary(file: Path, label_bytes: int) -> Image:
    return _records(file, label_bytes + RECORD)[:, label_bytes:]


def _planes(records: Callable[[], Image]) -> Iterator[Image]:
    for record in records():
        yield record.reshape(3, 32, 32).transpose(1, 2, 0)


def _columns(records: Image) -> Iterator[Image]:
    for record in records:
        yield record.reshape(3, STL_SIDE, STL_SIDE).transpose(2, 1, 0)


def _records(file: Path, size: int) -> Image:
    """Map a file of records of `size` bytes as (n, size)."""
    try:
        length = file.stat().st_size
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror}", where=file) from error
    if not length or length % size:
        raise DataError(f"{length} bytes are no whole number of records of {size}: the file is cut off", where=file)
    return np.memmap(file, np.uint8, mode="r").reshape(-1, size)


def npy(file: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"this is no array of numbers: {error}", where=file) from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what NumPy and zipfile say of a damaged `.npz` into a `DataError`."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"this is no MedMNIST file: {error.args[0]}", where=file) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"this .npz cannot be read: {error}", where=file) from error


@contextmanager
def _member(file: Path, key: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Open an array of an `.npz` behind its header, and return its shape; its images must be uint8."""
    with _reading(file), zipfile.ZipFile(file) as archive, archive.open(key + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if fortran or dtype != np.uint8:
            raise ValueError(f"{key} is {dtype}, not uint8 row by row")
        yield member, shape


def _streamed(file: Path, key: str) -> Iterator[Image]:
    with _member(file, key) as (member, shape):
        size = int(np.prod(shape[1:]))
        for number in range(shape[0]):
            data = member.read(size)
            if len(data) != size:
                raise ValueError(f"{key} is cut off after {number} of {shape[0]} images")
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])


def _check_labels(labels: npt.NDArray[np.int64], classes: int, file: Path) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, of {classes} classes", where=file)
