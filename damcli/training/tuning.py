"""A search over settings: every trial an ordinary run, the best of them chosen on the tune part alone.

All trials have the same seed, the same training scans and the same tune part. Trials that share stage 1 to the last
setting start from one that was trained once (`fork`), with the bits of a run of their own.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import config, files
from damcli.errors import DataError, UsageError
from damcli.recipes import Recipe, Stage
from damcli.training import fork, group, plan, world
from damcli.training.checkpoint import NotFinite
from damcli.training.events import EpochDone, MembersFinished, MemberStopped, Noted
from damcli.training.group import WINNER, Member, Members
from damcli.training.members import clock, train_one

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.events import MemberEvent
    from damcli.training.proposals import Proposals

TABLE = "trials.csv"
# What two trials must share for the AUROC of the tune part to compare them.
FIXED = ("seed", "tune_fraction", "monitor", "stage1.findings", "stage2.findings")
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class Choice:
    """A setting and the values to try."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A setting and the bounds to draw it from: integers where both are, else real numbers."""

    key: str
    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether it is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Whether it is drawn evenly on a log scale: from a factor of ten between the bounds on.

        >>> Range("stage2.lr", 0.01, 0.3).log, Range("stage2.margin", 0.3, 1.0).log
        (True, False)
        """
        return self.low > 0 and self.high / self.low >= 10


Axis = Choice | Range


def parse(text: str, recipe: Recipe, ranges: bool = False) -> list[Axis]:
    """Read `gamma=1/300,1/500 margin=0.3,0.5`: settings apart by blanks, values by commas.

    A short name is a setting of the last stage, else of the recipe; a dotted one is taken as it is. Values are numbers,
    fractions or text; `0.01..0.3` is a range where `ranges` are allowed. Raises `UsageError` for what cannot be read or
    must be the same in all trials.

    >>> parse("gamma=1/500,0 batch_size=16", Recipe())
    [Choice(key='stage2.gamma', values=(0.002, 0)), Choice(key='batch_size', values=(16,))]
    """
    axes: list[Axis] = []
    for word in text.split():
        name, equals, given = word.partition("=")
        if not (name and equals and given):
            raise UsageError(
                f"--tune takes settings and the values to try, got {word!r}", fix='write --tune "margin=0.3,0.5 lr=0.1"'
            )
        key = _key(name, recipe)
        if key in FIXED or key.startswith("ensemble."):
            raise UsageError(
                f"{key} must be the same in all trials, or they cannot be compared",
                where="--tune",
                fix=f"leave it out, and set it for all: --set {key}=…",
            )
        if any(axis.key == key for axis in axes):
            raise UsageError(f"{key} is there twice", where="--tune", fix="give all of its values at once: a=1,2,3")
        axes.append(_axis(key, given, ranges))
    if not axes:
        raise UsageError("there is nothing to try", where="--tune", fix='write --tune "margin=0.3,0.5 lr=0.1"')
    return axes


def _key(name: str, recipe: Recipe) -> str:
    known = config.known_keys(Recipe)
    if "." not in name and name in Stage.model_fields:
        name = f"stage{recipe.stages()[-1][0]}.{name}"
    if name not in known:
        raise config.unknown_key(name, [*known, *Stage.model_fields], "--tune")
    return name


def _axis(key: str, text: str, ranges: bool) -> Axis:
    bounds = re.fullmatch(rf"({NUMBER}(?:/{NUMBER})?)\.\.({NUMBER}(?:/{NUMBER})?)", text)
    if not bounds:
        values = tuple(_value(part) for part in text.split(",") if part)
        if len(set(values)) < len(values) or not values:
            raise UsageError(f"a value of {key} is there twice, or none: {text}", where="--tune", fix="give each once")
        return Choice(key, values)
    if not ranges:
        raise UsageError(
            f"a grid cannot take a range: {key}={text}",
            where="--tune",
            fix="add --trials N to draw from it, or list values: a=1,2,3",
        )
    low, high = (_value(part) for part in bounds.groups())
    if not low < high:
        raise UsageError(f"a range goes up: {key}={text}", where="--tune", fix=f"write {key}={bounds[2]}..{bounds[1]}")
    return Range(key, low, high)


def _value(text: str) -> Any:
    """Read a number, a fraction, true or false, or text.

    >>> _value("1/500"), _value("3"), _value("1e-4"), _value("true"), _value("balanced")
    (0.002, 3, 0.0001, True, 'balanced')
    """
    if fraction := re.fullmatch(f"({NUMBER})/({NUMBER})", text):
        if not float(fraction[2]):
            raise UsageError(f"{text} divides by zero", where="--tune")
        return float(fraction[1]) / float(fraction[2])
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(NUMBER, text):
        return float(text)
    return {"true": True, "false": False}.get(text, text)


def grid(axes: Sequence[Axis], fold: int | None = None) -> list[Member]:
    """Return a trial for each combination of the values, the last setting changing fastest."""
    choices = [axis for axis in axes if isinstance(axis, Choice)]
    assert len(choices) == len(axes), "a grid has no ranges"
    combinations = itertools.product(*(choice.values for choice in choices))
    keys = [choice.key for choice in choices]
    return [_trial(n, dict(zip(keys, values, strict=True)), fold) for n, values in enumerate(combinations)]


def _trial(number: int, settings: dict[str, Any], fold: int | None) -> Member:
    return Member(folder=f"trial-{number:03}", settings=settings, fold=fold)


def check(members: Members, dataset: Dataset) -> None:
    """Raise `UsageError` or `DataError` where a trial of a grid cannot be trained at all."""
    for member in members.group.members:
        plan.make(members.settings(member)[0], dataset, fold=member.fold)


def train(
    members: Members,
    dataset: Dataset,
    *,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    time_limit: float | None = None,
    log: Sequence[str] = (),
) -> Generator[MemberEvent, None, None]:
    """Make every trial that is not made yet, choose the best, and leave it as `winner`; yields what happens.

    A trial whose numbers or settings are refused is recorded with the reason, and the others go on. `time_limit` is
    that of all together, in seconds. Raises `DataError` where no trial can be chosen, `MachineError` where Optuna is
    needed and not there.
    """
    proposals, tune = None, members.group.tune
    if members.group.trials is not None:
        from damcli.training.proposals import Proposals

        assert tune is not None
        proposals = Proposals(parse(tune, members.recipe, ranges=True), members)
    keywords: dict[str, Any] = {"device": device, "devices": devices, "nodes": nodes, "log": log}
    keywords["left"] = clock(time_limit)
    with group.claimed(members, dataset):
        begun = group.begun_runs(members)
        for member in _trials(members, proposals):
            yield from _try(members, member, dataset, proposals, member.folder in begun, keywords)
            if members.waits(member):
                return
        if members.leads:
            fork.forget(members)
            _conclude(members)
    yield MembersFinished(members.path)


def _trials(members: Members, proposals: Proposals | None) -> Iterator[Member]:
    """Yield the trials that are not done; each is proposed only when those before it are."""
    yield from members.unfinished
    while proposals and members.group.trials and len(members.group.members) < members.group.trials:
        number = len(members.group.members)
        member = _trial(number, proposals.settings(number), members.group.fold)
        members.add(member)
        yield member


def _try(
    members: Members,
    member: Member,
    dataset: Dataset,
    proposals: Proposals | None,
    begun: bool,
    keywords: dict[str, Any],
) -> Generator[MemberEvent, None, None]:
    run = members.run(member)
    # Several processes would have to agree on what lies on the disk.
    shares = world.detect(keywords["devices"], keywords["nodes"]).processes == 1
    judge = proposals.judge(member) if proposals else None
    try:
        recipe, _ = members.settings(member)
        if not begun:
            plan.make(recipe, dataset, fold=member.fold)
    except (UsageError, DataError) as problem:
        members.note(member, status="failed", reason=problem.what)
        yield MemberStopped(run, "failed", problem.what)
        return
    if shares and not begun and (source := fork.start(members, member)):
        yield Noted(f"{run} starts from the end of stage 1 of {source}, which is the same")
        begun = True
    try:
        with closing(train_one(members, member, dataset, resume=begun, **keywords)) as events:
            for event in events:
                yield event
                if not isinstance(event, EpochDone):
                    continue
                if shares:
                    fork.keep(members, member, event)
                if judge and event.stage == recipe.stages()[-1][0] and (reason := judge(run)):
                    members.note(member, status="pruned", reason=reason)
                    yield MemberStopped(run, "pruned", reason)
                    return
    except DataError as problem:
        if not (shares or isinstance(problem, NotFinite)):
            raise  # another process may know nothing of it, and still be at this trial
        members.note(member, status="failed", reason=problem.what)
        yield MemberStopped(run, "failed", problem.what)


def ranked(members: Members) -> list[Member]:
    """Return the trials by AUROC on the tune part, best first, the earlier of equals first; those without come last."""
    made = [member for member in members.group.members if member.status != "waiting"]
    return sorted(made, key=lambda m: (m.status != "done", m.tune_auroc is None, -(m.tune_auroc or 0)))


def _conclude(members: Members) -> None:
    """Write `trials.csv`, and last point `winner` to the best trial."""
    order = ranked(members)
    keys = list(dict.fromkeys(key for member in order for key in member.settings))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", *keys, "tune_auroc", "best_epoch", "status", "reason"])
    for member in order:
        settings = [member.settings.get(key, "") for key in keys]
        table.writerow(
            [member.folder, *settings, member.tune_auroc, member.best_epoch, member.status, member.reason or ""]
        )
    files.write_text(members.path / TABLE, text.getvalue())
    best = order[0]
    if best.status != "done" or (best.tune_auroc is None and len(order) > 1):
        why = "none was trained to its end" if best.status != "done" else "the tune part does not hold both classes"
        raise DataError(
            f"no trial can be chosen: {why}" + (f" (the first: {best.reason})" if best.reason else ""),
            where=members.path / TABLE,
            fix="try other values, or prepare more positives",
        )
    _point(members.path / WINNER, best.folder)


def _point(link: Path, folder: str) -> None:
    """Make `link` a relative symbolic link to `folder` beside it, in one step whatever was there."""
    draft = link.parent / f".{link.name}.{os.getpid()}.tmp"
    with files.disk_errors(link):
        draft.unlink(missing_ok=True)
        draft.symlink_to(folder)
        draft.replace(link)
