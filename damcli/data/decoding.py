"""One scan decoded whatever it holds, and the process that does nothing else: the far end of `damcli.data.workers`."""

from __future__ import annotations

import json
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from damcli.data.images import Contract, NotAnImage, read_scan
from damcli.errors import DataError

Status = Literal["ok", "failed", "skipped"]
Result = tuple[NDArray[np.uint8] | None, Status, str]

PIPE_BYTES = 2**20
MEMORY_LIMIT = 2**33
# What a worker writes: READY once, then for each scan a status and the length of what follows, which is the pixels or
# the reason in UTF-8.
READY = b"r"
REPLY = struct.Struct("<cI")
STATUS: dict[bytes, Status] = {b"o": "ok", b"f": "failed", b"s": "skipped"}


def attempt(path: Path, contract: Contract) -> Result:
    """Return (pixels, "ok", ""), or None with "skipped" (no image by its content) or "failed" and the reason.

    >>> attempt(Path("nowhere.dcm"), Contract(size=8, channels=1))
    (None, 'failed', 'the file cannot be read: No such file or directory')
    """
    try:
        return read_scan(path, contract), "ok", ""
    except NotAnImage as error:
        return None, "skipped", error.what
    except DataError as error:
        return None, "failed", error.what
    except MemoryError:
        return None, "failed", "decoding it takes more memory than there is"
    except Exception as error:  # what no one foresaw in one scan must not end a run of a million
        return None, "failed", f"the decoder failed ({type(error).__name__})"


def serve(contract_json: str) -> None:
    """Be a worker process: read paths from stdin, one JSON text a line, and write replies to stdout, until it ends."""
    replies = os.fdopen(os.dup(1), "wb", PIPE_BYTES)
    silence = os.open(os.devnull, os.O_WRONLY)
    # From here on no decoder's note can get among the replies …
    os.dup2(silence, 1)
    contract = Contract.model_validate_json(contract_json)
    cv2.setNumThreads(1)
    _limit_memory()
    # … and none can reach the terminal, while what kept this process from starting was still seen.
    os.dup2(silence, 2)
    with suppress(BrokenPipeError):
        replies.write(READY)
        replies.flush()
        for line in sys.stdin.buffer:
            pixels, status, reason = attempt(Path(json.loads(line)), contract)
            data = reason.encode() if pixels is None else pixels.data.cast("B")
            replies.write(REPLY.pack(status[:1].encode(), len(data)))
            replies.write(data)
            replies.flush()


def _limit_memory() -> None:
    """Bound this process, so that a small file that claims to be huge fails alone and not the machine."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, hard))
