"""`damcli train --dry-run`: what a run would do, after a batch of each stage was really trained on."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.config import Resolved
from damcli.errors import DataError
from damcli.recipes import Recipe

if TYPE_CHECKING:
    from damcli.data.store import Dataset
    from damcli.training.plan import Plan, StagePlan
    from damcli.training.trainer import Trainer


def check(
    settings: Resolved[Recipe],
    dataset: Path,
    run: Path,
    device: str,
    fold: int | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Return what a run would do, and what it takes; everything is checked, nothing is written.

    A batch of each stage is trained on as in a run, on a network that is thrown away. Of several processes it is the
    leading one's part of the batch; what passes between them is not in the figures. Pretrained weights are not fetched.
    """
    from damcli.data.store import Dataset
    from damcli.training import folder, launch, metadata, plan

    recipe, opened = settings.value, Dataset.open(dataset)
    launch.accelerator(device)
    folder.refuse_used(run)
    planned = plan.make(recipe, opened, fold=fold, ranks=processes)
    for text in plan.warnings(planned, recipe, opened):
        console.warn(text)
    if recipe.metadata.columns:
        metadata.prepare(recipe, opened, planned)
    measured = _measure(recipe, opened, planned, device, processes)
    stages = [
        {
            "stage": stage.number,
            "loss": stage.stage.loss,
            "optimizer": stage.stage.optimizer,
            "epochs": stage.stage.epochs,
            "steps_per_epoch": len(stage.sampler),
            "seconds_per_step": seconds,
        }
        for stage, seconds in zip(planned.stages, measured.pop("seconds_per_step"), strict=True)
    ]
    epochs = sum(stage.stage.epochs for stage in planned.stages)
    training = sum(one["epochs"] * one["steps_per_epoch"] * one["seconds_per_step"] for one in stages)
    # After each epoch, and once more the best.
    scoring = (epochs + 1) * len(planned.tune) / processes / measured["scored_per_second"]
    return {
        "dataset": str(dataset),
        "run": str(run),
        "backbone": recipe.backbone,
        **measured,
        "estimated_seconds": training + scoring,
        "train_scans": len(planned.train),
        "tune_scans": len(planned.tune),
        "stages": stages,
        "findings": [_counts(opened, planned, k) for k in range(len(opened.info.findings))],
    }


def _measure(recipe: Recipe, dataset: Dataset, planned: Plan, device: str, processes: int) -> dict[str, Any]:
    """Return precision, parameters, peak memory, and the seconds of a step of each stage and of scoring."""
    import torch

    from damcli.deepauc.network import Classifier
    from damcli.training import folder, launch, loop
    from damcli.training.checkpoint import Progress
    from damcli.training.interruption import Interruption
    from damcli.training.trainer import Trainer

    resident = _peak_resident()
    weights = str(folder.start_weights(recipe.weights)) if recipe.weights else None
    findings = len(planned.stages[0].findings)
    network = Classifier(recipe.backbone, findings, weights, in_chans=recipe.in_chans, activation=recipe.activation)
    machine = launch.start(device, "32" if recipe.precision == "auto" else recipe.precision)
    reason: str = recipe.precision
    if recipe.precision == "auto":
        with loop.machine_errors(dataset.path, machine):
            choice = loop.timed_precision(recipe, dataset, planned, network, device, processes)
        reason = f"{choice.precision} ({choice.reason})"
        machine = launch.start(device, choice.precision)
    cuda = machine.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(machine.device)
    # A batch whose loss is not finite is written beside the run, which must not be there yet.
    with tempfile.TemporaryDirectory() as elsewhere, loop.machine_errors(Path(elsewhere), machine):
        trainer = Trainer(recipe, dataset, Path(elsewhere), planned, machine, network, None, Interruption(), Progress())
        try:
            seconds = [_step_seconds(trainer, stage) for stage in planned.stages]
            scored = _scored_per_second(trainer)
        except DataError as problem:
            raise DataError(problem.what, where=dataset.path, fix=problem.fix) from problem
    now = _peak_resident()
    rise = None if resident is None or now is None else now - resident
    return {
        "device": torch.cuda.get_device_name(machine.device) if cuda else "cpu",
        "precision": reason,
        "parameters": sum(weights.numel() for weights in trainer.network.parameters()),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(machine.device) if cuda else rise,
        "peak_memory_of": "GPU memory allocated" if cuda else "rise of the process's resident memory",
        "seconds_per_step": seconds,
        "scored_per_second": scored,
    }


def _step_seconds(trainer: Trainer, stage: StagePlan) -> float:
    """Train on the stage's first batch twice, and return the seconds of the second time: the first one allocates."""
    from damcli.data import loader

    trainer.begin(stage, begun=False)
    rows = trainer.plan.train[stage.sampler.batches(0)[0]]
    with closing(loader.batches(trainer.dataset, [rows])) as loaded:
        [batch] = loaded
    trainer.learn(stage, batch)
    start = _now(trainer)
    trainer.learn(stage, batch)
    return _now(trainer) - start


def _scored_per_second(trainer: Trainer) -> float:
    """Score a batch of the tune part twice, and return the scans per second of the second time."""
    from damcli.training import scoring

    rows, machine = trainer.plan.tune[: scoring.BATCH], trainer.machine
    for _ in range(2):
        start = _now(trainer)
        for _ in scoring.score(trainer.network, trainer.dataset, rows, machine.device, machine.fabric.autocast):
            pass
    return len(rows) / (_now(trainer) - start)


def _now(trainer: Trainer) -> float:
    import torch

    if trainer.machine.device.type == "cuda":
        torch.cuda.synchronize(trainer.machine.device)
    return time.perf_counter()


def _peak_resident() -> int | None:
    """Return the most memory that this process has held so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _counts(dataset: Dataset, planned: Plan, k: int) -> dict[str, Any]:
    targets, truth = dataset.targets(planned.train)[:, k], dataset.truth(planned.tune)[:, k]
    return {
        "finding": dataset.info.findings[k],
        "train_positives": int((targets >= 0.5).sum()),
        "train_negatives": int((targets < 0.5).sum()),
        "tune_positives": int((truth == 1).sum()),
        "tune_negatives": int((truth == 0).sum()),
    }


def show(plan: dict[str, Any]) -> None:
    """Show what `check` returned."""
    if console.state.json:
        console.emit_json(plan)
    lists = {"stages", "findings"}
    shown = {key: value for key, value in plan.items() if key not in lists}
    bytes_, of = shown.pop("peak_memory_bytes"), shown.pop("peak_memory_of")
    shown |= {
        "parameters": f"{plan['parameters']:,}",
        "scored_per_second": f"{plan['scored_per_second']:,.0f}",
        "peak memory": f"not known ({of})" if bytes_ is None else f"{bytes_ / 2**20:,.0f} MiB ({of})",
        "estimated time": console.duration(shown.pop("estimated_seconds")),
    }
    console.table(
        "Plan (nothing was written)", ["", ""], [[key.replace("_", " "), str(value)] for key, value in shown.items()]
    )
    for key in sorted(lists, reverse=True):
        rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in plan[key]]
        console.table(key.capitalize(), [name.replace("_", " ") for name in plan[key][0]], rows)
