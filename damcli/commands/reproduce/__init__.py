"""`damcli reproduce`: the paper's toy figure, its benchmark table and its ablations, on data at hand."""

from __future__ import annotations

import typer

from damcli.commands.reproduce import ablations, figure1, table1

app = typer.Typer(
    help="Repeat the paper's experiments on data at hand: figure1, table1, ablations.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
for module in (figure1, table1, ablations):
    app.command(module.__name__.rsplit(".", 1)[-1])(module.command)
