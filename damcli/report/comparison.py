"""Two scores of the same scans beside one another: the differences of their AUROCs, as a part of `metrics.json`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from damcli.errors import DataError
from damcli.metrics import Comparison, Estimate, auroc, holm
from damcli.metrics.comparing import compare, compare_means
from damcli.report import tables
from damcli.report.evaluation import Evaluation
from damcli.report.judgement import LEVEL
from damcli.report.method import Method

COLUMNS = ["finding", "n", "AUROC", "other's", "difference", "p", "p (Holm)"]


def section(one: Evaluation, other: Evaluation, method: Method) -> dict[str, Any]:
    """Return the comparison of two evaluations on the rows and findings that both have.

    Rows are matched by their names, findings by theirs; scores may be of any scale, since only their order counts. The
    p-values are two-sided and corrected for the number of findings after Holm. Raises `DataError` where nothing is in
    both.
    """
    one, other, notes = _aligned(one, other)
    truth, groups = one.truth.values, method.groups(one)
    settings = {"groups": groups, "draws": method.draws, "seed": method.seed, "level": LEVEL}
    findings: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(one.truth.findings):
        a, b, labels = one.scores[:, k], other.scores[:, k], truth[:, k]
        found = compare(labels, a, b, **settings)
        # An AUROC that has no uncertainty is not shown here either.
        aurocs = (math.nan if math.isnan(found.difference) else auroc(labels, scores) for scores in (a, b))
        findings[name] = {
            "units": int(np.isfinite(labels).sum()),
            **dict(zip(("auroc", "other_auroc"), map(_or_none, aurocs), strict=True)),
            "difference": _difference(found),
            "p": _or_none(found.p),
        }
    for each, p in zip(
        findings.values(),
        holm([math.nan if each["p"] is None else each["p"] for each in findings.values()]),
        strict=True,
    ):
        each["p_holm"] = _or_none(p)
    tested = sum(each["p"] is not None for each in findings.values())
    mean = compare_means(truth, one.scores, other.scores, **settings)
    way = f"paired, {method.others(one.unit.by)}" if groups is not None else "paired DeLong, normal"
    return {
        "subject": {"kind": other.kind, "path": str(other.subject)},
        "method": f"{way}; p two-sided, normal" + (f", corrected over {tested} findings after Holm" if tested else ""),
        "findings": findings,
        "mean": {"difference": _difference(mean), "p": _or_none(mean.p)},
        "notes": notes,
    }


def rows(section: dict[str, Any]) -> list[list[str]]:
    """Return rows of text for a table with `COLUMNS`, the mean last."""
    found = []
    for name, each in section["findings"].items():
        aurocs = ["n/a" if value is None else f"{value:.3f}" for value in (each["auroc"], each["other_auroc"])]
        ps = [tables.p_value(each[key]) for key in ("p", "p_holm")]
        found.append([name, str(each["units"]), *aurocs, tables.signed(each["difference"]), *ps])
    mean = section["mean"]
    return [*found, ["mean", "", "", "", tables.signed(mean["difference"]), tables.p_value(mean["p"]), ""]]


def _aligned(one: Evaluation, other: Evaluation) -> tuple[Evaluation, Evaluation, list[str]]:
    names = [name for name in one.truth.findings if name in other.truth.findings]
    place = {name: row for row, name in enumerate(other.truth.ids)}
    mine = [row for row, name in enumerate(one.truth.ids) if name in place]
    if not names or not mine:
        what = "finding" if not names else one.unit.by
        raise DataError(f"no {what} is in both", where=f"{one.subject} and {other.subject}")
    theirs = [place[one.truth.ids[row]] for row in mine]
    notes = []
    alone = [name for name in one.truth.findings if name not in names]
    if alone:
        notes.append(f"{other.subject} has no scores of {', '.join(alone)}: not compared")
    left_out = len(one.truth.ids) + len(other.truth.ids) - 2 * len(mine)
    if left_out:
        notes.append(f"comparison: {left_out} {one.unit.plural} that only one of the two scored are left out")
    if other.selection.used is not False and other.selection != one.selection:
        notes.append(f"selection of {other.subject}: {other.selection.note}")
    return _part(one, names, mine), _part(other, names, theirs), notes


def _part(evaluation: Evaluation, names: list[str], rows: list[int]) -> Evaluation:
    columns = [evaluation.truth.findings.index(name) for name in names]
    scores = evaluation.scores[np.ix_(rows, columns)]
    return replace(evaluation, truth=evaluation.truth.part(names, np.array(rows)), scores=scores)


def _difference(found: Comparison) -> dict[str, float | str | None]:
    if math.isnan(found.difference):
        return tables.document(Estimate(math.nan, math.nan, math.nan, "an AUROC is undefined"))
    if math.isnan(found.low):
        why = "no variance: both order every pair of a positive and a negative alike"
        return {"value": found.difference, "low": None, "high": None, "why": why}
    return tables.document(Estimate(found.difference, found.low, found.high))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
