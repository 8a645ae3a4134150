"""`damcli reproduce table1`: four losses on a benchmark, beside the paper's figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from damcli import console, project
from damcli.commands import options
from damcli.errors import UsageError
from damcli.recipes import label

if TYPE_CHECKING:
    from damcli.reproduce.table1 import Experiment, Row

T = TypeVar("T")
COLUMNS = ["loss", "AUROC", "the paper", "chosen on validation"]


def experiment(
    dataset: Path | None,
    output: Path,
    recipe: str,
    assignments: Sequence[str],
    losses: Sequence[str],
    imratio: float | None,
    seeds: int,
    grid: Sequence[str],
) -> Experiment:
    """Return the experiment that the command line describes. Raises `UsageError`."""
    from damcli.commands.train import resolve
    from damcli.data.store import Dataset
    from damcli.reproduce import table1

    if dataset is None:
        dataset = project.newest_dataset()
        console.note(f"dataset: {dataset}, the newest under data/")
    unknown = [loss for loss in losses if loss not in table1.LOSSES]
    if unknown or not losses:
        raise UsageError(
            f"there is no loss {unknown[0] if unknown else ''!r}", where="--losses", fix="ce,focal,aucs,aucm"
        )
    recipes = {loss: resolve(recipe, loss, None, assignments) for loss in losses}  # type: ignore[arg-type]
    return table1.Experiment(Dataset.open(dataset), output, recipes, label(recipe), imratio, range(seeds), values(grid))


def values(grid: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the grid with what `--grid KEY=V,V` says in place of the paper's values.

    >>> values(["margin=0.5,1"])["margin"]
    (0.5, 1.0)
    """
    from damcli.reproduce.table1 import GRID

    changed = dict(GRID)
    for text in grid:
        key, _, numbers = text.partition("=")
        if key not in GRID:
            raise UsageError(f"the grid has no setting {key!r}", where="--grid", fix=f"choose from: {', '.join(GRID)}")
        try:
            changed[key] = tuple(float(number) for number in numbers.split(","))
        except ValueError as error:
            raise UsageError(f"--grid takes numbers, got {text!r}", fix=f"write --grid {key}=0.1,0.5") from error
    return changed


def steps_of(events: Iterable[Any], found: list[Any], kind: type[T]) -> Iterator[Any]:
    """Yield the training steps that a progress bar counts; say each warning once, and keep what is of `kind`."""
    from damcli.training.events import Warned

    said: set[str] = set()
    for event in events:
        if isinstance(event, kind):
            found.append(event)
        elif isinstance(event, Warned):
            # The same doubt about hundreds of runs is said of the first; every run's metrics.jsonl has its own.
            kind_of_doubt = re.sub(r"\d|\([^)]*\)", "", event.text)
            if kind_of_doubt not in said:
                said.add(kind_of_doubt)
                console.warn(event.text)
        else:
            yield event


def rows(experiment: Experiment, found: Sequence[Row]) -> list[list[str]]:
    """Return the table's rows: loss, mean ± standard deviation over seeds, the paper's, the chosen settings."""
    from damcli.reproduce import cells, table1

    return [
        [
            table1.LOSSES[row.loss],
            cells.spread(row.test),
            table1.paper(experiment, row.loss),
            ", ".join(f"{key} {value:.4g}" for key, value in row.point.items()),
        ]
        for row in found
    ]


def command(
    dataset: Annotated[Path | None, typer.Argument(help="A prepared benchmark; default: the newest dataset.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path("reproduce/table1"),
    imratio: Annotated[float | None, typer.Option(help="Share of positives to leave; default: as prepared.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many random training sets.")] = 5,
    losses: Annotated[str, typer.Option(help="Which losses.")] = "ce,focal,aucs,aucm",
    recipe: Annotated[str, typer.Option(help="A name or a .toml file.")] = "benchmark",
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting.")] = None,
    grid: Annotated[list[str] | None, typer.Option(metavar="KEY=V,V", help="Instead of the paper's values.")] = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Repeat the paper's Table 1 on a prepared benchmark: CE and focal by SGD, AUC-S and AUC-M by PESG.

    The grid is searched on the first training set, by its validation part (a tenth); all seeds take that choice, and
    only what is reported sees the test split. In full 40 runs of 100 epochs for the grid and 16 for the other seeds:
    days on a CPU. Stopped, the same command goes on.

    Example: damcli reproduce table1 data/cifar10 --imratio 0.01 --grid gamma=0.002 --grid margin=0.5,1
    """
    options.apply(quiet, verbose, as_json)
    options.check_device(device)
    from damcli.reproduce import cells, table1

    asked = experiment(
        dataset, output, recipe, assignments or (), losses.split(","), imratio, seeds, grid or ()
    )  # fmt: skip
    cells.check(asked.dataset)
    console.note(table1.describe(asked))
    searched, total = asked.searched(), asked.steps()
    repeats = len(asked.recipes) * (seeds - 1)
    console.note(f"{len(searched)} runs to search the grid, {repeats} for the other seeds; {total} steps are left")
    if dry_run:
        plan = [[str(cell.run), str(cell.steps)] for cell in searched]
        if as_json:
            console.emit_json({"steps": total, "searched": [str(cell.run) for cell in searched], "repeats": repeats})
        return console.table("Runs (nothing was written)", ["run", "steps"], plan)
    found: list[Row] = []
    with closing(table1.run(asked, device)) as events:  # type: ignore[type-var]
        for _ in console.track(steps_of(events, found, table1.Row), total, "table1", unit="steps"):
            pass
    document = table1.write(asked, found)
    if as_json:
        console.emit_json(document)
    console.table(f"Test AUROC, {table1.describe(asked)}", COLUMNS, rows(asked, found))
    console.result(str(output / "table1.md"))
    console.next_step("damcli reproduce ablations")
