"""`damcli train` of several runs in turn: folds, an ensemble, a search. They are shown, trained and summed up here."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.commands import evaluate
from damcli.commands.train import display
from damcli.config import Resolved
from damcli.errors import UsageError
from damcli.recipes import Recipe

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.events import MemberEvent
    from damcli.training.group import Member, Members


@dataclass(frozen=True)
class Asked:
    """The flags that make several runs of one, as they were given."""

    fold: int | None = None
    folds: str | None = None
    tune: str | None = None
    trials: int | None = None

    def check(self, recipe: Recipe) -> None:
        """Raise `UsageError` for flags that do not go together, or not with the recipe's ensemble."""
        if self.folds not in (None, "all"):
            raise UsageError(
                f"--folds takes all, got {self.folds!r}", fix=f"--folds all, or one of them: --fold {self.folds}"
            )
        if self.folds and self.fold is not None:
            raise UsageError("--fold and --folds contradict each other", fix="give one of them")
        if self.tune is not None and not self.tune.strip():
            raise UsageError("--tune names no setting", fix='write --tune "margin=0.3,0.5 lr=0.1"')
        if self.trials and not self.tune:
            raise UsageError("--trials says how many, not what to try", fix='add --tune "lr=0.01..0.3 margin=0.3,0.5"')
        if self.tune and (self.folds or _is_ensemble(recipe)):
            what = "--folds" if self.folds else "an ensemble"
            raise UsageError(
                f"--tune and {what} do not go together", fix="tune one run (with --fold K, if need be), then train them"
            )


def wanted(asked: Asked, recipe: Recipe) -> bool:
    """Whether the flags or the recipe ask for more than one run. Raises `UsageError` where they contradict."""
    asked.check(recipe)
    return bool(asked.folds or asked.tune or _is_ensemble(recipe))


def are_in(run: Path) -> bool:
    """Whether a folder holds several runs that were trained together."""
    return (run / "members.json").is_file()


def run(
    settings: Resolved[Recipe],
    dataset: Path,
    path: Path,
    asked: Asked,
    *,
    recipe_name: str,
    resume: bool,
    dry_run: bool,
    **machine: Any,
) -> None:
    """Train what is asked for into the folder `path`, or go on with what is there, and show it as it goes.

    `machine` are `device`, `devices`, `nodes`, `time_limit` and `log`, as in `loop.train`. With `dry_run` the
    members are listed, and nothing is written.
    """
    from damcli.data.store import Dataset
    from damcli.training import folder, group, members, tuning, world

    opened = Dataset.open(dataset)
    place = world.detect(machine.get("devices"), machine.get("nodes"))
    leads = place.rank == 0
    if resume:
        made = group.read(path)
        made.leads = leads
    else:
        made = _planned(settings, opened, path, asked, recipe_name, leads)
    if made.group.trials and place.processes > 1:
        # Each process would ask Optuna for itself, of files that one of them is still writing.
        raise UsageError("trials are drawn for one process", where="--trials", fix="list values for a grid: a=1,2,3")
    if made.group.kind == "tuning" and not resume:
        tuning.check(made, opened)
    if dry_run:
        if not resume:
            folder.refuse_used(path)
        return _list(made, opened)
    if not resume:
        group.create(made)
    train = tuning.train if made.group.kind == "tuning" else members.train
    try:
        with closing(train(made, opened, **machine)) as events:
            end = display.draw(_with_pictures(events, opened))
    except (KeyboardInterrupt, SystemExit):
        console.next_step(f"damcli train --resume {path}")
        raise
    if not made.leads:
        return None
    if made.unfinished:
        display.result(end)
        return console.next_step(f"damcli train --resume {path}")
    _result(made, dataset)


