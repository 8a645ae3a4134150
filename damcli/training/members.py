"""Folds and ensembles: several runs, trained in turn, that make one whole.

With folds every scan is scored once, by a network that has neither seen it nor been chosen on it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from damcli.errors import UsageError
from damcli.recipes import Recipe
from damcli.training import folder
from damcli.training.group import FOLD_SCORES, SCORES, Member, Members, begun_runs, claimed

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.events import Finished, MemberEvent


def of_folds(recipe: Recipe, dataset: Dataset, folds: Sequence[int] | None = None) -> list[Member]:
    """Return a member for each of the dataset's folds, or for each of an ensemble's members in each fold.

    Raises `UsageError` where the dataset has no folds, or not these.
    """
    known = dataset.manifest["fold"].drop_nulls().unique().sort().to_list()
    if not known:
        raise UsageError(
            "this dataset has no folds",
            where=dataset.path,
            fix="prepare it with folds: damcli prepare … --folds 5 -o DATASET",
        )
    unknown = [fold for fold in folds or () if fold not in known]
    if unknown:
        raise UsageError(
            f"the dataset has no fold {unknown[0]}", where=dataset.path, fix=f"take one of {', '.join(map(str, known))}"
        )
    members = []
    for fold in folds or known:
        if is_ensemble(recipe):
            for member in of_ensemble(recipe, dataset):
                start = None if member.start is None else f"fold-{fold}-{member.start}"
                named = {"folder": f"fold-{fold}-{member.folder}", "start": start, "fold": fold}
                members.append(member.model_copy(update=named))
        else:
            members.append(Member(folder=f"fold-{fold}", fold=fold))
    return members


def of_ensemble(recipe: Recipe, dataset: Dataset) -> list[Member]:
    """Return the members of an ensemble: every backbone with every seed.

    With `per_finding` each of these is a stage 1 on all findings, then a stage 2 for each that starts from it. Raises
    `UsageError` where one of the two stages has no epochs then.
    """
    wanted = recipe.ensemble
    if wanted.per_finding and not (recipe.stage1.epochs and recipe.stage2.epochs):
        raise UsageError(
            "a stage 2 for each finding needs epochs in both stages",
            where="ensemble.per_finding",
            fix="--set stage1.epochs=2 --set stage2.epochs=2, or --set ensemble.per_finding=false",
        )
    members = []
    for backbone in wanted.backbones or (recipe.backbone,):
        for seed in wanted.seeds or (recipe.seed,):
            name, settings = f"{backbone}-seed{seed}", {"backbone": backbone, "seed": seed}
            if not wanted.per_finding:
                members.append(Member(folder=name, settings=settings))
                continue
            first = f"{name}-stage1"
            # Its own choice of an epoch does not matter: the others start from its last.
            only_first = {"stage2.epochs": 0, "metadata.columns": [], "monitor": "mean"}
            members.append(Member(folder=first, settings={**settings, **only_first}, helper=True))
            for finding, suffix in zip(dataset.info.findings, _names(dataset.info.findings), strict=True):
                second = {"stage1.epochs": 0, "stage2.findings": [finding], "monitor": "mean"}
                members.append(Member(folder=f"{name}-{suffix}", settings={**settings, **second}, start=first))
    return members


def is_ensemble(recipe: Recipe) -> bool:
    """Whether a recipe asks for more than one run."""
    wanted = recipe.ensemble
    return bool(wanted.backbones or wanted.seeds or wanted.per_finding)


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
    """Train the folds or the ensemble to its end, in turn; yields what happens.

    Members that are done are left alone; one that was interrupted goes on. `time_limit` (seconds) is that of all
    together: `TimeIsUp` is then the last event. Raises what `loop.train` does: the members before it are kept.
    """
    from damcli.training.events import MembersFinished

    keywords: dict[str, Any] = {"device": device, "devices": devices, "nodes": nodes, "log": log}
    keywords["left"] = clock(time_limit)
    with claimed(members, dataset):
        begun = begun_runs(members)
        for member in members.unfinished:
            yield from train_one(members, member, dataset, resume=member.folder in begun, **keywords)
            if members.waits(member):
                return
        if members.group.kind == "folds" and members.leads:
            table = out_of_fold(members, dataset)
            folder.write_table(members.path / SCORES, table)
    yield MembersFinished(members.path)


def clock(time_limit: float | None) -> Callable[[], float | None]:
    """Return what says how many of `time_limit` seconds are left, always some; None where there is no limit."""
    start = time.monotonic()
    return lambda: None if time_limit is None else max(time_limit - (time.monotonic() - start), 1e-3)


def train_one(
    members: Members,
    member: Member,
    dataset: Dataset,
    *,
    resume: bool,
    left: Callable[[], float | None],
    device: str,
    devices: int | None,
    nodes: int | None,
    log: Sequence[str],
) -> Generator[MemberEvent, None, None]:
    """Train one member to its end, score its fold, and record that it is done; it waits on where time is up."""
    from damcli.training import loop
    from damcli.training.events import Finished, MemberStarted, PrecisionChosen, TimeIsUp

    known = [m.folder for m in members.group.members]
    total = members.group.trials or len(known)
    yield MemberStarted(members.run(member), known.index(member.folder) + 1, total, member.what)
    recipe, origins = members.settings(member)
    name = members.group.recipe_name
    events = loop.train(
        recipe,
        dataset,
        members.run(member),
        origins=origins,
        recipe_name=name,
        resume=resume,
        fold=member.fold,
        device=device,
        devices=devices,
        nodes=nodes,
        time_limit=left(),
        log=log,
    )
    finished = None
    with closing(events):
        for event in events:
            if isinstance(event, TimeIsUp):  # before its end, whatever it could already be evaluated by
                yield event
                return
            if isinstance(event, PrecisionChosen):
                members.note_precision(event.precision, event.reason)
            if isinstance(event, Finished):
                finished = event
            yield event
    assert finished is not None
    if member.fold is not None and not member.helper and members.leads:
        yield from _score_fold(members, member, dataset, device)
    value = monitored(recipe, finished)
    found = None if math.isnan(value) else value
    members.note(member, status="done", best_epoch=finished.best_epoch, tune_auroc=found)


def monitored(recipe: Recipe, finished: Finished) -> float:
    """Return the AUROC of the tune part that a run is chosen by; nan where it is undefined."""
    return finished.mean_auroc if recipe.monitor == "mean" else finished.aurocs[recipe.monitor].auroc


def _score_fold(members: Members, member: Member, dataset: Dataset, device: str) -> Generator[MemberEvent, None, None]:
    import torch

    from damcli.training import checkpoint, launch, metadata, plan, scoring
    from damcli.training.events import FoldScoring, Scored

    assert member.fold is not None
    run, (_, rows) = members.run(member), plan.rows_of_folds(dataset, member.fold)
    network, info = checkpoint.load_network(run)
    mixture = metadata.load(run, info.recipe)
    place = torch.device(launch.accelerator(device))
    yield FoldScoring(run, member.fold, len(rows), scoring.batches_of(len(rows)))
    parts = []
    with closing(scoring.score(network.to(place), dataset, rows, device=place)) as batches:
        for taken, scores in batches:
            parts.append(mixture.mixed(scores, dataset, taken) if mixture else scores)
            yield Scored(len(taken))
    scores = np.concatenate(parts)
    columns = {name: scores[:, k] for k, name in enumerate(info.findings)}
    folder.write_table(run / FOLD_SCORES, {"path": dataset.ids(rows), **columns})


def out_of_fold(members: Members, dataset: Dataset) -> dict[str, Any]:
    """Return `path`, `fold` and a score per finding of every scan, from the members that have not seen it.

    Where several have the finding, their mean. Scans come fold by fold.
    """
    import polars as pl

    finals = [member for member in members.group.members if not member.helper]
    columns: dict[str, list[Any]] = {"path": [], "fold": [], **{name: [] for name in members.group.findings}}
    for fold in dict.fromkeys(member.fold for member in finals):
        tables = [pl.read_parquet(members.run(m) / FOLD_SCORES) for m in finals if m.fold == fold]
        columns["path"] += tables[0]["path"].to_list()
        columns["fold"] += [fold] * len(tables[0])
        for name in members.group.findings:
            votes = [table[name].to_numpy() for table in tables if name in table.columns]
            columns[name].append(np.mean(votes, axis=0) if votes else None)
    table: dict[str, Any] = {"path": columns["path"], "fold": columns["fold"]}
    return table | {
        name: np.concatenate(columns[name]) for name in members.group.findings if columns[name][0] is not None
    }


def _names(findings: Sequence[str]) -> list[str]:
    """Return a name for a folder per finding.

    >>> _names(["No Finding", "Edema"]), _names(["a/b", "a b"])
    (['no-finding', 'edema'], ['finding1', 'finding2'])
    """
    names = [re.sub(r"\W+", "-", finding).strip("-").lower() for finding in findings]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"finding{number}" for number, _ in enumerate(findings, 1)]
