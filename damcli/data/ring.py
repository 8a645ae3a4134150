"""Shared memory that decoded scans lie in: without a name, so that nothing is left of it once all processes ended."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damcli.errors import MachineError
from damcli.files import disk_errors

_ZEROS = bytes(2**20)


class Ring:
    """`slots` places of shared memory, each for a scan of `shape` uint8: `images` (slots, *shape) shows them all.

    Other processes are handed the file `descriptor` and `put` scans there. They do not map the memory, so that a
    decoder gone astray cannot write into another's scan. The memory lives as long as an array shows it.

    Raises `MachineError` where there is no room for it.

    >>> ring = Ring(3, (2, 2))
    >>> put(ring.descriptor, 1, np.full((2, 2), 7, np.uint8))
    >>> ring.images[:, 0, 0]
    array([0, 7, 0], dtype=uint8)
    >>> ring.close()
    """

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        size = slots * math.prod(shape)
        self.descriptor = _anonymous(size)
        self.images: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        self.images.shape = (slots, *shape)

    def close(self) -> None:
        """Give up the file; arrays that show the memory stay good."""
        os.close(self.descriptor)


def put(descriptor: int, slot: int, image: NDArray[np.uint8]) -> None:
    """Write a contiguous image into its slot of the ring that is this file."""
    data = image.data.cast("B")
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], slot * len(data) + done)


def _anonymous(size: int) -> int:
    """Return a file of zeros that has no name: in memory where the system can, else among the temporary files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("damcli")
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            os.close(descriptor)
            raise MachineError(
                f"{size:,} bytes of shared memory cannot be had: {error.strerror}",
                fix="decode in one process (--workers 0), fewer scans at a time (--batch), or raise ulimit -f",
            ) from error
        return descriptor
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile(buffering=0) as file:
        # Written in full: where a disk fills up behind a mapping, the system kills whoever touches it.
        for start in range(0, size, len(_ZEROS)):
            file.write(_ZEROS[: size - start])
        return os.dup(file.fileno())
