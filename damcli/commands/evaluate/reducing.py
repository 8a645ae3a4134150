"""From scans to what is judged, `--by study` and `--by patient`: scores, labels, ids and metadata of the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from damcli.commands.evaluate.asked import Asked
    from damcli.data.units import Reduce, Units
    from damcli.report.evaluation import Evaluation, Truth

    Floats = npt.NDArray[np.float64]


def reductions(asked: Asked, findings: tuple[str, ...]) -> dict[str, Reduce]:
    """Return by finding how scores of several scans become one; {} where scans are judged."""
    from damcli.data.units import parse_reduce

    return {} if asked.by == "scan" else parse_reduce(asked.reduce, findings)


def at(evaluation: Evaluation, asked: Asked) -> Evaluation:
    """Return an evaluation of scans as one of the units asked for; of scans it is the same one.

    A unit of which some scans failed is judged by the others, scores and labels. Raises `DataError` where it is not
    known which scans belong together, `UsageError` for `--reduce` with findings that there are not.
    """
    if asked.by == "scan":
        return evaluation
    import numpy as np

    from damcli.data.units import LABEL_RULE
    from damcli.report.evaluation import Unit

    truth, rules = evaluation.truth, reductions(asked, evaluation.truth.findings)
    units = _units(truth, asked)
    labels = units.labels(truth.raw)
    unit = Unit(asked.by, dict(rules), f"a {asked.by} is {LABEL_RULE}")
    first = [truth.metadata, truth.patients, truth.studies]
    metadata = None if first[0] is None else _metadata(first[0], units)
    patients, studies = (
        None if ids is None else [ids[row] for row in units.first.tolist()] for ids in (truth.patients, truth.studies)
    )
    remarks = list(evaluation.remarks)
    used = sorted(set(rules.values()))
    how = used[0] if len(used) == 1 else ", ".join(f"{rule} ({name})" for name, rule in rules.items())
    remarks.append(f"by {asked.by}: the {how} of its scans' scores; {unit.rule}")
    if units.alone:
        remarks.append(f"{units.alone} scans have no {asked.by} id: each is judged by itself")
    if disagree := [f"{f} {n}" for f, n in zip(truth.findings, labels.disagree.tolist(), strict=True) if n]:
        remarks.append(f"{unit.plural} whose scans are labelled differently: {', '.join(disagree)}")
    if evaluation.failed:
        remarks.append(f"a {asked.by} is judged by its scans that could be scored, scores and labels")
    return replace(
        evaluation,
        truth=replace(
            truth,
            ids=units.names,
            values=np.where(labels.labels == -1, np.nan, labels.labels),
            uncertain=labels.labels == -1,
            patients=patients,
            studies=studies if asked.by == "study" else None,
            metadata=metadata,
        ),
        scores=units.scores(evaluation.scores, list(rules.values())).scores,
        remarks=tuple(remarks),
        unit=unit,
        scans=len(truth.ids),
    )


def reducer(tune: Evaluation, asked: Asked) -> Callable[[Floats], tuple[Floats, Floats]] | None:
    """Return what makes targets and scores of units from scores of scans, for `metrics.decisions.decide`."""
    if asked.by == "scan":
        return None

    def reduced(scores: Floats) -> tuple[Floats, Floats]:
        made = at(replace(tune, scores=scores), asked)
        return made.truth.values, made.scores.astype("float64")

    return reduced


def _units(truth: Truth, asked: Asked) -> Units:
    from damcli.data.units import Units

    return Units.of(asked.by, truth.patients, truth.studies, truth.ids, truth.path)


def _metadata(table: pl.DataFrame, units: Units) -> pl.DataFrame:
    """Return what is known of the units: of numbers that of the first scan, of text `several` where scans differ."""
    import polars as pl

    columns = []
    for series in table:
        if series.dtype.is_numeric():
            columns.append(series[units.first])
        else:
            values = units.shared(series.cast(pl.String).fill_null("").to_list())
            columns.append(pl.Series(series.name, values, pl.String))
    return pl.DataFrame(columns)
