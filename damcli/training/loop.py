"""A training run from start to end: check, prepare, open the folder, train. The steps themselves are in `trainer`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from damcli import files
from damcli.deepauc.network import Classifier
from damcli.recipes import Recipe
from damcli.training import checkpoint, folder, launch, plan, scoring, seeds
from damcli.training.checkpoint import Progress
from damcli.training.events import Event, Noted, PrecisionChosen, Started, Warned
from damcli.training.interruption import Interruption
from damcli.training.tracking import Metrics
from damcli.training.trainer import Trainer

if TYPE_CHECKING:
    from damcli.data.store import Dataset


def train(
    recipe: Recipe,
    dataset: Dataset,
    run: Path,
    *,
    origins: Mapping[str, str] | None = None,
    recipe_name: str = "custom",
    device: str = "auto",
    resume: bool = False,
) -> Generator[Event, None, None]:
    """Train `recipe` on the dataset's `train` split into the folder `run`; yields what happens.

    A patient-wise part of the split (`tune`) is kept out and chooses the best epoch; no other split is touched.
    `resume` continues a run from its last checkpoint, with its own settings. SIGINT and SIGTERM are granted after the
    step at hand, once its state is saved. Raises `UsageError` for a folder in use, `DataError` for a dataset that
    changed, a damaged checkpoint, or a loss that is not finite, `MachineError` for a device that is not there.
    """
    launch.accelerator(device)
    tune_ids = None
    if resume:
        info = folder.read_run(run)
        info.check_resumable(dataset)
        recipe, tune_ids = info.recipe, info.tune_ids
    else:
        folder.refuse_used(run)
    planned = plan.make(recipe, dataset, tune_ids)
    for text in plan.notes(planned, dataset):
        yield Noted(text)
    for text in plan.warnings(planned, recipe, dataset):
        yield Warned(text)

    torch.manual_seed(seeds.key(recipe.seed, "network"))
    begun = resume and checkpoint.read_progress(run) is not None
    weights, pretrained = (None, False) if begun else (recipe.weights, recipe.pretrained)
    network = Classifier(
        recipe.backbone, len(dataset.info.findings), weights, pretrained, recipe.in_chans, recipe.activation
    )
    timings: dict[str, float] = {}
    if recipe.precision == "auto":
        images = network.as_input(torch.from_numpy(dataset.read(planned.train[: recipe.batch_size])))
        choice = launch.faster_precision(device, network, images)
        recipe = recipe.model_copy(update={"precision": choice.precision})
        origins, timings = {**(origins or {}), "precision": choice.reason}, choice.seconds
        yield PrecisionChosen(choice.precision, choice.seconds, choice.reason)
    assert recipe.precision != "auto"
    fabric = launch.start(device, recipe.precision)

    with files.only_writer(run):
        progress = Progress()
        if begun:
            progress = checkpoint.read_progress(run) or progress
            checkpoint.restore(network, run, "last")
        if not resume:
            folder.refuse_used(run)
            folder.create(run, recipe, origins or {}, recipe_name, dataset, planned.tune, fabric.device, timings)
        with Metrics(run, progress.metrics_bytes) as metrics, Interruption() as interruption:
            yield Started(
                run=run,
                device=fabric.device.type,
                precision=recipe.precision,
                train_scans=len(planned.train),
                tune_scans=len(planned.tune),
                batches=_remaining(planned, progress),
                resumed_at=str(progress) if begun else None,
            )
            model = launch.setup(fabric, network)
            trainer = Trainer(recipe, dataset, run, planned, fabric, network, model, metrics, interruption, progress)
            yield from trainer.stages()
            yield from trainer.finish()


def _remaining(planned: plan.Plan, progress: Progress) -> int:
    """Return how many `Step`s and `Scored`s are still to come, the final scoring included."""
    scoring_batches = scoring.batches_of(len(planned.tune))
    left = scoring_batches
    for stage in planned.stages:
        epochs, steps = stage.stage.epochs, 0
        if stage.number < progress.stage:
            continue
        if stage.number == progress.stage:
            epochs, steps = epochs - progress.epoch, progress.step
        left += epochs * (len(stage.sampler) + scoring_batches) - steps
    return left
