"""What the benchmark experiments share: training sets drawn from one dataset, and runs that are made once.

Every run is an ordinary run folder of `damcli train`; a killed experiment goes on where it was, in the middle of a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from damcli import files
from damcli.data import splits
from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.metrics import Estimate, components, estimate
from damcli.recipes import Recipe
from damcli.report import tables
from damcli.training import checkpoint, folder, loop, plan, scoring
from damcli.training.events import Event, Finished, Step, Warned

TUNED, SETTINGS = "tuned.json", "settings.json"


@dataclass(frozen=True)
class Cell:
    """One run: where it lies, how it trains and where each setting is from, and on which training set."""

    run: Path
    recipe: Recipe
    origins: Mapping[str, str]
    dataset: Dataset

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        planned = plan.make(self.recipe, self.dataset)
        return sum(len(stage.sampler) * stage.stage.epochs for stage in planned.stages)

    @property
    def tuned(self) -> float | None:
        """Its best AUROC on the tune part, nan where undefined; None while it is not trained to its end."""
        file = self.run / TUNED
        if not file.is_file():
            return None
        found = files.read_json(file, "experiment")["tune_auroc"]
        return math.nan if found is None else float(found)


def check(dataset: Dataset) -> None:
    """Raise `UsageError` unless the dataset has one finding, a `train` split and a `test` split."""
    info = dataset.info
    if len(info.findings) != 1 or not {"train", "test"} <= info.splits.keys():
        raise UsageError(
            f"a benchmark has one finding, and splits train and test; this has {len(info.findings)} and "
            f"{', '.join(info.splits)}",
            where=dataset.path,
            fix="make one: damcli prepare benchmark PATH",
        )


def claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Write an experiment's settings into its folder; raise `UsageError` if it was begun with others."""
    path = output / SETTINGS
    asked = json.loads(json.dumps(settings))
    if not path.is_file():
        files.write_json(path, asked)
        return
    begun = files.read_json(path, "experiment")
    changed = sorted(key for key in {*begun, *asked} if begun.get(key) != asked.get(key))
    if changed:
        raise UsageError(
            f"this experiment was begun with another {', '.join(changed)}",
            where=path,
            fix="choose another folder with -o, or the settings that it began with",
        )


def with_rows(dataset: Dataset, manifest: pl.DataFrame) -> Dataset:
    """Return a view of the dataset: rows of its manifest, left out, repeated or relabelled."""
    return Dataset(dataset.path, dataset.info, manifest)


def thinned(dataset: Dataset, imratio: float | None, seed: int) -> Dataset:
    """Return the dataset with positives of `train` left out at random until they are `imratio` of it.

    Raises `UsageError` where there are too few.
    """
    if imratio is None:
        return dataset
    manifest = dataset.manifest
    train = (manifest["split"] == "train").to_numpy()
    kept = np.ones(len(manifest), np.bool_)
    try:
        kept[train] = splits.imbalanced(dataset.truth(np.flatnonzero(train))[:, 0] == 1, imratio, seed)
    except ValueError as error:
        raise UsageError(str(error), where="--imratio", fix="ask for a smaller share, or leave it out") from error
    return with_rows(dataset, manifest.filter(pl.Series(kept)))


def train(cells: Sequence[Cell], recipe_name: str, device: str) -> Iterator[Step | Warned]:
    """Train every cell that is not yet; yields its steps and what it warns of."""
    for cell in cells:
        if cell.tuned is None:
            yield from _train(cell, recipe_name, device)


def _train(cell: Cell, recipe_name: str, device: str) -> Generator[Step | Warned, None, None]:
    resume = (cell.run / folder.CONFIG).is_file()
    keywords: dict[str, Any] = {"recipe_name": recipe_name, "device": device, "resume": resume}
    events: Generator[Event, None, None] = loop.train(
        cell.recipe, cell.dataset, cell.run, origins=cell.origins, **keywords
    )
    with closing(events):
        for event in events:
            if isinstance(event, Step | Warned):
                yield event
            elif isinstance(event, Finished):
                found = None if math.isnan(event.mean_auroc) else event.mean_auroc
                files.write_json(cell.run / TUNED, {"tune_auroc": found, "best_epoch": event.best_epoch})


def best(cells: Sequence[Cell]) -> Cell:
    """Return the trained cell with the highest AUROC on the tune part, the first of equals.

    Raises `DataError` where there is something to choose, and nothing to choose by.
    """
    found = [math.nan if cell.tuned is None else cell.tuned for cell in cells]
    if len(cells) > 1 and np.isnan(found).all():
        raise DataError(
            "the validation part does not hold both classes, so nothing can be chosen by it",
            where=cells[0].dataset.path,
            fix="leave more positives (--imratio), a larger part (--set tune_fraction=0.2), or one point of the grid",
        )
    return cells[int(np.nanargmax(found))] if len(cells) > 1 else cells[0]


def tested(cell: Cell) -> Estimate:
    """Return the AUROC of a trained cell's best epoch on the test split; its scores stay in the run's folder."""
    rows = cell.dataset.rows("test")
    file = cell.run / "scores-test.parquet"
    finding = cell.dataset.info.findings[0]
    if not file.is_file():
        network, _ = checkpoint.load_network(cell.run, "best")
        scores = np.concatenate([part for _, part in scoring.score(network, cell.dataset, rows)])
        folder.write_table(file, {"path": cell.dataset.ids(rows), finding: scores[:, 0]})
    scores = pl.read_parquet(file)[finding].to_numpy()
    return estimate([components(cell.dataset.truth(rows)[:, 0], scores)])


def spread(aurocs: Sequence[Estimate]) -> str:
    """Write a figure of several seeds as mean ± standard deviation, that of one seed with its interval.

    >>> spread([Estimate(0.7, 0.6, 0.8), Estimate(0.72, 0.6, 0.8), Estimate(0.74, 0.6, 0.8)])
    '0.720 ± 0.020'
    >>> spread([Estimate(0.7, 0.6, 0.8)])
    '0.700 (0.600–0.800)'
    """
    if len(aurocs) == 1:
        return tables.in_words(aurocs[0])
    values = [auroc.value for auroc in aurocs]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