def _planned(
    settings: Resolved[Recipe], dataset: Dataset, path: Path, asked: Asked, recipe_name: str, leads: bool
) -> Members:
    from damcli.training import group, members, tuning

    recipe = settings.value
    keywords: dict[str, Any] = {"recipe_name": recipe_name, "origins": settings.origins, "leads": leads}
    one = None if asked.fold is None else [asked.fold]
    if asked.tune:
        axes = tuning.parse(asked.tune, recipe, ranges=asked.trials is not None)
        trials = [] if asked.trials else tuning.grid(axes, asked.fold)
        keywords |= {"tune": asked.tune, "trials": asked.trials, "fold": asked.fold}
        return group.describe(path, "tuning", trials, recipe, dataset, **keywords)
    if asked.folds or one:
        return group.describe(path, "folds", members.of_folds(recipe, dataset, one), recipe, dataset, **keywords)
    return group.describe(path, "ensemble", members.of_ensemble(recipe, dataset), recipe, dataset, **keywords)


def _is_ensemble(recipe: Recipe) -> bool:
    wanted = recipe.ensemble
    return bool(wanted.backbones or wanted.seeds or wanted.per_finding)


def _with_pictures(events: Generator[MemberEvent, None, None], dataset: Dataset) -> Generator[MemberEvent, None, None]:
    """Yield the events; each run that is finished gets its pictures."""
    from damcli.training.events import Finished

    for event in events:
        yield event
        if isinstance(event, Finished) and not console.state.follows:
            display.pictures(event.run, dataset)


def _list(members: Members, dataset: Dataset) -> None:
    from damcli.training import plan

    rows = []
    for member in members.group.members:
        planned = plan.make(members.settings(member)[0], dataset, fold=member.fold)
        rows.append([member.folder, member.what, ", ".join(planned.findings), len(planned.train), len(planned.tune)])
    if console.state.json:
        keys = ("folder", "what", "findings", "train_scans", "tune_scans")
        console.emit_json(
            {
                "folder": str(members.path),
                "kind": members.group.kind,
                "trials": members.group.trials,
                "members": [dict(zip(keys, row, strict=True)) for row in rows],
            }
        )
    columns = ["run", "what sets it apart", "findings", "scans", "for selection"]
    console.table(f"Members of {members.path} (nothing was written)", columns, [list(map(str, row)) for row in rows])
    if members.group.trials:
        console.result(f"{members.group.trials} trials are drawn by Optuna as they come: {members.group.tune}")


def _result(members: Members, dataset: Path) -> None:
    """Show what came of the members together, and what to do with it."""
    path, kind = members.path, members.group.kind
    if kind == "folds":
        evaluate.show(evaluate.judge(path, dataset))
        console.result(str(path))
        return console.next_step(f"damcli evaluate {path} {dataset}")
    _show(members)
    winner = kind == "tuning"
    console.result(str(path / "winner" if winner else path))
    console.next_step(f"damcli evaluate {path / 'winner'} {dataset}" if winner else f"damcli export {path}")


def _show(members: Members) -> None:
    from damcli.training import tuning

    found = tuning.ranked(members) if members.group.kind == "tuning" else list(members.group.members)
    keys = list(dict.fromkeys(key for member in found for key in member.settings))
    if console.state.json:
        document: dict[str, Any] = {"folder": str(members.path), "kind": members.group.kind}
        if members.group.kind == "tuning":
            document["winner"] = found[0].folder
        console.emit_json(document | {"members": [member.model_dump(mode="json") for member in found]})
    title = "Trials, by AUROC on the tune part (the best of many, so its figure flatters)"
    if members.group.kind != "tuning":
        title = "Members, by AUROC on the tune part, which chose their epochs (so these figures flatter)"
    rows = [
        [m.folder, *(_value(m, key) for key in keys), _auroc(m), str(m.best_epoch or ""), _remark(m)] for m in found
    ]
    console.table(title, ["run", *keys, "tune AUROC", "epoch", "remark"], rows)


def _value(member: Member, key: str) -> str:
    value = member.settings.get(key, "")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _auroc(member: Member) -> str:
    return "n/a" if member.tune_auroc is None else f"{member.tune_auroc:.3f}"


def _remark(member: Member) -> str:
    if member.helper:
        return "others start from it"
    return "" if member.status == "done" else f"{member.status}: {member.reason}"
