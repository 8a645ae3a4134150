"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from damcli.console import state
from damcli.errors import UsageError

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only results, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on the way.")]
Json = Annotated[bool, typer.Option("--json", help="The result as one JSON document on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ScoringDevice = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, tensorrt or openvino.")]
Engine = Annotated[str, typer.Option("--engine", show_default=False, help="local (default), or ray: many machines.")]
Address = Annotated[str | None, typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster that runs.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write.")]


def apply(quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
    """Take over the flags that decide what is printed. Raises `UsageError` for `-q` with `-v`."""
    if quiet and verbose:
        raise UsageError("-q and -v contradict each other", fix="give one of them")
    state.quiet, state.verbose, state.json = quiet, verbose, json


def check_device(device: str, known: Sequence[str] = ("auto", "cpu", "cuda")) -> str:
    """Return `device` if it is one of `known`: what trains, or `bundle.runtime.DEVICES`, what a model scores on.

    Raises `UsageError` otherwise.
    """
    if device not in known:
        choices = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"there is no device {device!r}", where="--device", fix=f"choose {choices}")
    return device
