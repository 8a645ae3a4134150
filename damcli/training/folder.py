"""The run folder, checkpoints aside: settings with their origins, facts, environment, the tune part.

`config.toml` is written last of what a run starts with: a folder that has it can be resumed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from damcli import __version__, config, files
from damcli.config import Strict
from damcli.data.images import Contract
from damcli.errors import DataError, UsageError
from damcli.recipes import Recipe
from damcli.training import tracking

if TYPE_CHECKING:
    import torch

    from damcli.data.store import Dataset
    from damcli.training.plan import Plan

SCHEMA_VERSION = 1
CONFIG, FACTS, ENVIRONMENT, TUNE = "config.toml", "run.json", "environment.json", "tune.parquet"


class Facts(Strict):
    """`run.json`: what a run was made from, its recipe's settings aside."""

    schema_version: int = SCHEMA_VERSION
    recipe_name: str
    dataset: str = Field(description="the dataset's folder, relative to the run's")
    fingerprint: str = Field(description="of the dataset")
    findings: tuple[str, ...]
    fold: int | None = Field(default=None, description="the fold that was held out, of the dataset's")
    contract: Contract
    selection: tuple[str, ...] = ("tune",)
    config_sha256: str
    weights_sha256: str | None = Field(default=None, description="of the file the training started from")


@dataclass(frozen=True)
class RunInfo:
    """A run folder read back."""

    path: Path
    recipe: Recipe
    facts: Facts

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, in the order of the network's logits."""
        return self.facts.findings

    @property
    def contract(self) -> Contract:
        """How the scans it was trained on were decoded and resized."""
        return self.facts.contract

    @property
    def dataset(self) -> Path:
        """Where the dataset lay, seen from here."""
        return seen_from_here(self.path, self.facts.dataset)

    @property
    def loss(self) -> str:
        """The loss of the last stage: what the run is known by."""
        return self.recipe.stages()[-1][1].loss

    def check_resumable(self, dataset: Dataset) -> None:
        """Raise `DataError` where `dataset` or the settings are not those that the run began with."""
        refuse_changed(self.path, self.facts.fingerprint, self.facts.config_sha256, dataset)

    @property
    def tune_ids(self) -> list[str]:
        """The ids of the scans kept out of training to choose the best epoch by. Raises `DataError` if damaged."""
        import polars as pl

        try:
            return pl.read_parquet(self.path / TUNE)["path"].to_list()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError("the run's tune.parquet is missing or damaged", where=self.path / TUNE) from error


def refuse_used(run: Path) -> None:
    """Raise `UsageError` where a run cannot be started: the folder holds one already, or something else."""
    if (run / CONFIG).is_file():
        raise UsageError(
            "this folder holds a run already",
            where=run,
            fix=f"continue it with damcli train --resume {run}, or choose another folder with -o",
        )
    if run.exists() and not run.is_dir():
        raise UsageError("this is a file, not a folder", where=run, fix="choose another place with -o")
    # A run that was killed while it wrote its first files has no config.toml yet, and starts anew.
    ours = (".", FACTS, ENVIRONMENT, TUNE)
    if run.is_dir() and not all(entry.name.startswith(ours) for entry in run.iterdir()):
        raise UsageError("this folder is not empty", where=run, fix="choose a new one with -o")


def create(
    run: Path,
    recipe: Recipe,
    origins: Mapping[str, str],
    recipe_name: str,
    dataset: Dataset,
    planned: Plan,
    fold: int | None,
    device: torch.device,
    timings: Mapping[str, float],
) -> None:
    """Write what a run starts with."""
    weights = files.sha256(start_weights(recipe.weights)) if recipe.weights else None
    settings = toml(recipe, origins)
    facts = Facts(
        recipe_name=recipe_name,
        dataset=relative(dataset.path, run),
        fingerprint=dataset.info.fingerprint,
        findings=tuple(planned.findings),
        fold=fold,
        contract=dataset.info.contract,
        config_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        weights_sha256=weights,
    )
    files.write_json(run / FACTS, facts.model_dump(mode="json"))
    files.write_json(run / ENVIRONMENT, tracking.environment(device, timings))
    write_table(run / TUNE, {"path": dataset.ids(planned.tune)})
    files.write_text(run / CONFIG, settings)


def start_weights(given: str) -> Path:
    """Return the file of weights that `weights` means: itself, or where it is a run, its last checkpoint's.

    Raises `DataError` where the run has none, or a damaged one; `UsageError` for a folder of several runs.
    """
    from damcli.training import checkpoint, group

    path = Path(given)
    if group.are_in(path):
        raise UsageError("these are several runs, and weights are of one", where=path, fix=f"name it: {path}/…")
    return checkpoint.weights_file(path) if (path / CONFIG).is_file() else path


