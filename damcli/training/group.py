"""Several runs that make one whole: the folds of a dataset, the members of an ensemble, the trials of a search.

Their folder holds `config.toml` (the settings they share), `members.json` (who they are, and how far) and an ordinary
run for each. They are trained in turn; a folder that has `members.json` can be resumed, one that is done is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from damcli import config, files
from damcli.config import Layer, Strict
from damcli.errors import DataError
from damcli.recipes import Recipe
from damcli.training import folder

if TYPE_CHECKING:
    from damcli.data.store import Dataset

SCHEMA_VERSION = 1
MEMBERS, SCORES, FOLD_SCORES, WINNER = "members.json", "scores-folds.parquet", "scores-fold.parquet", "winner"
Kind = Literal["folds", "ensemble", "tuning"]
Status = Literal["waiting", "done", "failed", "pruned"]


class Member(Strict):
    """One run: what sets it apart, and what became of it."""

    folder: str = Field(description="below that of all members")
    status: Status = "waiting"
    fold: int | None = Field(default=None, description="of the dataset, held out")
    settings: dict[str, Any] = Field(default={}, description="that differ from config.toml's, by dotted key")
    start: str | None = Field(default=None, description="the member whose network this one starts from")
    helper: bool = Field(default=False, description="only there for others to start from; no part of the result")
    best_epoch: int | None = None
    tune_auroc: float | None = Field(default=None, description="what the recipe monitors, at the best epoch")
    reason: str | None = Field(default=None, description="why it failed or was pruned")

    @property
    def what(self) -> str:
        """How it differs from the others, in words."""
        parts = [f"{key} = {_shown(value)}" for key, value in self.settings.items()]
        return ", ".join(([] if self.fold is None else [f"without fold {self.fold}"]) + parts) or "as the recipe says"


class Group(Strict):
    """`members.json`."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    recipe_name: str
    dataset: str = Field(description="the dataset's folder, relative to this one")
    fingerprint: str = Field(description="of the dataset")
    findings: tuple[str, ...] = Field(description="of the dataset")
    config_sha256: str
    origins: dict[str, str] = Field(default={}, description="of the settings in config.toml")
    precision: str | None = Field(default=None, description="timed by the first member, taken by all")
    fold: int | None = Field(default=None, description="held out of every trial of a search")
    tune: str | None = Field(default=None, description="what a search was asked to try")
    trials: int | None = Field(default=None, description="how many; unset: all combinations")
    members: tuple[Member, ...] = ()


@dataclass
class Members:
    """The folder of several runs; `leads` is False in processes that only help the one that writes."""

    path: Path
    recipe: Recipe
    group: Group
    leads: bool = True

    @property
    def dataset(self) -> Path:
        """Where the dataset lay, seen from here."""
        return folder.seen_from_here(self.path, self.group.dataset)

    @property
    def unfinished(self) -> list[Member]:
        """The members that are still to be trained, or to be trained on."""
        return [member for member in self.group.members if member.status == "waiting"]

    def waits(self, member: Member) -> bool:
        """Whether a member is still to be trained to its end."""
        return any(other.folder == member.folder for other in self.unfinished)

    def run(self, member: Member) -> Path:
        """Where a member lies."""
        return self.path / member.folder

    def settings(self, member: Member) -> tuple[Recipe, dict[str, str]]:
        """Return a member's own recipe, with origins. Raises `UsageError` where its settings are none."""
        source = {"folds": "--folds", "ensemble": "ensemble", "tuning": "--tune"}[self.group.kind]
        own = dict(member.settings)
        origins = {**self.group.origins, **dict.fromkeys(own, source)}
        if self.recipe.precision == "auto" and self.group.precision and "precision" not in own:
            own["precision"] = self.group.precision
        if member.start is not None:
            own |= {"weights": str(self.path / member.start), "pretrained": False}
            origins |= dict.fromkeys(("weights", "pretrained"), "ensemble.per_finding")
        # No member is an ensemble itself.
        shared = self.recipe.model_dump(mode="json", exclude={"ensemble"})
        layers = [Layer(str(self.path / folder.CONFIG), shared)]
        layers += [Layer(source, config.nest(key, value)) for key, value in own.items()]
        return config.resolve(Recipe, layers).value, origins

    def add(self, member: Member) -> None:
        """Take in one more member."""
        self._save(members=(*self.group.members, member))

    def note(self, member: Member, **changes: Any) -> None:
        """Record what became of a member."""
        changed = member.model_copy(update=changes)
        self._save(members=tuple(changed if m.folder == member.folder else m for m in self.group.members))

    def note_precision(self, precision: str, reason: str) -> None:
        """Record the precision that the first member has measured, for all: of one network, or to be compared."""
        networks = {member.settings.get("backbone") for member in self.group.members}
        if self.group.precision is None and (self.group.kind == "tuning" or len(networks) == 1):
            self._save(precision=precision, origins={**self.group.origins, "precision": reason})

    def check_resumable(self, dataset: Dataset) -> None:
        """Raise `DataError` where `dataset` or the settings are not those that the members began with."""
        folder.refuse_changed(self.path, self.group.fingerprint, self.group.config_sha256, dataset)

    def _save(self, **changes: Any) -> None:
        self.group = self.group.model_copy(update=changes)
        if self.leads:
            files.write_json(self.path / MEMBERS, self.group.model_dump(mode="json"))


