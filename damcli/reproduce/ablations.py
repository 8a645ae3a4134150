"""The paper's ablations on a prepared benchmark: BSN off, α unconstrained, easy and noisy data added.

The paper's Appendix N is not at hand, so what is easy and what is noisy is defined here:

- easy: of each class the tenth of the training scans that a run by cross-entropy ranks most surely right is there
  twice. Both copies count as one patient, so that none is trained on while its copy chooses the epoch.
- noisy: the labels of a tenth of the training set's positives are exchanged with those of as many negatives. The tune
  part is drawn from that set, and is as noisy as it would be in earnest; the test split is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from damcli import files
from damcli.config import Resolved
from damcli.data.store import Dataset
from damcli.metrics import Estimate
from damcli.recipes import Recipe
from damcli.reproduce import cells
from damcli.reproduce.cells import Cell
from damcli.training import checkpoint, plan, scoring
from damcli.training.events import Step, Warned

SHARE = 0.1  # of each class that is easy, of the positives that are mislabelled


@dataclass(frozen=True)
class Arm:
    """One line of the table: a loss, what is changed of its stage, and the training set; `against` is its control."""

    name: str
    loss: str
    change: tuple[tuple[str, Any], ...] = ()
    data: str = "as is"
    against: str = ""


ARMS = (
    Arm("AUC-M", "aucm"),
    Arm("AUC-M, BSN off", "aucm", (("score", "sigmoid"),), against="AUC-M"),
    Arm("AUC-M, α unconstrained", "aucm", (("nonnegative", False),), against="AUC-M"),
    Arm("AUC-M, easy data", "aucm", data="easy", against="AUC-M"),
    Arm("AUC-M, noisy data", "aucm", data="noisy", against="AUC-M"),
    Arm("AUC-S", "aucs"),
    Arm("AUC-S, easy data", "aucs", data="easy", against="AUC-S"),
    Arm("AUC-S, noisy data", "aucs", data="noisy", against="AUC-S"),
)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the table. `recipes` by loss, of `ce` (which ranks the scans), `aucs` and `aucm`."""

    dataset: Dataset
    output: Path
    recipes: dict[str, Resolved[Recipe]]
    recipe_name: str
    imratio: float | None
    seeds: Sequence[int]

    def settings(self) -> dict[str, Any]:
        """Return what the folder of the experiment is known by."""
        return {
            "dataset": self.dataset.info.fingerprint,
            "imratio": self.imratio,
            "seeds": list(self.seeds),
            "recipes": {loss: recipe.value.model_dump(mode="json") for loss, recipe in self.recipes.items()},
        }

    def ranking(self, seed: int) -> Cell:
        """Return the run by cross-entropy that ranks the training scans."""
        resolved = self.recipes["ce"]
        recipe = resolved.value.model_copy(update={"seed": seed})
        training_set = cells.thinned(self.dataset, self.imratio, seed)
        return Cell(self.output / "runs" / "ranking" / f"seed{seed}", recipe, resolved.origins, training_set)

    def cell(self, arm: Arm, seed: int) -> Cell:
        """Return the run of an arm and a seed; for easy data the ranking run must be there."""
        resolved = self.recipes[arm.loss]
        stage = resolved.value.stage2.model_copy(update=dict(arm.change))
        recipe = resolved.value.model_copy(update={"stage2": stage, "seed": seed})
        training_set = cells.thinned(self.dataset, self.imratio, seed)
        if arm.data == "noisy":
            training_set = mislabelled(training_set, seed)
        elif arm.data == "easy":
            training_set = with_easy(training_set, self.ranking(seed))
        place = "".join(c if c.isalnum() else "-" for c in arm.name.replace("α", "alpha").lower())
        origins = {**resolved.origins, **{f"stage2.{key}": "ablation" for key, _ in arm.change}}
        return Cell(self.output / "runs" / place / f"seed{seed}", recipe, origins, training_set)

    def steps(self) -> int:
        """Return how many training steps are left, each arm counted as on the training set as it is."""
        left = sum(cell.steps for cell in map(self.ranking, self.seeds) if cell.tuned is None)
        plain = {loss: self.cell(Arm(loss, loss), self.seeds[0]).steps for loss in ("aucm", "aucs")}
        return left + sum(plain[arm.loss] for arm in ARMS) * len(self.seeds)


