"""The course of a run for TensorBoard, Weights & Biases or MLflow, beside `metrics.jsonl`, which every run has.

Numbers only, named `stage2/step/a/Edema`, `stage2/epoch/tune_auroc/Edema`: no scan, path, user or host is handed on, of
the run its folder's name. Nothing leaves the machine unless the vendor's own settings say so: W&B writes an offline
run (`WANDB_MODE=online` sends it), MLflow a file (`MLFLOW_TRACKING_URI` names a server); what they measure of their own
use is off. Lightning Fabric brings a logger for TensorBoard alone, so all three are called by their own clients.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from damcli.errors import MachineError, UsageError

PROJECT = "damcli"  # what W&B calls a project and MLflow an experiment
SECONDS_PER_STEP = 1.0  # steps are handed on at most this often; metrics.jsonl has all of them
SECONDS_PER_BATCH = 10.0  # MLflow's database takes long for every call and little for every number
PLACE = ("event", "stage", "epoch", "step")


class Logger(Protocol):
    """Where figures go: a number for every name, at a step of the run."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take the figures of a step; steps do not go back within a process."""

    def close(self) -> None:
        """Write what is left."""


class Loggers:
    """All loggers of a run. One that fails is left out from then on and named: it never ends the training."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)
        self._last_step = -math.inf

    def log(self, record: Mapping[str, Any], step: int, findings: Sequence[str]) -> list[str]:
        """Hand a record of `metrics.jsonl` on, and return what went wrong, in words.

        `step` counts the steps of the whole run; `findings` are those of the record's lists. Of the steps of a second
        the first is handed on, of other records all.
        """
        if not self._loggers:
            return []
        if record["event"] == "step":
            if time.monotonic() - self._last_step < SECONDS_PER_STEP:
                return []
            self._last_step = time.monotonic()
        found = figures(record, findings)
        return self._each(lambda logger: logger.log(found, step)) if found else []

    def close(self) -> list[str]:
        """End all loggers, and return what went wrong, in words."""
        failed = self._each(lambda logger: logger.close())
        self._loggers.clear()
        return failed

    def _each(self, call: Callable[[Logger], None]) -> list[str]:
        failed = []
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # a vendor's client raises what it likes, and days of training are worth more
                del self._loggers[name]
                failed.append(f"{name} failed and is left out from here on: {type(error).__name__}: {error}")
        return failed


def check(names: Sequence[str]) -> None:
    """Raise `UsageError` for a logger that is not known, and `MachineError` for one whose extra is not installed."""
    for name in names:
        if name not in OPENERS:
            raise UsageError(f"there is no logger {name!r}", where="--log", fix=f"choose of {', '.join(OPENERS)}")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder wandb/ that lies about can be imported, as nothing
            raise MachineError(
                f"{name} is not installed", where=f"--log {name}", fix=f"pip install '{PROJECT}[{name}]'"
            )


def open(names: Sequence[str], run: Path) -> Loggers:
    """Return the loggers `names` (tensorboard, wandb, mlflow) of a run whose folder is made; none for no names.

    A run that is resumed goes on in the same place. Raises as `check`, and `MachineError` where one does not open.
    """
    check(names)
    opened = {}
    for name in dict.fromkeys(names):
        try:
            opened[name] = OPENERS[name](run)
        except Exception as error:  # whatever a vendor's client raises for a key, a server or a file that is not there
            raise MachineError(
                f"{name} does not open: {type(error).__name__}: {error}",
                where=f"--log {name}",
                fix=f"mend its own settings, or pip install '{PROJECT}[{name}]' again, or train without --log {name}",
            ) from error
    return Loggers(opened)


def figures(record: Mapping[str, Any], findings: Sequence[str]) -> dict[str, float]:
    """Return the numbers of a record by name: lists by finding, nothing for text and for what is undefined.

    >>> record = {"event": "step", "stage": 2, "epoch": 1, "step": 7, "loss": 0.5, "a": [0.1, None], "text": "…"}
    >>> figures(record, ["Edema", "Lung Lesion"])
    {'stage2/step/loss': 0.5, 'stage2/step/a/Edema': 0.1}
    """
    found = {}
    for key, value in record.items():
        if key in PLACE:
            continue
        parts: dict[str | None, Any] = {None: value}
        if isinstance(value, Mapping):
            parts = dict(value)
        elif isinstance(value, list | tuple):
            parts = dict(zip(findings, value, strict=True))
        for finding, number in parts.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                series = [f"stage{record['stage']}", record["event"], key, *([finding] if finding else [])]
                # What all three allow in a name; a slash in a finding's would open another group.
                found["/".join(re.sub(r"[^-.\w]", "_", part) for part in series)] = float(number)
    return found


def _name(run: Path) -> str:
    """Return what a run is called; a member of an ensemble, or a fold, with the folder that it is part of."""
    path = run.resolve()
    return f"{path.parent.name}/{path.name}" if (path.parent / "members.json").is_file() else path.name


def _identity(run: Path) -> str:
    """Return the same text for a run each time it is resumed, and another for every other run."""
    made = b"".join((run / name).read_bytes() for name in ("run.json", "environment.json"))
    return hashlib.sha256(made).hexdigest()[:16]


class _TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "tensorboard"
        self._writer: Any = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run that was killed has logged beyond its checkpoint is made again from here, and no longer shown.
            self._writer = SummaryWriter(self._folder, purge_step=step, flush_secs=int(SECONDS_PER_BATCH))
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WeightsAndBiases:
    """A run of W&B under `RUN/wandb`."""

    def __init__(self, run: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=run,
            id=_identity(run),
            name=_name(run),
            resume="allow",
            settings=settings,
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow in `RUN/mlflow.db`, or on the user's server."""

    def __init__(self, run: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=place)
        name, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), f"{PROJECT}.run"
        known = self._client.get_experiment_by_name(name)
        artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (run.resolve() / "mlflow").as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(name, artifacts)
        again = self._client.search_runs([experiment], f"tags.`{tag}` = '{_identity(run)}'")
        made = again[0] if again else self._client.create_run(experiment, None, {tag: _identity(run)}, _name(run))
        self._id = made.info.run_id
        self._waiting: list[Any] = []
        self._under_way: list[Any] = []
        self._sent = time.monotonic()

    def log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in figures.items()]
        if time.monotonic() - self._sent >= SECONDS_PER_BATCH:
            self._send()

    def _send(self) -> None:
        for operation in self._under_way:
            operation.wait()  # raises what went wrong
        size = 1000  # the most that a call may hold
        self._under_way = [
            self._client.log_batch(self._id, self._waiting[start : start + size], synchronous=False)
            for start in range(0, len(self._waiting), size)
        ]
        self._waiting, self._sent = [], time.monotonic()

    def close(self) -> None:
        self._send()
        self._send()  # waits for the first
        self._client.set_terminated(self._id)


OPENERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}
