"""The parts of `metrics.json` that are there where they were asked for, as rows of text for tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from damcli.report import tables

OPERATING_COLUMNS = ["finding", "point", "score ≥", "sensitivity", "specificity"]
PREDICTIVE_COLUMNS = ["finding", "point", "at prevalence", "PPV", "NPV"]
CALIBRATION_COLUMNS = ["finding", "scores", "Brier score", "expected calibration error"]
READER_COLUMNS = ["finding", "reader", "1 − specificity", "sensitivity", "model's there", "model − reader", "beaten"]
GROUP_COLUMNS = ["finding", "group", "n+", "n−", "AUROC", "95 % interval"]
GAP_COLUMNS = ["finding", "largest gap", "difference", "p"]
GATE_COLUMNS = ["required", "figure", "met"]
Rows = list[list[str]]


def operating_rows(document: Mapping[str, Any]) -> Rows:
    """Return a row for each finding and operating point."""
    return [
        [finding, name, f"{point['threshold']:.4g}", *map(tables.cell, (point["sensitivity"], point["specificity"]))]
        for finding, name, point in _points(document)
    ]


def predictive_rows(document: Mapping[str, Any]) -> Rows:
    """Return a row for each finding and operating point: what a call is worth at a prevalence."""
    return [
        [
            finding,
            name,
            "n/a" if point["prevalence"] is None else f"{point['prevalence']:.3g}",
            *map(tables.cell, (point["ppv"], point["npv"])),
        ]
        for finding, name, point in _points(document)
    ]


def _points(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for finding, each in document["findings"].items():
        for name, point in (each["operating"] or {}).items():
            yield finding, name, point


def calibration_rows(document: Mapping[str, Any]) -> Rows:
    """Return a row for each finding as scored, and for each way of calibrating it; the chosen one is marked."""
    rows = []
    for finding, each in document["findings"].items():
        found = each["calibration"]
        if not found:
            continue
        for name, measured in {"none": found["before"], **found["after"]}.items():
            if measured:
                chosen = " (chosen)" if name == found["chosen"] and found["after"] else ""
                label = "as scored" if name == "none" else name
                rows.append([finding, label + chosen, tables.cell(measured["brier"]), tables.cell(measured["ece"])])
    return rows


def reader_rows(readers: Mapping[str, Any]) -> Rows:
    """Return a row for each finding and reader, and last the number of readers beaten."""
    rows = [
        [
            finding,
            name,
            tables.cell(reader["false_positive_rate"]),
            tables.cell(reader["sensitivity"]),
            "n/a" if reader["model_sensitivity"] is None else f"{reader['model_sensitivity']:.3f}",
            tables.signed(reader["difference"]),
            "n/a" if reader["beaten"] is None else "yes" if reader["beaten"] else "no",
        ]
        for finding, each in readers["findings"].items()
        for name, reader in each.items()
    ]
    beaten = f"{tables.cell(readers['nrbc'])} of {readers['nrbc']['of']}"
    return [*rows, ["mean number of readers beaten (NRBC)", "", "", "", "", "", beaten]]


def group_rows(column: Mapping[str, Any]) -> Rows:
    """Return a row for each finding and group of a column."""
    findings = list(dict.fromkeys(name for group in column["groups"] for name in group["findings"]))
    rows = []
    for finding in findings:
        for group in column["groups"]:
            each = group["findings"][finding]
            auroc = tables.read_back(each["auroc"])
            row = tables.auroc_row(finding, each["positives"], each["negatives"], auroc)
            rows.append([finding, group["group"], *row[1:-1], row[-1] + (" (small)" if each["small"] else "")])
    return rows


def gap_rows(column: Mapping[str, Any]) -> Rows:
    """Return a row for each finding with the largest difference between two groups of a column."""
    return [
        [
            finding,
            " − ".join(gap["groups"]) if gap["groups"] else "",
            tables.signed(gap["difference"]),
            tables.p_value(gap["p"]),
        ]
        for finding, gap in column["largest_gap"].items()
    ]


def gate_rows(gates: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a row for each condition."""
    return [
        [
            gate["require"],
            f"n/a ({gate['why']})" if gate["value"] is None else f"{gate['value']:.4f}",
            "yes" if gate["met"] else "no",
        ]
        for gate in gates
    ]
