"""The paper's Table 1 on a prepared benchmark: four losses, several random training sets, tuned on validation only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damcli import files
from damcli.config import Resolved
from damcli.data.store import Dataset
from damcli.metrics import Estimate
from damcli.recipes import Recipe
from damcli.reproduce import cells
from damcli.reproduce.cells import Cell
from damcli.training.events import Step, Warned

LOSSES = {"ce": "CE", "focal": "focal", "aucs": "AUC-S", "aucm": "AUC-M"}
# What the paper tunes (ALGORITHM section 8); lr is 0.1 throughout.
GRID: dict[str, tuple[float, ...]] = {
    "gamma": (1 / 100, 1 / 300, 1 / 500, 1 / 700, 1 / 1000),
    "margin": (0.1, 0.3, 0.5, 0.7, 1.0),
    "focal_alpha": (0.25, 0.5, 0.75),
    "focal_gamma": (1.0, 2.0, 5.0),
    "lr": (0.1,),
}
TUNED = {
    "ce": ("lr",),
    "focal": ("focal_alpha", "focal_gamma", "lr"),
    "aucs": ("gamma", "lr"),
    "aucm": ("gamma", "margin", "lr"),
}
# Table 1 of the paper: test AUC in percent and its standard deviation over five training sets, imratio 1 %.
PAPER = {
    ("cats-vs-dogs", "densenet121"): ("71.8 ± 1.8", "71.3 ± 0.9", "80.3 ± 1.8", "80.9 ± 1.6"),
    ("cifar10", "densenet121"): ("69.8 ± 1.7", "70.0 ± 0.7", "74.5 ± 1.0", "76.0 ± 0.6"),
    ("stl10", "densenet121"): ("64.1 ± 3.2", "66.0 ± 2.7", "66.9 ± 7.0", "70.3 ± 3.0"),
    ("cifar100", "densenet121"): ("58.8 ± 1.1", "59.1 ± 1.7", "60.7 ± 1.0", "61.4 ± 1.6"),
    ("cats-vs-dogs", "resnet20_cifar"): ("73.0 ± 2.8", "72.4 ± 2.0", "74.8 ± 0.7", "75.6 ± 1.7"),
    ("cifar10", "resnet20_cifar"): ("69.0 ± 1.1", "68.1 ± 1.1", "70.2 ± 1.5", "71.5 ± 0.8"),
    ("stl10", "resnet20_cifar"): ("64.1 ± 2.1", "63.4 ± 2.4", "64.5 ± 2.9", "65.9 ± 2.0"),
    ("cifar100", "resnet20_cifar"): ("56.3 ± 1.5", "56.5 ± 2.2", "58.7 ± 1.7", "59.6 ± 1.6"),
}


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the table. `recipes` by loss; `grid` by setting, as `GRID`.

    The grid is searched on the first seed's training set, by the AUROC on its tune part; all seeds take that choice.
    """

    dataset: Dataset
    output: Path
    recipes: Mapping[str, Resolved[Recipe]]
    recipe_name: str
    imratio: float | None
    seeds: Sequence[int]
    grid: Mapping[str, Sequence[float]]

    def settings(self) -> dict[str, Any]:
        """Return what the folder of the experiment is known by."""
        return {
            "dataset": self.dataset.info.fingerprint,
            "imratio": self.imratio,
            "seeds": list(self.seeds),
            "losses": list(self.recipes),
            "grid": {key: list(values) for key, values in self.grid.items()},
            "recipes": {loss: recipe.value.model_dump(mode="json") for loss, recipe in self.recipes.items()},
        }

    def points(self, loss: str) -> list[dict[str, float]]:
        """Return the points of the grid of a loss, each as settings of its stage."""
        keys = TUNED[loss]
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(self.grid[k] for k in keys))]

    def cell(self, loss: str, seed: int, point: Mapping[str, float]) -> Cell:
        """Return the run of one loss, seed and point of the grid."""
        recipe = self.recipes[loss].value
        name = "stage1" if loss in ("ce", "focal") else "stage2"
        stage = getattr(recipe, name).model_copy(update=dict(point))
        trained = recipe.model_copy(update={name: stage, "seed": seed})
        place = "-".join(f"{key}{value:.4g}" for key, value in point.items())
        origins = {**self.recipes[loss].origins, **dict.fromkeys((f"{name}.{key}" for key in point), "grid")}
        run = self.output / "runs" / loss / f"seed{seed}" / place
        return Cell(run, trained, {**origins, "seed": "seeds"}, cells.thinned(self.dataset, self.imratio, seed))

    def searched(self) -> list[Cell]:
        """Return the runs of the grid, on the first seed."""
        return [self.cell(loss, self.seeds[0], point) for loss in self.recipes for point in self.points(loss)]

    def chosen(self, loss: str) -> dict[str, float]:
        """Return the point of the grid that did best on the tune part, once all are trained."""
        points = self.points(loss)
        tried = [self.cell(loss, self.seeds[0], point) for point in points]
        return points[tried.index(cells.best(tried))]

    def steps(self) -> int:
        """Return how many training steps are left, as far as is known before the grid is searched."""
        repeats = len(self.seeds) - 1
        left = sum(cell.steps for cell in self.searched() if cell.tuned is None)
        for loss in self.recipes:
            point = self.points(loss)[0]
            left += repeats * self.cell(loss, self.seeds[0], point).steps
        return left


