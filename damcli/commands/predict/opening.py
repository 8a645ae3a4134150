"""The model of a prediction: opened here or on a cluster, so that it can be asked what it takes, then put to work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from damcli.bundle.pipeline import Pipeline
    from damcli.bundle.schema import ModelInfo
    from damcli.cluster.scoring import Scoring
    from damcli.cluster.session import Session
    from damcli.data.remote import Mirror

# More calls than this at a time would only take memory.
MAX_STREAMS = 8
# On a GPU: while one batch is computed, the next one is copied.
GPU_STREAMS = 2


@dataclass(frozen=True)
class Opened:
    """A model that was opened. `start(metadata=…, whose=…, draw=…)` puts it to work, `batch` inputs at a time."""

    info: ModelInfo
    sha256: str
    provider: str
    provider_note: str
    fell_back: bool
    batch: int
    start: Callable[..., Pipeline | Scoring]


def here(
    path: Path, device: str, require_gpu: bool, threads: int | None, workers: int | None, batch: int | None
) -> Opened:
    """Open the model on this machine. Raises what `Model.open` and `best_batch` do."""
    from damcli.bundle.batching import best_batch
    from damcli.bundle.pipeline import Pipeline
    from damcli.bundle.runtime import Model
    from damcli.data.workers import cores

    computing = threads or cores()
    streams = min(computing, MAX_STREAMS)
    model = Model.open(path, device, require_gpu, threads=computing // streams, streams=streams)
    streams = GPU_STREAMS if model.on_gpu else streams
    at_a_time = batch or best_batch(model, streams)
    processes = cores() if workers is None else workers

    def start(**asked: Any) -> Pipeline:
        return Pipeline(model, workers=processes, batch=at_a_time, streams=streams, **asked)

    said = model.info, model.sha256, model.provider, model.provider_note, model.fell_back
    return Opened(*said, at_a_time, start)


def on(
    cluster: Session,
    path: Path,
    device: str,
    require_gpu: bool,
    threads: int | None,
    batch: int | None,
    mirror: Mirror | None,
) -> Opened:
    """Open the model on the workers of a cluster. Raises what `Scoring` does."""
    from damcli.cluster.scoring import Scoring

    model = Scoring(cluster, path, device, require_gpu, batch=batch, threads=threads, mirror=mirror)

    def start(**asked: Any) -> Scoring:
        model.metadata, model.whose, model.draw = asked["metadata"], asked["whose"], asked["draw"]
        return model

    said = model.info, model.sha256, model.provider, model.provider_note, model.fell_back
    return Opened(*said, model.batch, start)
