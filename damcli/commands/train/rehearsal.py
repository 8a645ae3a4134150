"""`damcli train --dry-run`: what a run would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console
from damcli.config import Resolved
from damcli.recipes import Recipe

if TYPE_CHECKING:
    from damcli.data.store import Dataset


def check(settings: Resolved[Recipe], dataset: Path, run: Path, device: str) -> dict[str, Any]:
    """Return what a run would do, everything checked that can be without training; writes nothing."""
    from damcli.data.store import Dataset
    from damcli.deepauc.network import Classifier
    from damcli.training import folder, launch, plan

    recipe, opened = settings.value, Dataset.open(dataset)
    launch.accelerator(device)
    folder.refuse_used(run)
    planned = plan.make(recipe, opened)
    for text in plan.warnings(planned, recipe, opened):
        console.warn(text)
    network = Classifier(
        recipe.backbone,
        len(opened.info.findings),
        recipe.weights,
        in_chans=recipe.in_chans,
        activation=recipe.activation,
    )
    return {
        "dataset": str(dataset),
        "run": str(run),
        "backbone": recipe.backbone,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "train_scans": len(planned.train),
        "tune_scans": len(planned.tune),
        "stages": [
            {"stage": s.number, "loss": s.stage.loss, "epochs": s.stage.epochs, "steps_per_epoch": len(s.sampler)}
            for s in planned.stages
        ],
        "findings": [_counts(opened, planned, k) for k in range(len(opened.info.findings))],
    }


def _counts(dataset: Dataset, planned: Any, k: int) -> dict[str, Any]:
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
    console.table("Plan (nothing was written)", ["", ""], [[k, str(v)] for k, v in plan.items() if k not in lists])
    for key in sorted(lists, reverse=True):
        console.table(key.capitalize(), list(plan[key][0]), [[str(v) for v in row.values()] for row in plan[key]])
