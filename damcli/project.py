"""A project folder: where `data/`, `runs/` and `models/` lie when a command is given no path.

Each finder returns what it took; where there is nothing to take, or two things equally good, the error lists
what was looked at and how to say it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from damcli.errors import UsageError


def newest_dataset() -> Path:
    """Return the newest dataset under `data/`."""
    return _newest("dataset", Path("data").glob("[!.]*/dataset.json"), "damcli prepare", "name it: DATASET").parent


def newest_run() -> Path:
    """Return the newest run under `runs/`."""
    return _newest("run", Path("runs").glob("[!.]*/config.toml"), "damcli train", "name it: RUN").parent


def newest_model() -> Path:
    """Return the newest model under `models/`."""
    return _newest("model", Path("models").glob("[!.]*.onnx"), "damcli export", "name it: --model NAME.onnx")


def _newest(kind: str, candidates: Iterable[Path], maker: str, fix: str) -> Path:
    ranked = sorted(candidates, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    folder = {"dataset": "data", "run": "runs", "model": "models"}[kind]
    if not ranked:
        fix = f"{fix}, or make one: {maker}"
        raise UsageError(f"there is no {kind} under {folder}/ here", where=Path.cwd(), fix=fix)
    if len(ranked) > 1 and ranked[0].stat().st_mtime_ns == ranked[1].stat().st_mtime_ns:
        raise UsageError(f"two {kind}s are equally new: {ranked[0]}, {ranked[1]}", where=Path.cwd(), fix=fix)
    return ranked[0]
