"""Checkpoints: safetensors and JSON in `checkpoints/{last,previous,best}/`, hashed, replaced whole, never pickled.

`previous` is the last one but one: a run whose `last` was damaged goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError

from damcli import files
from damcli.config import Strict
from damcli.errors import DataError
from damcli.training.folder import RunInfo, read_run

if TYPE_CHECKING:
    from damcli.deepauc.network import Classifier

__all__ = ["Progress", "latest", "load_network", "load_state", "load_weights", "read_run", "restore", "save"]

SCHEMA_VERSION = 3  # 3: what a run went on with (`made_on`), and the figure that the best epoch was chosen by
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
MEND = "take it from a backup, or train again"
Which = Literal["last", "previous", "best"]


class NotFinite(DataError):  # noqa: N818
    """A run's numbers are no longer finite: what all its processes find at the same place."""


class Best(Strict):
    """The epoch (counted from 1) of the last stage that did best on the tune part, and the AUROC that says so.

    None where that is undefined.
    """

    epoch: int
    auroc: float | None


class Progress(Strict):
    """How far a run is: `epoch` and `step` are what is done of `stage`, `steps` the steps of the whole stage.

    Per finding: `seen` counts the positives of the epoch so far, `risen` says whether α has left 0 in the stage.
    `metrics_bytes` is the size of the metrics up to here: what is written after it, a resumed run writes again.
    `skipped` counts the steps of the stage that fp16 could not make.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    seen: tuple[int, ...] = ()
    risen: tuple[bool, ...] = ()
    best: Best | None = None
    metrics_bytes: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        return f"stage {self.stage} after {self.epoch} epochs and {self.step} steps"


class _State(Strict):
    schema_version: int
    sha256: dict[str, str]
    progress: Progress
    made_on: dict[str, str]
    training: dict[str, Any]


def save(
    run: Path,
    which: Literal["last", "best"],
    progress: Progress,
    weights: Mapping[str, torch.Tensor],
    training: Mapping[str, Any],
    made_on: Mapping[str, str] | None = None,
) -> None:
    """Replace a checkpoint: `weights` is the network's state dict, `training` nested dicts and lists of tensors,
    numbers and text (states of the optimizer and the loss), `made_on` what the figures may depend on besides.

    What was `last` before is kept as `previous`. Raises `NotFinite`: a broken network never takes the place of a sound
    one.
    """
    from safetensors.torch import save as as_bytes

    check_finite(run, progress, weights)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _pack(training, "", tensors)
    previous = run / "checkpoints" / "previous" if which == "last" else None
    with files.replacing_folder(run / "checkpoints" / which, previous) as folder:
        for name, content in ((MODEL, weights), (TRAINING, tensors)):
            # In memory first: then it is the operating system, not safetensors, that says when the disk is full.
            data = as_bytes({key: value.detach().cpu().contiguous() for key, value in content.items()})
            (folder / name).write_bytes(data)
        hashes = {name: files.sha256(folder / name) for name in (MODEL, TRAINING)}
        state = {
            "schema_version": SCHEMA_VERSION,
            "sha256": hashes,
            "progress": progress.model_dump(mode="json"),
            "made_on": dict(made_on or {}),
            "training": skeleton,
        }
        files.write_json(folder / STATE, {**state, "seal": _seal(state)})


def check_finite(run: Path, progress: Progress, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise `NotFinite` where a weight is no finite number."""
    if not all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point()):
        raise NotFinite(
            f"the network's weights are no longer finite numbers at {progress}",
            where=run,
            fix="train again with a lower learning rate; the checkpoint before this one is kept",
        )


@dataclass(frozen=True)
class Latest:
    """The newest checkpoint that is whole: which one, how far it is, what it was made on.

    `doubt` says why it is not the last one.
    """

    which: Which
    progress: Progress
    made_on: dict[str, str]
    doubt: str | None


def latest(run: Path) -> Latest | None:
    """Return where a run goes on: its last checkpoint, or the one before if that is damaged; None before the first.

    Every byte is checked. Raises `DataError` where neither is whole.
    """
    broken: DataError | None = None
    which: Which
    for which in ("last", "previous"):
        folder = _folder(run, which)
        if folder is None:
            continue
        try:
            state = _state(folder)
            for name in (MODEL, TRAINING):
                _check(folder, name, state)
        except DataError as error:
            broken = broken or error
            continue
        return Latest(which, state.progress, state.made_on, str(broken) if broken else None)
    if broken:
        raise broken
    return None


