"""Axes, lines and marks as SVG, in the colours of the page and of a size that many scans do not add to."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from damcli.report.plots import COLOURS, DASHES

Values = npt.NDArray[np.floating[Any]]
MOST_POINTS = 400  # of a line; more are thinned
STROKES = dict(zip(DASHES, ("", "6 3", "1.5 3", "7 3 1.5 3"), strict=True))


class Axes:
    """A drawing with two linear axes, `x` and `y` being their ends; what is added later lies on top.

    `ticks` are the numbers on the axes, else round ones are taken; `names` what the axes are called.
    """

    LEFT, RIGHT, TOP, BOTTOM = 42, 10, 28, 42

    def __init__(
        self,
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        names: tuple[str, str],
        percent: bool = False,
        whole: bool = False,
    ) -> None:
        self.width, self.height = size
        self._x, self._y = x, y
        self._parts: list[str] = []
        bottom, right = self.height - self.BOTTOM, self.width - self.RIGHT
        for at in ticks(*x, whole=whole):
            across = _number(self._across(at))
            self._parts.append(f'<path class="grid" d="M{across} {self.TOP}V{bottom}"/>')
            self._parts.append(f'<text x="{across}" y="{bottom + 16}" text-anchor="middle">{tick(at)}</text>')
        for at in ticks(*y):
            up = self._up(at)
            text = f"{100 * at:.3g} %" if percent else tick(at)
            self._parts.append(f'<path class="grid" d="M{self.LEFT} {_number(up)}H{right}"/>')
            self._parts.append(f'<text x="{self.LEFT - 7}" y="{_number(up + 4)}" text-anchor="end">{text}</text>')
        # Both names are read without turning the head: that of y stands above its axis.
        self._parts.append(f'<text x="{right}" y="{self.height - 6}" text-anchor="end">{html.escape(names[0])}</text>')
        self._parts.append(f'<text x="0" y="12">{html.escape(names[1])}</text>')

    def line(self, x: Values, y: Values, kind: str = "line", number: int = 0) -> None:
        """Add a line; it is broken where `x` or `y` is not a number. `kind` is a class of page.css."""
        found = path(self._across(x), self._up(y))
        if found:
            self._parts.append(f'<path class="{kind} {look(number)}"{dashes(number)} d="{found}"/>')

    def band(self, x: Values, low: Values, high: Values, number: int = 0) -> None:
        """Fill what lies between `low` and `high`."""
        around = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
        self._parts.append(
            f'<path class="band {look(number)}" d="{path(self._across(around[0]), self._up(around[1]))}Z"/>'
        )

    def stairs(self, edges: Values, heights: Values, kind: str, number: int) -> None:
        """Add a histogram's outline; `kind` says in page.css whether it is filled."""
        x = np.repeat(edges, 2)
        y = np.concatenate([[0], np.repeat(heights, 2), [0]])
        self._parts.append(f'<path class="{kind} {look(number)}" d="{path(self._across(x), self._up(y))}"/>')

    def whiskers(self, x: Values, low: Values, high: Values, number: int = 0) -> None:
        """Add an upright line from `low` to `high` at every `x`."""
        for at, one, other in zip(self._across(x), self._up(low), self._up(high), strict=True):
            self._parts.append(
                f'<path class="whisker {look(number)}" d="M{_number(at)} {_number(one)}V{_number(other)}"/>'
            )

    def marks(self, x: Iterable[float], y: Iterable[float], shape: str = "dot", number: int = 0) -> None:
        """Add a mark of one of `SHAPES` at every point."""
        for across, up in zip(x, y, strict=True):
            self._parts.append(mark(self._across(across), self._up(up), shape, number))

    def text(self, title: str, description: str, name: str) -> str:
        """Return the drawing; `name` is one that no other drawing of the page has."""
        return document(self.width, self.height, "".join(self._parts), title, description, name)

    def _across(self, x: Any) -> Any:
        low, high = self._x
        return self.LEFT + (x - low) / (high - low) * (self.width - self.LEFT - self.RIGHT)

    def _up(self, y: Any) -> Any:
        low, high = self._y
        return self.height - self.BOTTOM - (y - low) / (high - low) * (self.height - self.TOP - self.BOTTOM)


SHAPES = {
    "dot": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "ring": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "diamond": "m0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
}


