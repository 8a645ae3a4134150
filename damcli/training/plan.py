"""What a run will do, decided and checked before anything is written: its scans, samplers, losses, optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from damcli.data import splits
from damcli.deepauc import PESG, BalancedSampler, UniformSampler, losses
from damcli.errors import DataError, UsageError
from damcli.recipes import Recipe, Stage
from damcli.training import seeds

if TYPE_CHECKING:
    from damcli.data.store import Dataset

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StagePlan:
    """A stage with its number and its sampler, whose batches index the plan's `train` rows."""

    number: int
    stage: Stage
    sampler: UniformSampler | BalancedSampler
    prior: list[float] | None

    def loss(self, num_findings: int) -> losses.Loss:
        """Return the stage's loss, its a, b and α at 0."""
        return losses.from_stage(self.stage, num_findings, self.prior)

    def optimizer(self, network: torch.nn.Module, loss: torch.nn.Module) -> torch.optim.Optimizer:
        """Return the stage's optimizer over all of the network, and over the loss's own variables."""
        stage, parameters = self.stage, network.parameters()
        if stage.optimizer == "pesg":
            return PESG(
                parameters,
                loss,
                stage.lr,
                stage.gamma,
                stage.weight_decay,
                stage.momentum,
                stage.clip_norm,
                stage.update,
            )
        if stage.optimizer == "sgd":
            return torch.optim.SGD(parameters, stage.lr, stage.momentum, weight_decay=stage.weight_decay, fused=True)
        return torch.optim.Adam(parameters, stage.lr, weight_decay=stage.weight_decay, fused=True)


@dataclass(frozen=True)
class Plan:
    """The rows to train on, the patient-wise tune part kept out of them, and the stages that have epochs."""

    train: Rows
    tune: Rows
    stages: list[StagePlan]


def make(recipe: Recipe, dataset: Dataset, tune_ids: list[str] | None = None) -> Plan:
    """Divide the `train` split and prepare every stage. `tune_ids` are those of a run that is resumed.

    Raises `DataError` where the dataset cannot be trained on, `UsageError` for settings that do not fit it.
    """
    rows = dataset.rows("train")
    if recipe.in_chans < dataset.info.contract.channels:
        raise UsageError(
            "the scans are in colour, and a network of one channel takes grey ones",
            where="in_chans",
            fix="--set in_chans=3, or prepare them with --channels 1",
        )
    if tune_ids is None:
        patients, truth = dataset.patients(rows), dataset.truth(rows)
        tune = splits.part(patients, truth, recipe.tune_fraction, recipe.seed)
    else:
        kept = set(tune_ids)
        tune = np.array([name in kept for name in dataset.ids(rows)], bool)
    if tune.all() or not tune.any():
        raise DataError(
            f"the train split cannot be divided: {int(tune.sum())} of its {len(rows)} scans would be for selection",
            where=dataset.path,
            fix="prepare more patients, or set tune_fraction",
        )
    train = rows[~tune]
    targets = dataset.targets(train)
    stages = [_stage(number, stage, recipe, targets, dataset) for number, stage in recipe.stages()]
    return Plan(train, rows[tune], stages)


def _stage(number: int, stage: Stage, recipe: Recipe, targets: npt.NDArray[np.float32], dataset: Dataset) -> StagePlan:
    seed = seeds.key(recipe.seed, "sampler", number)
    form = f"stage{number}.form"
    with_prior = stage.loss in ("aucm", "aucs") and stage.form == "prior"
    if stage.sampler == "uniform":
        sampler = UniformSampler(len(targets), recipe.batch_size, seed)
        return StagePlan(number, stage, sampler, _prior(targets, dataset, form) if with_prior else None)
    if with_prior and targets.shape[1] > 1:
        raise UsageError(
            "balanced sampling of several findings leaves the prior of each undefined",
            where=form,
            fix=f"--set {form}=conditional",
        )
    try:
        balanced = BalancedSampler(targets, recipe.batch_size, stage.positives, seed)
    except ValueError as error:
        raise DataError(
            "no finding has both positives and negatives to train on", where=dataset.path, fix="prepare more scans"
        ) from error
    return StagePlan(number, stage, balanced, [balanced.prior] if with_prior else None)


def _prior(targets: npt.NDArray[np.float32], dataset: Dataset, form: str) -> list[float]:
    """Return the mean target of each finding. Raises `DataError` where one is not inside (0, 1)."""
    means = _means(targets)
    for finding, mean in zip(dataset.info.findings, means, strict=True):
        if not 0 < mean < 1:
            raise DataError(
                f"{finding} has one class only to train on, and the prior form needs both",
                where=dataset.path,
                fix=f"--set {form}=conditional, or leave it out with prepare --findings",
            )
    return means


def _means(targets: npt.NDArray[np.float32]) -> list[float]:
    """Return the mean target of each finding, 0 where all are missing."""
    known = ~np.isnan(targets)
    means = np.where(known, targets, 0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
    return means.tolist()


def notes(plan: Plan, dataset: Dataset) -> Iterator[str]:
    """Yield, in words, where the prior of the loss is the sampler's and not the training set's."""
    for planned in plan.stages:
        if planned.prior is not None and planned.stage.sampler == "balanced":
            share = float(np.nanmean(dataset.targets(plan.train)))
            yield (
                f"stage {planned.number}: p is {planned.prior[0]:.3g}, the balanced sampler's share of positives; the "
                f"training set's is {share:.3g}"
            )


def warnings(plan: Plan, recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """Yield, in words, what makes the run do less than it seems to."""
    findings = dataset.info.findings
    targets, truth = dataset.targets(plan.train), dataset.truth(plan.tune)
    for k, finding in enumerate(findings):
        for kind, many in (("positives", (targets[:, k] >= 0.5).any()), ("negatives", (targets[:, k] < 0.5).any())):
            if not many:
                yield f"{finding} has no {kind} to train on: nothing is learnt of it"
    undefined = [f for k, f in enumerate(findings) if not {0.0, 1.0} <= set(truth[:, k].tolist())]
    if len(undefined) == len(findings):
        yield "no finding has both classes in the tune part: the last epoch is taken for the best"
    elif undefined:
        yield f"the tune part does not hold both classes of {', '.join(undefined)}: n/a, and no part of the mean"
    for planned in plan.stages:
        yield from _late_decays(planned)
        shares = [planned.stage.positives] * len(findings)
        if planned.stage.sampler == "uniform":
            shares = _means(targets)
        elif left_out := planned.sampler.left_out:  # type: ignore[union-attr]
            yield f"stage {planned.number} leaves out {left_out} scans without a target that a balanced batch can use"
        loss = planned.loss(len(findings))
        noted: dict[str, list[str]] = {}
        for finding, share in zip(findings, shares, strict=True):
            positives = round(recipe.batch_size * share)
            if note := losses.margin_note(loss, positives, recipe.batch_size - positives):
                noted.setdefault(note, []).append(finding)
        for note, names in noted.items():
            yield f"stage {planned.number}, {', '.join(names)}: {note}"


def _late_decays(planned: StagePlan) -> Iterator[str]:
    stage, number = planned.stage, planned.number
    for name, entries, end in (
        ("decay_steps", stage.decay_steps, stage.epochs * len(planned.sampler)),
        ("decay_epochs", stage.decay_epochs, stage.epochs),
    ):
        late = [str(entry) for entry in entries if entry >= end]
        if late:
            yield f"stage{number}.{name}: {', '.join(late)} never comes, the stage has {end} {name.split('_')[1]}"