def settle(run: Path, which: Which) -> None:
    """Make the checkpoint that a run goes on from its last one, so that a damaged one is never kept for it."""
    last = run / "checkpoints" / "last"
    if which == "previous":
        shutil.rmtree(last, ignore_errors=True)
        shutil.rmtree(last.parent / ".last.old", ignore_errors=True)
        (last.parent / "previous").rename(last)


def read_progress(run: Path, which: Which = "last") -> Progress | None:
    """Return how far a checkpoint is; None where there is none yet. Raises `DataError` for a damaged one."""
    folder = _folder(run, which)
    return _state(folder).progress if folder else None


def weights_file(run: Path) -> Path:
    """Return the weights of a run's last checkpoint, to start another run from. Raises `DataError` if there is none."""
    folder, state = _existing(run, "last")
    _check(folder, MODEL, state)
    return folder / MODEL


def load_weights(run: Path, which: Which) -> dict[str, torch.Tensor]:
    """Return the network's state dict. Raises `DataError` where there is none, or a byte of it changed."""
    folder, state = _existing(run, which)
    return _tensors(folder, MODEL, state)


def load_state(run: Path, which: Which = "last") -> dict[str, Any]:
    """Return what `save` was given as `training`. Raises `DataError` as `load_weights`."""
    folder, state = _existing(run, which)
    return dict(_unpack(state.training, _tensors(folder, TRAINING, state)))


def load_network(run: Path, which: Which = "best") -> tuple[Classifier, RunInfo]:
    """Return a run's network on the CPU in evaluation mode, and the run it is from.

    Raises `DataError` where the folder is no run, has no such checkpoint yet, or a damaged one.
    """
    from damcli.deepauc.network import Classifier

    info = read_run(run)
    recipe = info.recipe
    network = Classifier(recipe.backbone, len(info.findings), in_chans=recipe.in_chans, activation=recipe.activation)
    restore(network, run, which)
    return network.eval(), info


def restore(network: Classifier, run: Path, which: Which) -> None:
    """Load a checkpoint's weights into `network`. Raises `DataError` as `load_weights`, and where they do not fit."""
    try:
        network.load_state_dict(load_weights(run, which))
    except RuntimeError as error:
        raise DataError(
            f"the {which} checkpoint is not one of {network.backbone_name} with {network.num_findings} findings",
            where=run,
            fix="was config.toml or run.json changed? " + MEND,
        ) from error


def weights_sha256(run: Path, which: Which = "best") -> str:
    """Return the SHA-256 of a checkpoint's weights, as recorded when they were written."""
    return _existing(run, which)[1].sha256[MODEL]


def _folder(run: Path, which: Which) -> Path | None:
    return files.settled_folder(run / "checkpoints" / which)


def _existing(run: Path, which: Which) -> tuple[Path, _State]:
    folder = _folder(run, which)
    if folder is None:
        raise DataError(
            f"this run has no {which} checkpoint yet",
            where=run,
            fix=f"train it to its end: damcli train --resume {run}",
        )
    return folder, _state(folder)


def _state(folder: Path) -> _State:
    raw = files.read_json(folder / STATE, "checkpoint")
    damaged = DataError(
        "the checkpoint is damaged: state.json has changed since it was written", where=folder / STATE, fix=MEND
    )
    if not isinstance(raw, dict) or raw.pop("seal", None) != _seal(raw):
        raise damaged
    if raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version")
        raise DataError(f"this checkpoint has format {version}, this damcli reads {SCHEMA_VERSION}", where=folder)
    try:
        return _State.model_validate(raw)
    except ValidationError as error:
        raise damaged from error


def _seal(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _tensors(folder: Path, name: str, state: _State) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    _check(folder, name, state)
    return load_file(folder / name)


def _check(folder: Path, name: str, state: _State) -> None:
    path = folder / name
    if not path.is_file() or files.sha256(path) != state.sha256.get(name):
        what = "has changed since it was written" if path.is_file() else "is missing"
        raise DataError(f"the checkpoint is damaged: {name} {what}", where=path, fix=MEND)


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON can hold it; its tensors go into `tensors`, named by where they were."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        # Restored as they were, because the layout decides how a sum is grouped, and so its last bits.
        last = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        return {"tensor": name, "channels_last": last}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return {key: _unpack(item, tensors) for key, item in value["items"]}
    tensor = tensors[value["tensor"]]
    return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
