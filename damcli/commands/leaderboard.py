"""The runs of a folder as rows: how each was trained, how well it does, and how far it is if it is not done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli.errors import DamcliError, DataError
from damcli.files import read_json, settled_folder

if TYPE_CHECKING:
    from damcli.training.checkpoint import Progress
    from damcli.training.group import Member

Row = dict[str, Any]
TUNE = "tune"  # stands for the split where a run has no figure but the one that it was selected by


def rows(folder: Path) -> list[Row]:
    """Return the runs under `folder`, best first within a dataset and a split.

    A row has `run`, `remark`, and where known `loss`, `backbone`, `dataset`, `split`, `auroc` (the mean over findings),
    `low`, `high`. Folds, an ensemble's members and trials are `members` of their folder's row. A run that was evaluated
    on several splits has a row for each; one that was not has its AUROC on the tune part.
    """
    found = [row for path in sorted(folder.glob("*/config.toml")) for row in _rows_of(path.parent)]
    return sorted(found, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    """Return what sorts rows, the unknown last; a folder without a figure stands where its best member does."""
    row = row if "auroc" in row else next(iter(row.get("members", ())), row)
    places = [row.get("dataset"), row.get("split")]
    figures = [row.get("auroc"), row.get("low")]
    return *((one is None, one or "") for one in places), *(1.0 if one is None else -one for one in figures)


def _rows_of(path: Path) -> Iterator[Row]:
    from damcli.training import group

    row: Row = {"run": str(path)}
    try:
        yield from _of_members(path, row) if group.are_in(path) else _of_run(path, row)
    except DamcliError as problem:
        yield row | {"remark": problem.what}


def _of_run(path: Path, row: Row) -> Iterator[Row]:
    from damcli.training.folder import read_run

    info = read_run(path)
    row |= {"loss": info.loss, "backbone": info.recipe.backbone, "dataset": info.dataset.name}
    progress = _progress(path)
    done = (path / "scores-tune.parquet").is_file()
    left = "" if done else f"not finished, {progress or 'before its first checkpoint'}: damcli train --resume {path}"
    evaluations = list(_evaluations(path, row, left))
    yield from evaluations
    if not evaluations:
        best = progress.best.auroc if progress and progress.best else None
        tuned = {"split": TUNE, "auroc": best, "low": None, "high": None} if best is not None else {}
        yield row | tuned | {"remark": left or f"not evaluated yet: damcli evaluate {path}"}


def _of_members(path: Path, row: Row) -> Iterator[Row]:
    from damcli.training import group

    found = group.read(path)
    members = found.group.members
    row |= {
        "loss": found.recipe.stages()[-1][1].loss,
        "backbone": found.recipe.backbone,
        "dataset": found.dataset.name,
        "kind": found.group.kind,
    }
    under = sorted((one for member in members for one in _member(path / member.folder, member)), key=_order)
    waiting = len(found.unfinished)
    left = f"{len(members) - waiting} of {len(members)} trained: damcli train --resume {path}" if waiting else ""
    evaluations = list(_evaluations(path, row, left)) or [row | {"remark": left or f"{len(members)} trained"}]
    # The members once, under the first of the folder's rows.
    yield from (one | ({"members": under} if number == 0 else {}) for number, one in enumerate(evaluations))


def _member(path: Path, member: Member) -> Iterator[Row]:
    if not (path / "config.toml").is_file():
        yield {"run": str(path), "remark": member.reason or "not begun"}
        return
    for row in _rows_of(path):
        ended = f"{member.status}: {member.reason}" if member.status in ("failed", "pruned") else row["remark"]
        yield row | {"remark": ended}


def _evaluations(path: Path, row: Row, left: str) -> Iterator[Row]:
    """Yield a row for each evaluation that lies in a folder."""
    for file in sorted(path.glob("evaluation-*/metrics.json")):
        document = read_json(file, "evaluation")
        mean, truth = document["mean"]["auroc"], document["truth"]
        used = "used for selection" if document["selection"]["used"] else mean["why"]
        place = {"dataset": Path(truth["path"]).name, "split": truth["split"]}
        figures = {"auroc": mean["value"], "low": mean["low"], "high": mean["high"]}
        tta = f"{document['views']} views" if document.get("views", 1) > 1 else ""
        yield row | place | figures | {"remark": ", ".join(part for part in (used, tta, left) if part)}


def _progress(run: Path) -> Progress | None:
    """Return how far a run's last checkpoint is, its weights unread. Raises `DataError` for a damaged one."""
    from pydantic import ValidationError

    from damcli.training.checkpoint import STATE, Progress

    folder = settled_folder(run / "checkpoints" / "last")
    if folder is None:
        return None
    try:
        return Progress.model_validate(read_json(folder / STATE, "checkpoint")["progress"])
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError("the last checkpoint is damaged", where=folder) from error