def mark(x: float, y: float, shape: str, number: int) -> str:
    """Return a mark of one of `SHAPES`."""
    return f'<path class="{shape} {look(number)}" d="M{_number(x)} {_number(y)}{SHAPES[shape]}"/>'


def sample(kind: str, number: int) -> str:
    """Return a piece of a line or of a histogram, for a legend."""
    closed = kind in ("filled", "outline")
    return f'<path class="{kind} {look(number)}"{dashes(number)} d="{"M4 1h16v10h-16z" if closed else "M0 6h24"}"/>'


def document(width: int, height: int, content: str, title: str, description: str, name: str) -> str:
    """Return an SVG element that has a title and a description for those who do not see it."""
    return (
        f'<svg role="img" aria-labelledby="{name}-title" aria-describedby="{name}-text"'
        f' viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-text">{html.escape(description)}</desc>'
        f"{content}</svg>"
    )


def look(number: int) -> str:
    """Return the class of the colour of a page's line `number`, as `plots` has them."""
    return f"c{number % len(COLOURS)}"


def dashes(number: int) -> str:
    """Return the attribute for the dashes of line `number`, as `plots` has them."""
    pattern = STROKES[DASHES[number // len(COLOURS) % len(DASHES)]]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def path(x: Values, y: Values) -> str:
    """Return a path through points in drawing units, thinned and rounded to a tenth; it is broken at NaN.

    >>> path(np.array([0.0, 10, 10, np.nan, 5, 6]), np.array([0.0, 0, 2.5, 1, 1, 2]))
    'M0 0h10v2.5M5 1l1 1'
    """
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else []
    return "".join(_piece(x[rows], y[rows]) for rows in pieces)


def _piece(x: Values, y: Values) -> str:
    kept = thinned(x, y)
    tenths = np.round(np.stack([x[kept], y[kept]], axis=1) * 10).astype(np.int64)
    text = [f"M{_number(tenths[0, 0] / 10)} {_number(tenths[0, 1] / 10)}"]
    for across, down in np.diff(tenths, axis=0).tolist():
        if across and down:
            text.append(f"l{_number(across / 10)} {_number(down / 10)}")
        elif across:
            text.append(f"h{_number(across / 10)}")
        elif down:
            text.append(f"v{_number(down / 10)}")
    # A point alone is drawn as a dot by its round ends.
    return "".join(text) if len(text) > 1 else text[0] + "h0"


def thinned(x: Values, y: Values, column: float = 0.5) -> npt.NDArray[np.int64]:
    """Return the rows of a line that are seen: of every column of half a unit the first, lowest, highest and last.

    A line of few points keeps all. Of neighbours in one column and row of the drawing one is enough, and between a
    column's lowest and highest point the line fills it. Source: Jugel et al., VLDB 7 (2014) 797-808 (M4).
    """
    rows = np.arange(len(x))
    if len(x) <= MOST_POINTS:
        return rows
    cell = np.floor(x / column)
    ends = np.flatnonzero(np.diff(cell) != 0)
    first, last = np.append(0, ends + 1), np.append(ends, len(x) - 1)
    run = np.repeat(np.arange(len(first)), last - first + 1)
    order = np.lexsort((y, run))
    return np.unique(np.concatenate([first, last, order[first], order[last]]))


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Return at most `most` round numbers from `low` to `high`; `whole` ones where asked.

    >>> ticks(0, 1), ticks(0.63, 0.97), ticks(1, 14, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.7, 0.8, 0.9], [3, 6, 9, 12])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10, 20)]
    steps = [max(1.0, math.ceil(step)) for step in steps] if whole else steps
    for step in steps:
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(numbers) <= most:
            break
    return [round(number * step, 12) for number in numbers]


def tick(value: float) -> str:
    """Return a number as it stands at an axis.

    >>> tick(0.0), tick(0.2), tick(-1.5), tick(2e6)
    ('0', '0.2', '−1.5', '2e+06')
    """
    return f"{value:.6g}".replace("-", "−") if abs(value) < 1e6 else f"{value:.2g}"


def _number(value: float) -> str:
    text = f"{round(float(value), 1) + 0.0:.1f}".removesuffix(".0")
    return text.replace("0.", ".", 1) if text.removeprefix("-").startswith("0.") else text
