"""The picture of the toy experiment: the paper's Figure 1 as a panel of two rows and three columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from damcli.report.plots import COLOURS, figure_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Cell(NamedTuple):
    """One panel: points (N, 2), labels and which were added (N,), the surface whose 0 is the boundary (S, S)."""

    title: str
    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.bool_]
    added: npt.NDArray[np.bool_]
    surface: npt.NDArray[np.float64]


def draw(rows: Sequence[tuple[str, Sequence[Cell]]], extent: float, path: Path) -> None:
    """Draw the panels into the PNG `path`: a row per loss with its name at the left; axes over ± `extent`.

    The boundary is dashed, and repeated faintly from the row's first panel; added points have a blue ring.
    """
    columns = len(rows[0][1])
    with figure_at(path, (4.0 * columns, 4.0 * len(rows) + 0.4)) as figure:
        for row, (name, cells) in enumerate(rows):
            for column, cell in enumerate(cells):
                axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
                _cell(axes, cell, cells[0].surface, extent)
                if column == 0:
                    axes.set_ylabel(name, fontsize=12)
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _cell(axes: Axes, cell: Cell, first: npt.NDArray[np.float64], extent: float) -> None:
    ticks = np.linspace(-extent, extent, len(cell.surface))
    if cell.surface is not first:
        axes.contour(ticks, ticks, first, levels=[0], colors="0.7", linewidths=1.0)
    axes.contour(ticks, ticks, cell.surface, levels=[0], colors="black", linestyles="--", linewidths=1.8)
    for label, name, marker, colour in ((True, "positive", "+", COLOURS[1]), (False, "negative", "o", COLOURS[2])):
        chosen = cell.points[cell.labels == label]
        filled = {"facecolors": "none"} if marker == "o" else {}
        axes.scatter(*chosen.T, marker=marker, s=26, color=colour, linewidths=1.1, label=name, **filled)
    # An empty one too, so that every panel has the same legend.
    axes.scatter(
        *cell.points[cell.added].T, s=70, facecolors="none", edgecolors=COLOURS[0], linewidths=0.9, label="added"
    )
    axes.plot([], [], "--", color="black", label="boundary")
    axes.plot([], [], color="0.7", label="boundary before")
    axes.set(title=cell.title, xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", xticks=[], yticks=[])
