"""`damcli evaluate --merge A.json B.json …`: several hospitals' figures as one result, without their scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from damcli import console, files
from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.commands.evaluate.asked import Asked

FOLDER = Path("merged")
# What goes with --merge; the rest is of scans, and these are elsewhere.
TAKEN = ("subject", "on", "more", "merge", "require", "output", "json", "quiet", "verbose")


def check(context: typer.Context) -> None:
    """Raise `UsageError` for an option that has no effect on what is merged."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in TAKEN}
    if others := [f"--{name}" for name, source in sources.items() if source and source.name != "DEFAULT"]:
        fix = "give it to damcli evaluate at each site, and merge what that writes"
        raise UsageError(f"{', '.join(others)} has no effect on figures that are merged", where="--merge", fix=fix)


def command(paths: Sequence[Path], asked: Asked, output: Path | None) -> None:
    """Merge the sites' `metrics.json`, write the result and show it. Raises what `report.merging` and gates raise."""
    from damcli.commands.evaluate import judging
    from damcli.report import forest, merging, sites

    document = merging.merge(sites.read(paths))
    document["gates"] = [gate.result(document) for gate in asked.gates]
    folder = output or FOLDER
    with files.only_writer(folder):
        forest.write(folder / "merged.html", document)
        files.write_json(folder / "merged.json", document)
    for warning in document["warnings"]:
        console.warn(warning)
    title = f"{len(document['sites'])} sites merged, by {document['unit']['by']}, {document['scans']:,} scans"
    _show(document, title)
    console.note(f"wrote {folder}: merged.html, merged.json")
    judging.stop_at_gates(document, asked, title)


def _show(document: dict[str, Any], title: str) -> None:
    from damcli.report import merging, sections

    if console.state.json:
        return console.emit_json(document)
    console.table(title, merging.POOLED_COLUMNS, merging.rows(document))
    console.table("How far the sites differ", merging.SPREAD_COLUMNS, merging.spread_rows(document))
    console.table("Each site", merging.SITE_COLUMNS, merging.site_rows(document))
    if document["gates"]:
        console.table("Required", sections.GATE_COLUMNS, sections.gate_rows(document["gates"]))
    for note in document["notes"]:
        console.result(note)
