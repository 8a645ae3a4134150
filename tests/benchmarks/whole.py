"""Whole commands, measured from outside: core-seconds and memory of processes of their own. Used by `scale.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import cost
import numpy as np
import polars as pl
import prepare
import psutil


def manifest(place: Path, scans: int) -> tuple[str, float, float]:
    """Run what `prepare` does once all images are written; as `watched`."""
    folder = place / f"manifest{scans}"
    folder.mkdir()
    return watched("-c", prepare.MANIFEST.replace("224_316", str(scans)), str(folder))


def scores_of(place: Path, scans: int) -> tuple[Path, Path]:
    """Write a table of scores, as `predict` does, and one of labels."""
    rng = np.random.default_rng(0)
    ids = pl.Series("path", [f"patient{n:07}/study1/view1_frontal.dcm" for n in range(scans)])
    truth = rng.random((scans, cost.FINDINGS)) < 0.1
    scores = 1 / (1 + np.exp(-rng.normal(truth - 2.0))).astype(np.float32)
    names = [f"finding {k}" for k in range(cost.FINDINGS)]
    found = []
    for kind, values in (("scores", scores), ("labels", truth.astype(np.int8))):
        frame = pl.DataFrame([ids, *(pl.Series(name, values[:, k]) for k, name in enumerate(names))])
        if kind == "scores":
            frame = frame.with_columns(status=pl.lit("ok"))
        found.append(place / f"{kind}{scans}.csv")
        frame.write_csv(found[-1])
    return found[0], found[1]


def evaluation(place: Path, scans: int, draws: int) -> tuple[str, float, float]:
    """Run `damcli evaluate`; as `watched`."""
    out = place / f"evaluation{scans}-{draws}"
    tables = map(str, scores_of(place, scans))
    return watched("-m", "damcli", "evaluate", *tables, "-o", str(out), "--draws", str(draws), "-q")


def watched(*arguments: str) -> tuple[str, float, float]:
    """Run Python; return what it printed, its core-seconds and its largest memory in bytes.

    The memory is read while it runs: what wait4 says of a process includes what its parent had when it began.
    """
    running = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    status, seconds, memory = psutil.Process(running.pid), 0.0, 0
    while running.poll() is None:
        with suppress(psutil.Error, StopIteration, OSError):
            seconds = sum(status.cpu_times()[:2])
            lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            memory = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
        time.sleep(0.02)
    assert running.stdout is not None
    assert running.returncode == 0, f"it ended with {running.returncode}"
    return running.stdout.read(), seconds, memory
