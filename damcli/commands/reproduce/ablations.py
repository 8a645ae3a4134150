"""`damcli reproduce ablations`: what BSN, the constraint on α, easy and noisy data do to the AUC losses."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, project
from damcli.commands import options
from damcli.recipes import label

if TYPE_CHECKING:
    from damcli.reproduce.ablations import Row


def command(
    dataset: Annotated[Path | None, typer.Argument(help="A prepared benchmark; default: the newest dataset.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path("reproduce/ablations"),
    imratio: Annotated[float | None, typer.Option(help="Share of positives to leave; default: as prepared.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many random training sets.")] = 5,
    recipe: Annotated[str, typer.Option(help="A name or a .toml file.")] = "benchmark",
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Any setting.")] = None,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Repeat the paper's ablations: BSN off, α unconstrained, easy and noisy data added.

    Nine runs a seed (one by cross-entropy, which says what is easy): with the full recipe days on a CPU. Stopped, the
    same command goes on. With the margin out of reach α never meets its constraint: choose one that is reachable.

    Example: damcli reproduce ablations data/cifar10 --imratio 0.1 --set stage2.margin=0.1
    """
    options.apply(quiet, verbose, as_json)
    options.check_device(device)
    from damcli.commands.reproduce.table1 import steps_of
    from damcli.commands.train import resolve
    from damcli.data.store import Dataset
    from damcli.reproduce import ablations, cells

    if dataset is None:
        dataset = project.newest_dataset()
        console.note(f"dataset: {dataset}, the newest under data/")
    recipes = {loss: resolve(recipe, loss, None, assignments or ()) for loss in ("ce", "aucs", "aucm")}
    asked = ablations.Experiment(
        Dataset.open(dataset), output, recipes, label(recipe), imratio, range(seeds)
    )  # fmt: skip
    cells.check(asked.dataset)
    total = asked.steps()
    console.note(f"{(len(ablations.ARMS) + 1) * seeds} runs; about {total} steps are left")
    if dry_run:
        if as_json:
            console.emit_json({"steps": total, "arms": [arm.name for arm in ablations.ARMS]})
        return console.table("Arms (nothing was written)", ["arm", "data"], [[a.name, a.data] for a in ablations.ARMS])
    found: list[Row] = []
    with closing(ablations.run(asked, device)) as events:  # type: ignore[type-var]
        for _ in console.track(steps_of(events, found, ablations.Row), total, "ablations", unit="steps"):
            pass
    document = ablations.write(asked, found)
    if as_json:
        console.emit_json(document)
    rows = [[row.arm.name, cells.spread(row.test), ablations.drop(row, found)] for row in found]
    console.table(f"Test AUROC, {seeds} seeds", ["", "AUROC", "drop against as is"], rows)
    console.result(str(output / "ablations.md"))
    console.next_step("damcli info runs")
