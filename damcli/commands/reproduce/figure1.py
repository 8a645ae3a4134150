"""`damcli reproduce figure1`: the toy example, square against margin loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, files
from damcli.commands import options

if TYPE_CHECKING:
    from damcli.reproduce.figure1 import Panel

NAMES = {"aucs": "AUC square loss", "aucm": "AUC margin loss"}
COLUMNS = ["loss", "data", "AUROC", "95 % interval", "boundary moved"]


def rows(panels: list[Panel]) -> list[list[str]]:
    """Return the table's rows: loss, data, AUROC on clean points with its interval, how far the boundary moved."""
    from damcli.report import tables
    from damcli.reproduce.figure1 import TITLES

    return [
        [NAMES[p.loss], TITLES[p.data], tables.figure(p.auroc), tables.interval(p.auroc), f"{p.moved:.1%}"]
        for p in panels
    ]


def draw(panels: list[Panel], extent: float, path: Path) -> None:
    """Draw the 2 × 3 panel into the PNG `path`."""
    from damcli.report import tables, toy
    from damcli.reproduce.figure1 import TITLES

    def cell(panel: Panel) -> toy.Cell:
        title = f"{TITLES[panel.data]}\nAUROC {tables.in_words(panel.auroc)}"
        return toy.Cell(title, panel.points, panel.labels, panel.added, panel.surface)

    losses = dict.fromkeys(panel.loss for panel in panels)
    toy.draw([(NAMES[loss], [cell(p) for p in panels if p.loss == loss]) for loss in losses], extent, path)


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.")] = Path("reproduce/figure1"),
    seed: options.Seed = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw the paper's Figure 1: easy examples and noisy labels, AUC square against AUC margin loss.

    A toy in the plane with data of our own, trained by the losses and the optimizer that damcli trains with. Writes
    figure1.png and figure1.json. Takes seconds on a CPU.

    Example: damcli reproduce figure1 --seed 1
    """
    options.apply(quiet, verbose, as_json)
    from damcli.reproduce import figure1

    settings = figure1.Settings()
    steps = figure1.panels(settings, seed or 0)
    panels = list(console.track(steps, len(figure1.LOSSES) * len(figure1.SETS), "figure1", unit="panels"))
    draw(panels, settings.extent, output / "figure1.png")
    document = figure1.document(settings, seed or 0, panels)
    files.write_json(output / "figure1.json", document)
    if console.state.json:
        console.emit_json({**document, "picture": str(output / "figure1.png")})
    title = f"AUROC on {2 * settings.tested} clean points; the boundary, on a grid, against the pre-trained one"
    console.table(title, COLUMNS, rows(panels))
    console.result(str(output / "figure1.png"))
    console.next_step("damcli prepare benchmark PATH, then damcli reproduce table1")
