"""What a run's tune part decided, and what its scans are like: `decisions.json` and `reference.json`.

Both are about the best checkpoint's network and no other. One that was made with another network, or was changed since
it was written, is refused: thresholds that silently belong to other scores are worse than none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from damcli import files
from damcli.errors import DataError
from damcli.metrics import decisions, drift
from damcli.metrics.decisions import Decisions
from damcli.metrics.drift import Reference, Sample
from damcli.training import checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from damcli.data.store import Dataset

DECISIONS, REFERENCE = "decisions.json", "reference.json"
SCANS = 1_000  # whose pixels a run's reference holds
BATCH = 32
Kept = TypeVar("Kept", Decisions, Reference)


def read(run: Path) -> Decisions | None:
    """Return what the tune part of a run decided; None where nothing was decided yet.

    Raises `DataError` for a file that is damaged, was changed, or was made with other weights than the best
    checkpoint's.
    """
    again = f"decide again: damcli evaluate {run} --operating RULE; or remove the file"
    return _read(run, DECISIONS, Decisions, decisions.SCHEMA_VERSION, again)


def write(run: Path, made: Decisions) -> None:
    """Keep what the tune part of a run decided, in place of what it decided before."""
    _write(run, DECISIONS, made)


def read_reference(run: Path) -> Reference | None:
    """Return what a run's tune scans and their scores are like; None for a run that kept none. Raises as `read`."""
    again = f"remove the file, and make it again: damcli train --resume {run}"
    return _read(run, REFERENCE, Reference, drift.SCHEMA_VERSION, again)


def write_reference(run: Path, made: Reference) -> None:
    """Keep what a run's tune scans and their scores are like."""
    _write(run, REFERENCE, made)


def refer(
    findings: Sequence[str],
    scores: npt.NDArray[np.floating[Any]],
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    scans: int = SCANS,
    views: int = 1,
    weights_sha256: str | None = None,
) -> Reference:
    """Return what scans are like: their `scores` (n,K), and the pixels of at most `scans` of `rows`, evenly chosen."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, scans).astype(np.int64))]
    lots = (dataset.read(chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH))
    pixels = drift.gathered(drift.pixel_statistics(lot) for lot in lots)
    return Reference(
        scans=len(scores),
        scores={name: Sample.of(scores[:, k]) for k, name in enumerate(findings)},
        pixels={name: Sample.of(values) for name, values in pixels.items()},
        views=views,
        weights_sha256=weights_sha256,
    )


def _read(run: Path, name: str, kind: type[Kept], version: int, again: str) -> Kept | None:
    path = run / name
    if not path.exists():
        return None
    raw = files.read_json(path, "run")
    if not isinstance(raw, dict) or raw.pop("seal", None) != _seal(raw):
        raise DataError(f"{name} was changed or damaged since it was written", where=path, fix=again)
    if raw.get("schema_version") != version:
        found = raw.get("schema_version")
        raise DataError(f"{name} has format {found}, this damcli reads {version}", where=path, fix=again)
    try:
        kept = kind.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{name} is damaged", where=path, fix=again) from error
    if kept.weights_sha256 != checkpoint.weights_sha256(run):
        raise DataError(f"{name} was made with other weights than those of the best checkpoint", where=path, fix=again)
    return kept


def _write(run: Path, name: str, made: Decisions | Reference) -> None:
    assert made.weights_sha256 == checkpoint.weights_sha256(run), "made with the best checkpoint"
    content = made.model_dump(mode="json")
    files.write_json(run / name, {**content, "seal": _seal(content)})


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