def doubts_of_start(given: str, dataset: Dataset, planned: Plan, fold: int | None) -> Iterator[str]:
    """Yield, in words, what a run that weights come from has seen of the scans that judge this one.

    Raises `DataError` where it was trained on the fold that this one holds out.
    """
    path = Path(given)
    if not (path / CONFIG).is_file():
        return
    start = read_run(path)
    if start.facts.fingerprint != dataset.info.fingerprint:
        yield f"{path} was trained on another dataset; whether that has patients of this one's is not known"
        return
    if fold != start.facts.fold and fold is not None:
        raise DataError(
            f"the weights are of a run that was trained on scans of fold {fold}, which is held out here",
            where=path,
            fix=f"take those of a run that held it out: damcli train … --fold {fold}",
        )
    kept = set(start.tune_ids)
    seen = sum(name not in kept for name in dataset.ids(planned.tune))
    if seen:
        yield (
            f"{path} was trained on {seen} of the {len(planned.tune)} scans of the tune part here: the figures on it "
            "flatter, and may choose the wrong epoch; the same seed and tune_fraction give the same part"
        )


def made_on(device: torch.device, processes: int) -> dict[str, str]:
    """Return what the last digits of a run depend on, besides its settings and its dataset."""
    return {
        "processes": str(processes),
        "device": tracking.device_name(device),
        "threads": str(tracking.threads(device)),
        "torch": tracking.version("torch"),
        "damcli": __version__,
    }


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns as a Parquet file, whole or not at all."""
    import polars as pl

    # In memory first: then it is the operating system, not polars, that says when the disk is full.
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    with files.replacing(path) as draft:
        draft.write_bytes(buffer.getvalue())


def read_run(run: Path) -> RunInfo:
    """Read a run folder. Raises `DataError` for one that is no run, damaged, or of another version."""
    if not (run / CONFIG).is_file():
        raise DataError(
            "this is no run: config.toml is missing", where=run, fix="make one: damcli train DATASET -o RUN"
        )
    facts = files.read_json(run / FACTS, "run")
    try:
        if isinstance(facts, dict) and facts.get("schema_version") != SCHEMA_VERSION:
            version = facts.get("schema_version")
            raise DataError(f"this run has format {version}, this damcli reads {SCHEMA_VERSION}", where=run / FACTS)
        recipe = Recipe.model_validate(config.read_toml(run / CONFIG))
        return RunInfo(run, recipe, Facts.model_validate(facts))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"the run is damaged: {key}: {first['msg']}", where=run) from error


def toml(recipe: Recipe, origins: Mapping[str, str]) -> str:
    """Return every resolved setting as TOML, its origin behind it as a comment; unset ones as comments.

    >>> print(toml(Recipe(), {"seed": "--seed"}).splitlines()[7])
    seed = 0  # --seed
    """
    lines: list[str] = []
    values = recipe.model_dump(mode="json")
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for table, settings in [("", plain)] + [(key, value) for key, value in values.items() if isinstance(value, dict)]:
        lines += ["", f"[{table}]"] if table else []
        for key, value in settings.items():
            origin = " ".join(origins.get(f"{table}.{key}" if table else key, "default").split())
            # Numbers, text, true and lists look the same in JSON and in TOML, which has no null.
            line = f"# {key} is not set" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{line}  # {origin}")
    return "\n".join(lines) + "\n"


def refuse_changed(run: Path, fingerprint: str, config_sha256: str, dataset: Dataset) -> None:
    """Raise `DataError` where `dataset` or the settings are not those that a run, or several together, began with."""
    if fingerprint != dataset.info.fingerprint:
        raise DataError(
            "this is not the dataset that the run was trained on: its fingerprint differs",
            where=dataset.path,
            fix=f"name the right one (damcli train DATASET --resume {run}), or train anew",
        )
    if config_sha256 != files.sha256(run / CONFIG):
        raise DataError(
            "the settings were changed after the run began",
            where=run / CONFIG,
            fix=f"train anew with them: damcli train --config {run / CONFIG}",
        )


def seen_from_here(start: Path, path: str) -> Path:
    """Return where `path`, relative to `start`, lies: relative to the working folder where it is below that."""
    found = Path(os.path.normpath(start.resolve() / path))
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def relative(path: Path, start: Path) -> str:
    """Return `path` relative to the folder `start`, as it is written into files that may move together."""
    try:
        return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return str(path.resolve())
