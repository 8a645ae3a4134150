"""Where randomness comes from: every draw is a function of the seed and of what it is drawn for.

There is then no generator state to save, and a resumed run draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BITS = 63  # what torch takes as a seed and an int64 holds


def key(seed: int, *purpose: str | int) -> int:
    """Return an integer in [0, 2⁶³) that depends on `seed` and `purpose` only (BLAKE2b).

    >>> key(0, "dropout", 1) == key(0, "dropout", 1) != key(0, "dropout", 2)
    True
    """
    text = "\0".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> (
        64 - BITS
    )


def of_scans(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return an int64 (N,) ≥ 0 per scan id, the same in any order and any dataset."""
    return np.array([key(0, name) for name in ids], np.int64)