def describe(
    path: Path,
    kind: Kind,
    members: Sequence[Member],
    recipe: Recipe,
    dataset: Dataset,
    *,
    recipe_name: str = "custom",
    origins: Mapping[str, str] | None = None,
    fold: int | None = None,
    tune: str | None = None,
    trials: int | None = None,
    leads: bool = True,
) -> Members:
    """Return what a new folder of members will be, every member's settings checked; writes nothing."""
    group = Group(
        kind=kind,
        recipe_name=recipe_name,
        dataset=folder.relative(dataset.path, path),
        fingerprint=dataset.info.fingerprint,
        findings=tuple(dataset.info.findings),
        config_sha256=hashlib.sha256(folder.toml(recipe, origins or {}).encode()).hexdigest(),
        origins=dict(origins or {}),
        fold=fold,
        tune=tune,
        trials=trials,
        members=tuple(members),
    )
    described = Members(path, recipe, group, leads)
    for member in members:
        described.settings(member)
    return described


def create(members: Members) -> None:
    """Write what members start with; `config.toml` last. Raises `UsageError` for a folder that is in use."""
    if not members.leads:
        return
    if not (members.path / folder.CONFIG).is_file():  # killed while it wrote its first files, it starts anew
        (members.path / MEMBERS).unlink(missing_ok=True)
    folder.refuse_used(members.path)
    files.write_json(members.path / MEMBERS, members.group.model_dump(mode="json"))
    files.write_text(members.path / folder.CONFIG, folder.toml(members.recipe, members.group.origins))


def are_in(path: Path) -> bool:
    """Whether a folder is one of members."""
    return (path / MEMBERS).is_file()


def read(path: Path) -> Members:
    """Read a folder of members. Raises `DataError` for one that is none, damaged, or of another version."""
    raw = files.read_json(path / MEMBERS, "folder of members")
    if isinstance(raw, dict) and raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version")
        raise DataError(f"these members have format {version}, this damcli reads {SCHEMA_VERSION}", where=path)
    try:
        group = Group.model_validate(raw)
        return Members(path, Recipe.model_validate(config.read_toml(path / folder.CONFIG)), group)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{MEMBERS} or config.toml is damaged: {key}", where=path) from error


def results(path: Path) -> list[Path]:
    """Return the runs that a folder of members is made for: the winner of a search, else all but the helpers.

    Raises `DataError` where one of them is not trained to its end.
    """
    found = read(path)
    waiting = found.unfinished
    if waiting or (found.group.kind == "tuning" and not (path / WINNER).exists()):
        left = f"{len(waiting)} of {len(found.group.members)} members are not trained yet" if waiting else "no winner"
        raise DataError(f"this is not finished: {left}", where=path, fix=f"damcli train --resume {path}")
    if found.group.kind == "tuning":
        return [path / WINNER]
    return [found.run(member) for member in found.group.members if not member.helper]


def claimed(members: Members, dataset: Dataset) -> AbstractContextManager[None]:
    """Hold the folder for this process. Raises `DataError` where the members cannot go on, `UsageError` if held."""
    if members.leads:
        members.check_resumable(dataset)
        return files.only_writer(members.path)
    return nullcontext()


def begun_runs(members: Members) -> set[str]:
    """Return the members that have begun. Asked once at the start, so that all processes give the same answer."""
    return {m.folder for m in members.group.members if (members.run(m) / folder.CONFIG).is_file()}


def _shown(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
