"""A training run from start to end: check, prepare, open the folder, train. The steps themselves are in `trainer`."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from damcli import files
from damcli.deepauc.network import Classifier
from damcli.errors import MachineError
from damcli.recipes import Recipe
from damcli.training import checkpoint, folder, launch, loggers, metadata, plan, scoring, seeds, tracking, world
from damcli.training.checkpoint import Latest, Progress
from damcli.training.events import Event, Noted, PrecisionChosen, Started, TimeIsUp, Warned
from damcli.training.interruption import Interruption
from damcli.training.launch import Machine
from damcli.training.tracking import Metrics
from damcli.training.trainer import TimeLimit, Trainer

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
    devices: int | None = None,
    nodes: int | None = None,
    resume: bool = False,
    fold: int | None = None,
    time_limit: float | None = None,
    log: Sequence[str] = (),
) -> Generator[Event, None, None]:
    """Train `recipe` on the dataset's `train` split into the folder `run`; yields what happens.

    A patient-wise part of the split (`tune`) is kept out and chooses the best epoch; no other split is touched. With
    `fold` it is all folds but this one that are trained on. `resume` continues a run from its last checkpoint, with its
    own settings. `time_limit` is in seconds; `log` names the loggers that follow the run (`training.loggers`). SIGINT
    and SIGTERM are granted after the step at hand, once its state is saved.

    With `devices` on each of `nodes` machines, or under torchrun, Slurm or MPI, every process calls this function and
    gets the same events; the leading one writes. The run's folder must be one that all of them see.

    Raises `UsageError` for a folder in use, `DataError` for a dataset that changed, damaged checkpoints, or a loss that
    is not finite, `MachineError` for a device that is not there or another process that is lost.
    """
    launch.accelerator(device)
    loggers.check(log)
    place = world.detect(devices, nodes)
    tune_ids = None
    if resume:
        info = folder.read_run(run)
        info.check_resumable(dataset)
        recipe, tune_ids, fold = info.recipe, info.tune_ids, info.facts.fold
    elif place.rank == 0:
        folder.refuse_used(run)
    planned = plan.make(recipe, dataset, tune_ids, fold, place.rank, place.processes)
    for text in plan.notes(planned, dataset, fold):
        yield Noted(text)
    for text in plan.warnings(planned, recipe, dataset):
        yield Warned(text)
    mixture = metadata.of_run(run, recipe, dataset, planned)
    if mixture:
        yield Noted(str(mixture))
        for text in mixture.encoding.leaks:
            yield Warned(text)
    latest = checkpoint.latest(run) if resume else None
    if recipe.weights and not latest:
        for text in folder.doubts_of_start(recipe.weights, dataset, planned, fold):
            yield Warned(text)
    if latest and latest.doubt:
        yield Warned(f"{latest.doubt.splitlines()[0]}: going on from the one before, {latest.progress}")
    network = _network(recipe, planned, latest)

    machine = launch.start(device, "32" if recipe.precision == "auto" else recipe.precision, place)
    timings: dict[str, float] = {}
    with ExitStack() as open_things:
        open_things.enter_context(machine_errors(run, machine))
        if recipe.precision == "auto":
            timed = None
            if machine.leads:
                timed = timed_precision(recipe, dataset, planned, network, device, place.processes)
            choice = machine.share(timed)
            recipe = recipe.model_copy(update={"precision": choice.precision})
            origins, timings = {**(origins or {}), "precision": choice.reason}, choice.seconds
            machine = launch.start(device, choice.precision, place)
            yield PrecisionChosen(choice.precision, choice.seconds, choice.reason)
        for text in _differences(latest, machine):
            yield Warned(text)

        progress = latest.progress if latest else Progress()
        metrics = None
        if machine.leads:
            open_things.enter_context(files.only_writer(run))
            if latest:
                checkpoint.settle(run, latest.which)
            if not resume:
                folder.refuse_used(run)
                folder.create(run, recipe, origins or {}, recipe_name, dataset, planned, fold, machine.device, timings)
            if mixture:
                metadata.save(mixture, run)
            metrics = open_things.enter_context(Metrics(run, progress.metrics_bytes))
        opened = loggers.open(log if machine.leads else (), run)
        open_things.callback(opened.close)
        machine.wait()
        interruption = open_things.enter_context(Interruption())
        yield Started(
            run=run,
            device=machine.device.type,
            precision=recipe.precision,
            processes=machine.processes,
            train_scans=len(planned.train),
            tune_scans=len(planned.tune),
            batches=_remaining(planned, progress, machine.processes),
            resumed_at=str(progress) if latest else None,
        )
        if recipe.compile:
            yield Noted("the network is compiled: the first step and the first evaluation take minutes")
        deadline = time.monotonic() + (math.inf if time_limit is None else time_limit)
        trainer = Trainer(
            recipe, dataset, run, planned, machine, network, metrics, interruption, progress, deadline, opened, mixture
        )
        try:
            yield from trainer.stages()
        except TimeLimit:
            best = trainer.progress.best
            yield TimeIsUp(run, str(trainer.progress), best.epoch if best else None)
            if best is None:
                return
        for text in opened.close():
            yield Warned(text)
        yield from trainer.finish()


def _network(recipe: Recipe, planned: plan.Plan, latest: Latest | None) -> Classifier:
    """Return the network as the run starts with it; what a checkpoint holds is loaded by the trainer."""
    torch.manual_seed(seeds.key(recipe.seed, "network"))
    number = latest.progress.stage if latest else planned.stages[0].number
    [stage] = [stage for stage in planned.stages if stage.number == number]
    weights = str(folder.start_weights(recipe.weights)) if recipe.weights and not latest else None
    return Classifier(
        recipe.backbone,
        len(stage.findings),
        weights,
        recipe.pretrained and not latest,
        recipe.in_chans,
        recipe.activation,
    )


def timed_precision(
    recipe: Recipe, dataset: Dataset, planned: plan.Plan, network: Classifier, device: str, processes: int
) -> launch.Choice:
    """Return the faster precision for as many scans as a process has to hold at once."""
    piece = -(-recipe.batch_size // (processes * recipe.accumulate))
    images = network.as_input(torch.from_numpy(dataset.read(planned.train[:piece])))
    return launch.faster_precision(device, network, images)


def _differences(latest: Latest | None, machine: Machine) -> Iterator[str]:
    """Yield, in words, what is not as it was when the checkpoint was made."""
    now = folder.made_on(machine.device, machine.processes)
    for name, before in (latest.made_on if latest else {}).items():
        if now.get(name) != before:
            yield (
                f"the run was made with {name} {before} so far and goes on with {now.get(name)}: it ends close to what "
                "it would have been, not with the same bits"
            )


@contextmanager
def machine_errors(run: Path, machine: Machine) -> Iterator[None]:
    """Say what a machine's failure means for a run, in place of what torch says."""
    try:
        yield
    except MachineError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise MachineError(error.what, where=error.where, fix=f"mend that, then damcli train --resume {run}") from error
    except torch.OutOfMemoryError as error:
        raise MachineError(
            "the GPU has not enough memory for a batch",
            where=tracking.device_name(machine.device),
            fix="--set accumulate=2 computes it in two pieces with the same loss; or take smaller batches",
        ) from error
    except RuntimeError as error:
        if machine.processes == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise MachineError(
            "the connection to another process of this run is lost",
            where=run,
            fix=f"see what that one said, then go on: damcli train --resume {run}",
        ) from error


def _remaining(planned: plan.Plan, progress: Progress, processes: int) -> int:
    """Return how many `Step`s and `Scored`s are still to come, the final scoring included."""
    scoring_batches = scoring.batches_of(len(planned.tune), processes)
    left = scoring_batches
    for stage in planned.stages:
        epochs, steps = stage.stage.epochs, 0
        if stage.number < progress.stage:
            continue
        if stage.number == progress.stage:
            epochs, steps = epochs - progress.epoch, progress.step
        left += epochs * (len(stage.sampler) + scoring_batches) - steps
    return left
