"""The figures of `metrics.json` as a plain table, `metrics.csv`: a row per finding and figure, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

COLUMNS = ("finding", "figure", "value", "low", "high", "positives", "negatives", "method", "why")


def text(document: Mapping[str, Any]) -> str:
    """Return the table as CSV; what is undefined is an empty cell with the reason in `why`.

    The rows of the finding "mean" are the means over the findings; a figure inside another one has a name with dots,
    as `--require` takes it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows(document):
        writer.writerow(["" if cell is None else cell for cell in row])
    return out.getvalue()


def rows(document: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the rows, cells in the order of `COLUMNS`."""
    methods = document["interval"]
    for finding, each in document["findings"].items():
        for name, figure in _figures(each):
            method = methods["auroc" if name == "auroc" else "others"]
            yield _row(finding, name, figure, method, each["positives"], each["negatives"])
    for name, figure in _figures(document["mean"]):
        yield _row("mean", name, figure, methods["auroc" if name == "auroc" else "others"])
    comparison, readers = document.get("comparison"), document.get("readers")
    if comparison:
        for finding, each in comparison["findings"].items():
            yield _row(finding, "difference", each["difference"], comparison["method"])
        yield _row("mean", "difference", comparison["mean"]["difference"], comparison["method"])
    if readers:
        yield _row("mean", "nrbc", readers["nrbc"], methods["others"])


def _figures(part: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what has a value, low and high, however deep it lies, by its name with dots."""
    for key, value in part.items():
        if isinstance(value, Mapping):
            if "value" in value and "low" in value:
                yield before + key, value
            else:
                yield from _figures(value, f"{before}{key}.")


def _row(
    finding: str,
    name: str,
    figure: Mapping[str, Any],
    method: str,
    positives: int | None = None,
    negatives: int | None = None,
) -> list[Any]:
    numbers = [figure[key] for key in ("value", "low", "high")]
    return [finding, name, *numbers, positives, negatives, method, figure.get("why")]
