"""What goes to stdout and stderr, and how.

stdout carries only the result: a table, a path, or one JSON document with `--json`. Everything else goes to stderr:
notes (silent with `-q`), warnings, errors, progress, and last the next useful command.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from damcli.errors import DamcliError

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")
# A bar is drawn in a millisecond; a table above it takes ten to twenty, on cores that the work needs.
BARS_PER_SECOND, TABLES_PER_SECOND = 4, 1
HEARTBEAT_SECONDS = 30.0
HEARTBEATS = 20  # a line every 5 %


@dataclass
class State:
    """What the flags `-q`, `-v` and `--json` have set for this process, and its number among those of one run."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    follows: int = 0
    together: bool = False  # whether the run has started, so that its processes leave it at the same step


state = State()


def note(text: str) -> None:
    """Say something useful on stderr; silent with `-q`."""
    if not state.quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Say on stderr what the user must not miss; nothing silences it."""
    if not state.follows:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def error(problem: DamcliError) -> None:
    """Show an error on stderr: what, where, and last the fix."""
    process = f"process {state.follows}: " if state.follows else ""
    print(f"{process}error: {problem}", file=sys.stderr, flush=True)


def follow(rank: int) -> None:
    """Be silent but for errors, as process `rank` > 0 of a run: the leading one says what there is to say."""
    state.quiet, state.follows = True, rank
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def result(text: str) -> None:
    """Write a line of the result to stdout; with `--json` it gives way to `emit_json`."""
    if not state.json:
        print(text, flush=True)


def emit_json(document: Any) -> None:
    """Write the result to stdout as one JSON document (NaN is refused: use None)."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout, numbers to the right and text to the left; never cut to fit a pipe."""
    if state.json:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:  # above the table and not in it, where it would be broken to the table's width
        print(title)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = list(rows)
    for number, column in enumerate(columns):
        figures = number > 0 and all(_is_figure(row[number]) for row in rows)
        drawn.add_column(column, justify="right" if figures else "left", no_wrap=number == 0)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else 400
    Console(file=sys.stdout, width=width, highlight=False).print(drawn)


def _is_figure(cell: str) -> bool:
    return cell == "" or cell[0] in "+-−<0123456789" or cell.startswith("n/a")


def next_step(command: str) -> None:
    """Name the next useful command: the last line on stderr."""
    note(f"next: {command}")


def track(
    items: Iterable[T],
    total: int | None,
    label: str,
    unit: str = "scans",
    above: Callable[[], RenderableType] | None = None,
) -> Iterator[T]:
    """Yield `items` and show how far they are.

    On a terminal a bar with rate and time left, and above it what `above()` returns at the moment; elsewhere, and in
    CI, a plain line every 5 % or 30 s; nothing with `-q`. Notes and warnings on the way stand above it all.
    """
    if state.quiet:
        yield from items
    elif animated():
        yield from _bar(items, total, label, unit, above)
    else:
        yield from _heartbeat(items, total, label, unit)


def animated() -> bool:
    """Whether stderr is a terminal that can be drawn over: not a file, a pipe, CI's or a dumb one."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") not in ("dumb", "unknown")


def _bar(
    items: Iterable[T], total: int | None, label: str, unit: str, above: Callable[[], RenderableType] | None
) -> Iterator[T]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns)

    def drawn() -> RenderableType:
        return Group(above(), progress.get_renderable()) if above else progress.get_renderable()

    start = time.monotonic()
    # What is written to a stdout that goes elsewhere must get there, and not be drawn above the bar.
    with Live(
        console=Console(file=sys.stderr),
        get_renderable=drawn,
        refresh_per_second=TABLES_PER_SECOND if above else BARS_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),
    ):
        task = progress.add_task(label, total=total, rate="")
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done, rate=_rate(done, time.monotonic() - start, unit))


def _heartbeat(items: Iterable[T], total: int | None, label: str, unit: str) -> Iterator[T]:
    start = last_time = time.monotonic()
    last_beat = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        beat = done * HEARTBEATS // total if total else 0
        if beat > last_beat or now - last_time >= HEARTBEAT_SECONDS:
            last_time, last_beat = now, beat
            of = f"/{total} ({done / total:.0%})" if total else ""
            left = f", {duration((now - start) / done * (total - done))} left" if total and done < total else ""
            note(f"{label}: {done}{of} {unit}, {_rate(done, now - start, unit)}{left}")


def _rate(done: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{f'{rate:.3g}' if rate < 1000 else f'{rate:,.0f}'} {unit}/s"


def duration(seconds: float) -> str:
    """Write a duration as people say it.

    >>> duration(5), duration(125), duration(7300)
    ('5 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
