"""What a run will do, decided and checked before anything is written: its scans, samplers, losses, optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from damcli.data import augment, splits
from damcli.deepauc import PESG, BalancedSampler, UniformSampler, losses
from damcli.errors import DataError, UsageError
from damcli.recipes import Recipe, Stage
from damcli.training import seeds

if TYPE_CHECKING:
    from damcli.data.store import Dataset

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SMALLEST_PIECE = 2  # scans: batch normalisation has no variance of one


@dataclass(frozen=True)
class StagePlan:
    """A stage with its number, its findings (`columns` of the dataset's), and its sampler.

    The sampler's batches index the plan's `train` rows: of each global batch it draws this process's part.
    """

    number: int
    stage: Stage
    findings: list[str]
    columns: list[int]
    sampler: UniformSampler | BalancedSampler
    prior: list[float] | None

    def loss(self) -> losses.Loss:
        """Return the stage's loss, its a, b and α where they start."""
        return losses.from_stage(self.stage, len(self.findings), self.prior)

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

    def cyclic_lr(self, step: int) -> float | None:
        """Return the learning rate of a step, counted from 0 in the stage, of a triangular cycle; None without one.

        Smith, "Cyclical learning rates for training neural networks" (WACV 2017).
        """
        stage = self.stage
        if stage.cycle_epochs is None or stage.max_lr is None:
            return None
        phase = step / (stage.cycle_epochs * len(self.sampler)) % 1
        return stage.lr + (stage.max_lr - stage.lr) * (1 - abs(2 * phase - 1))


@dataclass(frozen=True)
class Plan:
    """The rows to train on, the patient-wise tune part kept out of them, and the stages that have epochs."""

    train: Rows
    tune: Rows
    stages: list[StagePlan]

    @property
    def findings(self) -> list[str]:
        """What the run's network tells in the end: the last stage's findings."""
        return self.stages[-1].findings


def make(
    recipe: Recipe,
    dataset: Dataset,
    tune_ids: list[str] | None = None,
    fold: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Plan:
    """Divide what is trained on and prepare every stage, for process `rank` of `ranks`.

    That is the `train` split, or with `fold` what `rows_of_folds` says. `tune_ids` are those of a run that is resumed.
    Raises `DataError` where the dataset cannot be trained on, `UsageError` for settings that do not fit it.
    """
    rows = dataset.rows("train") if fold is None else rows_of_folds(dataset, fold)[0]
    if recipe.in_chans < dataset.info.contract.channels:
        raise UsageError(
            "the scans are in colour, and a network of one channel takes grey ones",
            where="in_chans",
            fix="--set in_chans=3, or prepare them with --channels 1",
        )
    augment.check_channels(recipe.augment, dataset.info.contract.channels)
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
    stages = [_stage(number, stage, recipe, train, dataset, rank, ranks) for number, stage in recipe.stages()]
    plan = Plan(train, rows[tune], stages)
    if recipe.monitor not in ("mean", *plan.findings):
        raise UsageError(
            f"there is no finding {recipe.monitor!r} to choose the epoch by",
            where="monitor",
            fix=f"take mean, or one of: {', '.join(plan.findings)}",
        )
    return plan


def rows_of_folds(dataset: Dataset, fold: int) -> tuple[Rows, Rows]:
    """Return the rows to train on when `fold` is held out, and the rows held out.

    Trained on are the other folds, and what the train split has that is in no fold (other years' images), but no scan
    of a patient in `fold`. Raises `UsageError` for a dataset without folds, and for a fold that it does not have.
    """
    kept, _, out = _divided(dataset, fold)
    return np.flatnonzero(kept).astype(np.int64), np.flatnonzero(out).astype(np.int64)


def _divided(dataset: Dataset, fold: int) -> tuple[Mask, Mask, Mask]:
    """Return which scans are trained on, which are not because `fold` has their patients, and which it holds out."""
    folds, train = dataset.manifest["fold"], (dataset.manifest["split"] == "train").to_numpy()
    inside = folds.is_not_null().to_numpy()
    known = sorted(folds.drop_nulls().unique().to_list())
    if not known:
        raise UsageError("this dataset has no folds", where=dataset.path, fix="prepare it again with --folds 5")
    if fold not in known:
        raise UsageError(
            f"the dataset has no fold {fold}", where=dataset.path, fix=f"choose from: {', '.join(map(str, known))}"
        )
    out = (folds == fold).fill_null(False).to_numpy()
    patients = dataset.manifest["patient"].fill_null("")
    its_own = (patients.is_in(patients.filter(out).unique().to_list()) & (patients != "")).to_numpy()
    others = (inside | train) & ~out
    return others & ~its_own, others & its_own, out


def _stage(
    number: int, stage: Stage, recipe: Recipe, train: Rows, dataset: Dataset, rank: int, ranks: int
) -> StagePlan:
    seed = seeds.key(recipe.seed, "sampler", number)
    known = list(dataset.info.findings)
    findings = list(stage.findings) or known
    for finding in findings:
        if finding not in known:
            raise UsageError(
                f"the dataset has no finding {finding!r}",
                where=f"stage{number}.findings",
                fix=f"choose from: {', '.join(known)}",
            )
    columns = [known.index(finding) for finding in findings]
    targets = dataset.targets(train)[:, columns]
    form = f"stage{number}.form"
    with_prior = stage.loss in ("aucm", "aucs") and stage.form == "prior"
    prior: list[float] | None = None
    sampler: UniformSampler | BalancedSampler
    if stage.sampler == "uniform":
        try:
            sampler = UniformSampler(len(targets), recipe.batch_size, seed, rank, ranks)
        except ValueError as error:
            raise _too_small(error, dataset) from error
        prior = _prior(targets, findings, dataset, form) if with_prior else None
    else:
        if with_prior and targets.shape[1] > 1:
            raise UsageError(
                "balanced sampling of several findings leaves the prior of each undefined",
                where=form,
                fix=f"--set {form}=conditional",
            )
        try:
            sampler = BalancedSampler(targets, recipe.batch_size, stage.positives, seed, rank, ranks)
        except ValueError as error:
            if "ranks" in str(error):
                raise _too_small(error, dataset) from error
            raise DataError(
                "no finding has both positives and negatives to train on", where=dataset.path, fix="prepare more scans"
            ) from error
        prior = [sampler.prior] if with_prior else None
    parts = ranks * recipe.accumulate
    if parts > 1 and sampler.smallest < parts * SMALLEST_PIECE:
        raise UsageError(
            f"a batch of {sampler.smallest} is too small for {ranks} processes and {recipe.accumulate} pieces",
            where=f"batch_size = {recipe.batch_size}, of which the smallest of stage {number} has {sampler.smallest}",
            fix="take larger batches, or fewer devices or pieces",
        )
    return StagePlan(number, stage, findings, columns, sampler, prior)


def _too_small(error: ValueError, dataset: Dataset) -> UsageError:
    return UsageError(str(error), where=dataset.path, fix="take larger batches, or fewer devices")


def _prior(targets: npt.NDArray[np.float32], findings: list[str], dataset: Dataset, form: str) -> list[float]:
    """Return the mean target of each finding. Raises `DataError` where one is not inside (0, 1)."""
    means = _means(targets)
    for finding, mean in zip(findings, means, strict=True):
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


def notes(plan: Plan, dataset: Dataset, fold: int | None = None) -> Iterator[str]:
    """Yield, in words, what a fold leaves out, and where the prior of the loss is not the training set's."""
    if fold is not None and (left_out := int(_divided(dataset, fold)[1].sum())):
        yield f"{left_out} scans outside fold {fold} are of patients in it, and are not trained on"
    for planned in plan.stages:
        if planned.prior is not None and planned.stage.sampler == "balanced":
            share = float(np.nanmean(dataset.targets(plan.train)[:, planned.columns]))
            yield (
                f"stage {planned.number}: p is {planned.prior[0]:.3g}, the balanced sampler's share of positives; the "
                f"training set's is {share:.3g}"
            )


def warnings(plan: Plan, recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """Yield, in words, what makes the run do less than it seems to."""
    findings = dataset.info.findings
    used = sorted({column for planned in plan.stages for column in planned.columns})
    targets, truth = dataset.targets(plan.train), dataset.truth(plan.tune)
    for k in used:
        for kind, many in (("positives", (targets[:, k] >= 0.5).any()), ("negatives", (targets[:, k] < 0.5).any())):
            if not many:
                yield f"{findings[k]} has no {kind} to train on: nothing is learnt of it"
    undefined = [findings[k] for k in used if not {0.0, 1.0} <= set(truth[:, k].tolist())]
    last = plan.findings if recipe.monitor == "mean" else [recipe.monitor]
    if undefined and set(last) <= set(undefined):
        which = "no finding has" if len(last) > 1 else f"{last[0]} has not"
        yield f"{which} both classes in the tune part: the last epoch is taken for the best"
    elif undefined:
        yield f"the tune part does not hold both classes of {', '.join(undefined)}: n/a, and no part of the mean"
    counts = [(findings[k], n, int((truth[:, k] == n).sum())) for k in used for n in (1, 0)]
    for name, kind in [(name, "positive" if n else "negative") for name, n, many in counts if many == 1]:
        yield f"the tune part has one {kind} of {name}: its AUROC helps to choose the epoch, and has no interval"
    for planned in plan.stages:
        yield from _late_decays(planned)
        shares = [planned.stage.positives] * len(planned.findings)
        if planned.stage.sampler == "uniform":
            shares = _means(targets[:, planned.columns])
        elif left_out := planned.sampler.left_out:  # type: ignore[union-attr]
            yield f"stage {planned.number} leaves out {left_out} scans without a target that a balanced batch can use"
        loss = planned.loss()
        noted: dict[str, list[str]] = {}
        for finding, share in zip(planned.findings, shares, strict=True):
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