@dataclass(frozen=True)
class Row:
    """A loss: the chosen point, and per seed the AUROC on the tune part, on the test split, and the run."""

    loss: str
    point: dict[str, float]
    tune: list[float]
    test: list[Estimate]
    runs: list[Path]


def run(experiment: Experiment, device: str = "auto") -> Iterator[Step | Warned | Row]:
    """Train what is not trained yet, search the grid, test what is reported; yields steps, warnings and the rows.

    Killed and called again it goes on. Raises `UsageError` for a dataset that is no benchmark, or other settings than
    it began with.
    """
    cells.check(experiment.dataset)
    cells.claim(experiment.output, experiment.settings())
    yield from cells.train(experiment.searched(), experiment.recipe_name, device)
    for loss in experiment.recipes:
        point = experiment.chosen(loss)
        reported = [experiment.cell(loss, seed, point) for seed in experiment.seeds]
        yield from cells.train(reported, experiment.recipe_name, device)
        tune = [cell.tuned for cell in reported]
        yield Row(loss, point, [t for t in tune if t is not None], [cells.tested(c) for c in reported],
                  [c.run for c in reported])  # fmt: skip


def paper(experiment: Experiment, loss: str) -> str:
    """Return the paper's figure for the set, network and imratio of the experiment, or why there is none."""
    name = experiment.dataset.info.source.removeprefix("benchmark:")
    figures = PAPER.get((name, experiment.recipes[loss].value.backbone))
    if figures is None or experiment.imratio != 0.01:
        return "–"
    mean, deviation = figures[list(LOSSES).index(loss)].split(" ± ")
    return f"{float(mean) / 100:.3f} ± {float(deviation) / 100:.3f}"


def write(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """Write `table1.md` and `table1.json` into the experiment's folder; return the latter's content."""
    lines = [f"Test AUROC, {describe(experiment)}", "", "| loss | here | the paper | chosen on validation |"]
    lines += ["|---|---|---|---|"]
    for row in rows:
        point = ", ".join(f"{key} {value:.4g}" for key, value in row.point.items())
        lines.append(f"| {LOSSES[row.loss]} | {cells.spread(row.test)} | {paper(experiment, row.loss)} | {point} |")
    files.write_text(experiment.output / "table1.md", "\n".join(lines) + "\n")
    document = {
        **experiment.settings(),
        "rows": [
            {
                "loss": row.loss,
                "chosen": row.point,
                "paper": paper(experiment, row.loss),
                "cells": [
                    {
                        "seed": seed,
                        "tune_auroc": None if math.isnan(tune) else tune,
                        "test_auroc": test._asdict(),
                        "run": str(path),
                    }
                    for seed, tune, test, path in zip(experiment.seeds, row.tune, row.test, row.runs, strict=True)
                ],
            }
            for row in rows
        ],
    }
    files.write_json(experiment.output / "table1.json", document)
    return document


def describe(experiment: Experiment) -> str:
    """Return what the table is of, in one line."""
    recipe = next(iter(experiment.recipes.values())).value
    share = "training set as it is" if experiment.imratio is None else f"imratio {experiment.imratio:.3g}"
    many = "" if len(experiment.seeds) == 1 else "s"
    seeds = f"{len(experiment.seeds)} {'random training set' if experiment.imratio else 'seed'}{many}"
    return f"{experiment.dataset.info.source.removeprefix('benchmark:')}, {recipe.backbone}, {share}, {seeds}"