@dataclass(frozen=True)
class Row:
    """An arm and its AUROC on the test split, one per seed."""

    arm: Arm
    test: list[Estimate]
    runs: list[Path]


def run(experiment: Experiment, device: str = "auto") -> Iterator[Step | Warned | Row]:
    """Train what is not trained yet and test every arm; yields steps, warnings and the rows.

    Killed and called again it goes on. Raises `UsageError` for a dataset that is no benchmark, or other settings than
    it began with.
    """
    cells.check(experiment.dataset)
    cells.claim(experiment.output, experiment.settings())
    yield from cells.train([experiment.ranking(seed) for seed in experiment.seeds], experiment.recipe_name, device)
    for arm in ARMS:
        trained = [experiment.cell(arm, seed) for seed in experiment.seeds]
        yield from cells.train(trained, experiment.recipe_name, device)
        yield Row(arm, [cells.tested(cell) for cell in trained], [cell.run for cell in trained])


def mislabelled(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with a tenth of the positives of `train` called negative, and as many negatives positive."""
    finding = dataset.info.findings[0]
    rows = dataset.rows("train")
    truth = dataset.truth(rows)[:, 0]
    rng = np.random.default_rng([seed, 1])
    count = max(round(SHARE * float((truth == 1).sum())), 1)
    flipped = np.zeros(len(dataset.manifest), np.bool_)
    for label in (1, 0):
        flipped[rng.permutation(rows[truth == label])[:count]] = True
    columns = [
        pl.when(pl.Series(flipped)).then(1 - pl.col(name)).otherwise(pl.col(name)).alias(name)
        for name in (f"label:{finding}", f"target:{finding}")
    ]
    return cells.with_rows(dataset, dataset.manifest.with_columns(columns))


def with_easy(dataset: Dataset, ranking: Cell) -> Dataset:
    """Return the dataset with the training scans twice that the ranking run puts most surely on their own side."""
    rows = plan.make(ranking.recipe, dataset).train
    truth = dataset.truth(rows)[:, 0]
    network, _ = checkpoint.load_network(ranking.run, "best")
    scores = np.concatenate([part for _, part in scoring.score(network, dataset, rows)])[:, 0]
    easy = []
    for label, sign in ((1, -1), (0, 1)):
        members = np.flatnonzero(truth == label)
        easy.append(rows[members[np.argsort(sign * scores[members], kind="stable")][: round(SHARE * len(members))]])
    own = dataset.manifest.with_columns(pl.coalesce("patient", "id").alias("patient"))
    again = own[np.sort(np.concatenate(easy))].with_columns((pl.col("id") + " (again)").alias("id"))
    return cells.with_rows(dataset, pl.concat([own, again]))


def drop(row: Row, rows: Sequence[Row]) -> str:
    """Return by how much an arm lies below its control, mean ± standard deviation of the differences by seed."""
    control = next((other for other in rows if other.arm.name == row.arm.against), None)
    if control is None:
        return ""
    differences = [c.value - a.value for c, a in zip(control.test, row.test, strict=True)]
    if len(differences) == 1:
        return "n/a (one seed)"
    return f"{np.mean(differences):+.3f} ± {np.std(differences, ddof=1):.3f}"


def write(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """Write `ablations.md` and `ablations.json` into the experiment's folder; return the latter's content."""
    lines = [f"Test AUROC, {len(experiment.seeds)} seeds", "", "| | AUROC | drop |", "|---|---|---|"]
    lines += [f"| {row.arm.name} | {cells.spread(row.test)} | {drop(row, rows)} |" for row in rows]
    files.write_text(experiment.output / "ablations.md", "\n".join(lines) + "\n")
    document = {
        **experiment.settings(),
        "rows": [
            {
                "arm": row.arm.name,
                "data": row.arm.data,
                "changed": dict(row.arm.change),
                "cells": [
                    {"seed": seed, "test_auroc": test._asdict(), "run": str(path)}
                    for seed, test, path in zip(experiment.seeds, row.test, row.runs, strict=True)
                ],
            }
            for row in rows
        ],
    }
    files.write_json(experiment.output / "ablations.json", document)
    return document
