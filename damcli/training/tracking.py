"""What a run leaves behind of its course: metrics, timings, and the environment it ran in."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from damcli import __version__, files

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
SHOWN_PACKAGES = ("torch", "timm", "lightning-fabric", "numpy", "polars", "safetensors")


def environment(device: torch.device, timings: Mapping[str, float]) -> dict[str, Any]:
    """Return versions, device, cores, command line and time: what a report of the run has to name. No host or user."""
    return {
        "damcli": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in SHOWN_PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision_timings_seconds": dict(timings),
        "command": ["damcli", *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str:
    """Return the installed version of a package."""
    return importlib.metadata.version(package)


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def threads(device: torch.device) -> int:
    """Return how many threads compute on a CPU: they decide how sums are grouped. On a GPU none does."""
    return torch.get_num_threads() if device.type == "cpu" else 0


class Metrics:
    """`metrics.jsonl` and, apart because no two runs share it, `timing.jsonl`: one JSON document per line.

    `kept` is the size in bytes up to which the metrics belong to the checkpoint that is resumed from; what lies
    behind it was written by steps that will be made again.
    """

    def __init__(self, run: Path, kept: int = 0) -> None:
        with files.disk_errors(run):
            self._metrics = (run / METRICS).open("ab")
            self._metrics.truncate(kept)
            self._metrics.seek(0, os.SEEK_END)
            self._timing = (run / TIMING).open("ab")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._metrics.close()
        self._timing.close()

    def write(self, **record: Any) -> None:
        """Append to the metrics, which hold nothing that depends on the clock. NaN is written as null."""
        _append(self._metrics, record)

    def time(self, **record: Any) -> None:
        """Append to the timings."""
        _append(self._timing, record)

    @property
    def size(self) -> int:
        """The size of the metrics in bytes."""
        return self._metrics.tell()

    def sync(self) -> None:
        """Bring the metrics onto the disk."""
        with files.disk_errors(Path(self._metrics.name)):
            os.fsync(self._metrics.fileno())


def _append(file: Any, record: Mapping[str, Any]) -> None:
    finite = {key: _finite(value) for key, value in record.items()}
    with files.disk_errors(Path(file.name)):
        file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        file.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
