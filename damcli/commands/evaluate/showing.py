"""The figures on stdout: a table for each part, and below them what a reader of them has to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from damcli import console

if TYPE_CHECKING:
    from damcli.report.judgement import Judgement

Table = tuple[str, list[str], list[list[str]]]


def show(judgement: Judgement) -> None:
    """Show the figures: as tables, or with `--json` as the document that `metrics.json` holds."""
    from damcli.report import tables

    if console.state.json:
        return console.emit_json(judgement.document())
    console.table(judgement.evaluation.title, tables.AUROC_COLUMNS, judgement.rows())
    console.table("", tables.FURTHER_COLUMNS, judgement.further_rows())
    for title, columns, rows in _further(judgement.document()):
        console.table(title, columns, rows)
    for note in judgement.notes:
        console.result(note)


def _further(document: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of what was asked for besides."""
    from damcli.report import comparison, sections

    operating = sections.operating_rows(document)
    if operating:
        made = document["decisions"]
        title = f"Operating points, chosen on {made['made_on']}, {made['stored']}"
        yield title, sections.OPERATING_COLUMNS, operating
        yield "", sections.PREDICTIVE_COLUMNS, sections.predictive_rows(document)
    # Without one that was chosen the numbers are in the report alone.
    if any((each["calibration"] or {}).get("chosen", "none") != "none" for each in document["findings"].values()):
        title = f"Calibration, fitted on the tune part, {document['decisions']['stored']}"
        yield title, sections.CALIBRATION_COLUMNS, sections.calibration_rows(document)
    if compared := document["comparison"]:
        title = f"Difference to {compared['subject']['path']} ({compared['method']})"
        yield title, comparison.COLUMNS, comparison.rows(compared)
    if readers := document["readers"]:
        yield f"Readers ({readers['rule']})", sections.READER_COLUMNS, sections.reader_rows(readers)
    for column in document["subgroups"]:
        yield f"By {column['column']}", sections.GROUP_COLUMNS, sections.group_rows(column)
        yield "", sections.GAP_COLUMNS, sections.gap_rows(column)
    if gates := document["gates"]:
        yield "Required", sections.GATE_COLUMNS, sections.gate_rows(gates)
