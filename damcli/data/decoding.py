"""One scan decoded whatever it holds, and the process that does nothing else: the far end of `damcli.data.feeding`."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from damcli.data import ring
from damcli.data.archives import Place
from damcli.data.images import Contract, NotAnImage, NotShown, read
from damcli.errors import DataError

Status = Literal["ok", "failed", "skipped"]

# Of a worker, all told. The 60 megapixels of the largest detectors take half of it, with 16 bits.
MEMORY_LIMIT = 2**30
# What a worker writes first. Then it answers each task with a line.
READY = b"ready\n"


class Result(NamedTuple):
    """What became of a scan: `pixels` where `status` is ok, with what is remarkable or "", else None and the reason."""

    pixels: NDArray[np.uint8] | None
    status: Status
    reason: str
    patient: str = ""
    study: str = ""


def attempt(place: Path | Place, contract: Contract, ids: bool = False) -> Result:
    """Decode a scan, and say what is wrong with it where that fails; "skipped" is what is no image by its content.

    With `ids`, the result says whose scan it is by its DICOM header, also where its image cannot be shown.

    >>> attempt(Path("nowhere.dcm"), Contract(size=8, channels=1))[:3]
    (None, 'failed', 'the file cannot be read: No such file or directory')
    """
    try:
        scan = read(place, contract)
        return Result(scan.pixels, "ok", scan.remark, *(scan[2:] if ids else ()))
    except NotShown as error:
        return Result(None, "failed", error.what, *((error.patient, error.study) if ids else ()))
    except NotAnImage as error:
        return Result(None, "skipped", error.what)
    except DataError as error:
        return Result(None, "failed", error.what)
    except MemoryError:
        return Result(None, "failed", f"decoding it takes more than {MEMORY_LIMIT >> 30} GiB of memory")
    except Exception as error:  # what no one foresaw in one scan must not end a run of a million
        return Result(None, "failed", f"the decoder failed ({type(error).__name__})")


def task(slot: int, place: Path | Place) -> tuple[bytes, bytes]:
    """Return a task for `serve`: a line, and the bytes to send behind it."""
    path, member, extent, content = place if isinstance(place, Place) else Place(place)
    length = None if content is None else len(content)
    return json.dumps([slot, str(path), member, extent, length]).encode() + b"\n", content or b""


def serve(contract_json: str, memory: int, ids: bool) -> None:
    """Be a worker process until stdin ends: read tasks there, put images into `memory`, answer each on stdout.

    An answer is a line of JSON: status, reason, patient, study. When it is there, so is the image.
    """
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    # From here on no decoder's note can get among the replies …
    os.dup2(silence, 1)
    contract = Contract.model_validate_json(contract_json)
    cv2.setNumThreads(1)
    _end_with_parent()
    _limit_memory()
    # … and none can reach the terminal, while what kept this process from starting was still seen.
    os.dup2(silence, 2)
    with suppress(BrokenPipeError):
        replies.write(READY)
        replies.flush()
        for line in sys.stdin.buffer:
            replies.write(json.dumps(_done(line, sys.stdin.buffer, contract, memory, ids)).encode() + b"\n")
            replies.flush()


def _done(line: bytes, tasks: IO[bytes], contract: Contract, memory: int, ids: bool) -> tuple[str, ...]:
    slot, path, member, extent, length = json.loads(line)
    content = None if length is None else tasks.read(length)
    place = Place(Path(path), member, extent and tuple(extent), content)
    pixels, *said = attempt(place, contract, ids)
    if pixels is not None:
        ring.put(memory, slot, pixels)
    return tuple(said)


def _end_with_parent() -> None:
    """Let Linux end this process when the one that started it is killed, also while a decoder hangs.

    Elsewhere it ends when it next reads a task.
    """
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


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
