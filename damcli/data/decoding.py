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

from damcli.data.images import Contract, NotAnImage, read_noted
from damcli.errors import DataError

Status = Literal["ok", "failed", "skipped"]
Result = tuple[NDArray[np.uint8] | None, Status, str]

PIPE_BYTES = 2**20
# Of a worker, all told. The 60 megapixels of the largest detectors take half of it, with 16 bits.
MEMORY_LIMIT = 2**30
# What a worker writes: READY once, then for each scan a status and two lengths of what follows: the pixels, and in
# UTF-8 the reason or what is remarkable.
READY = b"r"
REPLY = struct.Struct("<cII")
STATUS: dict[bytes, Status] = {b"o": "ok", b"f": "failed", b"s": "skipped"}


def attempt(path: Path, contract: Contract) -> Result:
    """Return (pixels, "ok", what is remarkable or ""), or None with "skipped" or "failed" and the reason.

    "skipped" is what is no image by its content.

    >>> attempt(Path("nowhere.dcm"), Contract(size=8, channels=1))
    (None, 'failed', 'the file cannot be read: No such file or directory')
    """
    try:
        pixels, remark = read_noted(path, contract)
        return pixels, "ok", remark
    except NotAnImage as error:
        return None, "skipped", error.what
    except DataError as error:
        return None, "failed", error.what
    except MemoryError:
        return None, "failed", f"decoding it takes more than {MEMORY_LIMIT >> 30} GiB of memory"
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
            data = b"" if pixels is None else pixels.data.cast("B")
            text = reason.encode()
            replies.write(REPLY.pack(status[:1].encode(), len(data), len(text)))
            replies.write(data)
            replies.write(text)
            replies.flush()


def _limit_memory() -> None:
    """Bound this process, so that a small file that claims to be huge fails alone and not the machine.

    Where there is no /proc (not Linux) it is left unbound.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        # The limit is on data that is reserved, of which the stacks of sleeping threads are a part but take no memory.
        # Not from getrusage: its peak is that of the process which started this one, where that was larger.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        reserved, used = (int(status[key].split()[0]) * 1024 for key in ("VmData", "VmRSS"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (reserved + MEMORY_LIMIT - used, hard))
