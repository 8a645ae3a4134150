"""`damcli info`: the machine, the models and recipes at hand, the runs."""

from __future__ import annotations

import typer

app = typer.Typer(help="The machine, the models and recipes at hand, the runs.", rich_markup_mode=None)


@app.command()
def doctor() -> None:
    """What this machine can do."""
