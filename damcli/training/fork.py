"""Stage 1 trained once for all trials that share it: a run begun from another one's end of stage 1.

A run resumed there ends with the bits of an unbroken one, and nothing of stage 2 enters stage 1; so a trial that is
given another's stage 1 has the bits of a run of its own (tests/training/test_tuning.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from damcli import files
from damcli.recipes import Recipe, Stage
from damcli.training import folder, tracking
from damcli.training.events import EpochDone
from damcli.training.group import Member, Members

KEPT = ".stage1"
ORIGIN = "origin.json"


def keep(members: Members, member: Member, event: EpochDone) -> None:
    """Keep a trial's state at the end of its stage 1 for the others, unless there is one already."""
    place = members.path / KEPT
    recipe, _ = members.settings(member)
    if event.stage != 1 or event.epoch < event.epochs or not _two_stages(recipe) or place.is_dir():
        return
    draft = _cleared(members.path / f"{KEPT}.{os.getpid()}.tmp")
    run = members.run(member)
    with files.disk_errors(place):
        shutil.copytree(run / "checkpoints" / "last", draft / "checkpoints" / "last")
        for name in (folder.CONFIG, folder.FACTS, folder.ENVIRONMENT, folder.TUNE, tracking.METRICS):
            shutil.copy(run / name, draft / name)
        files.write_json(draft / ORIGIN, {"run": str(run)})
        draft.rename(place)


def start(members: Members, member: Member) -> str | None:
    """Begin a trial at the end of the stage 1 that was kept, to be resumed there; return the run that trained it.

    None where there is none, or the trial is not the same up to there.
    """
    place = members.path / KEPT
    recipe, origins = members.settings(member)
    if not place.is_dir() or not same_until_there(recipe, folder.read_run(place).recipe):
        return None
    settings = folder.toml(recipe, origins)
    facts = folder.read_run(place).facts
    own = facts.model_copy(update={"config_sha256": hashlib.sha256(settings.encode()).hexdigest()})
    run = members.run(member)
    draft = _cleared(run.parent / f".{run.name}.{os.getpid()}.tmp")
    with files.disk_errors(run):
        shutil.copytree(place, draft)
        files.write_json(draft / folder.FACTS, own.model_dump(mode="json"))
        files.write_text(draft / folder.CONFIG, settings)
        (draft / ORIGIN).unlink()
        shutil.rmtree(run, ignore_errors=True)  # what a start that was killed has left
        draft.rename(run)
    return str(files.read_json(place / ORIGIN, "stage 1")["run"])


def forget(members: Members) -> None:
    """Remove what was kept, and what a kill left of it half-written: all trials are made."""
    for place in (members.path / KEPT, *members.path.glob(".*.tmp")):
        shutil.rmtree(place, ignore_errors=True)


def same_until_there(recipe: Recipe, kept: Recipe) -> bool:
    """Whether a run of `recipe` is one of `kept`, bit by bit, up to the end of stage 1."""

    def first(of: Recipe) -> Recipe:
        return of.model_copy(update={"stage2": Stage(), "monitor": "mean", "patience": None, "description": ""})

    # A metadata network trains by the second stage's loss, in a place of its own.
    return _two_stages(recipe) and not recipe.metadata.columns and first(recipe) == first(kept)


def _two_stages(recipe: Recipe) -> bool:
    return [number for number, _ in recipe.stages()] == [1, 2]


def _cleared(draft: Path) -> Path:
    shutil.rmtree(draft, ignore_errors=True)
    return draft
