"""What is judged besides the ranking: operating points, calibration, readers, subgroups; parts of `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.commands.evaluate.asked import Asked
    from damcli.commands.evaluate.deciding import Decided
    from damcli.metrics.calibration import Bin
    from damcli.metrics.decisions import Decisions
    from damcli.metrics.operating import Measured
    from damcli.report.evaluation import Evaluation
    from damcli.report.method import Method

Part = dict[str, Any]
Bins = dict[str, Mapping[str, Sequence["Bin"]]]


def operating(evaluation: Evaluation, method: Method, asked: Asked, decisions: Decisions) -> Part:
    """Return by finding what each operating point that was decided is worth on these scans."""
    from damcli.metrics.operating import measure

    groups, found = method.groups(evaluation), {}
    for k, finding in enumerate(evaluation.truth.findings):
        truth, scores = evaluation.truth.values[:, k], evaluation.scores[:, k]
        points = {name: each[finding] for name, each in decisions.points.items() if finding in each}
        found[finding] = {
            name: {
                "rule": point.rule.words,
                **_measured(
                    measure(
                        truth,
                        scores,
                        point.threshold,
                        asked.prevalence_of(finding),
                        groups,
                        method.draws,
                        method.seed,
                    )
                ),
            }
            for name, point in points.items()
        }
    return found


def _measured(measured: Measured) -> Part:
    from damcli.report import tables

    found = {
        key: tables.document(value) if isinstance(value, tuple) else value for key, value in measured._asdict().items()
    }
    # Without labelled scans there is none.
    return found | {"prevalence": None if math.isnan(measured.prevalence) else measured.prevalence}


def calibration(
    raw: Evaluation,
    ways: Mapping[str, Evaluation],
    method: Method,
    decided: Decided | None,
) -> tuple[Part, Bins, list[str]]:
    """Return by finding how far scores are from being probabilities, as scored and calibrated, the bins to draw, notes.

    `raw` holds the units' scores before any calibration here, `ways` those that each way of calibrating makes of them.
    """
    from damcli.metrics.calibration import measure, reliability, ties_made
    from damcli.report import tables

    found: Part = {}
    bins: Bins = {}
    notes: list[str] = []
    groups = method.groups(raw)
    chosen = decided.decisions if decided else None
    for k, finding in enumerate(raw.truth.findings):
        truth = raw.truth.values[:, k]

        def errors(evaluation: Evaluation, truth: Any = truth, k: int = k) -> Part:
            each = measure(truth, evaluation.scores[:, k], groups, method.draws, method.seed)
            return {"brier": tables.document(each.brier), "ece": tables.document(each.expected_calibration_error)}

        scores = raw.scores[:, k]
        if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
            why = "these scores are not between 0 and 1, so they cannot be probabilities"
            found[finding] = {"chosen": "none", "why": why, "before": None, "after": {}}
            continue
        fitted = {name: way for name, way in ways.items() if decided and finding in decided.fits[name]}
        used = chosen.method if chosen and chosen.method in fitted else "none"
        found[finding] = {
            "chosen": used,
            "why": None if fitted else _not_fitted(raw.kind, decided, finding),
            "before": errors(raw),
            "after": {name: errors(way) for name, way in fitted.items()},
        }
        bins[finding] = {"as scored": reliability(truth, raw.scores[:, k])}
        if used != "none":
            bins[finding] = {**bins[finding], f"after {used}": reliability(truth, ways[used].scores[:, k])}
        if used == "isotonic":
            ties = ties_made(scores, ways[used].scores[:, k])
            notes.append(
                f"isotonic calibration makes ties of {ties} {raw.unit.plural} for {finding}: the exported model's AUROC"
                " will differ from this one"
            )
    return found, bins, notes


def _not_fitted(kind: str, decided: Decided | None, finding: str) -> str:
    if decided and decided.fits:
        return f"the tune part has not both classes of {finding}, or no better scale"
    if kind == "model" and decided and decided.decisions.method != "none":
        return f"the model calibrates by itself ({decided.decisions.method}, fitted before it was exported)"
    if kind == "model":
        return "a model calibrates by itself where its card says so"
    return "there is no tune part to fit a calibration on"


def readers(evaluation: Evaluation, method: Method, asked: Asked) -> Part:
    """Return the readers beside the ROC curves, and how many are beaten. Raises what `data.readings.read` raises."""
    from damcli.data import readings
    from damcli.metrics.readers import RULE, readers_beaten
    from damcli.report import tables

    truth = evaluation.truth
    read = readings.read(asked.readers, truth.ids, truth.findings, asked.by)
    calls = {reading.name: reading.calls for reading in read}
    beaten = readers_beaten(
        truth.values, evaluation.scores, calls, method.groups(evaluation), method.draws, method.seed
    )
    notes = readings.notes(read)
    for reader in calls:
        uncalled = [f"{f} {p[reader].uncalled}" for f, p in zip(truth.findings, beaten.points, strict=True)]
        uncalled = [each for each in uncalled if not each.endswith(" 0")]
        if uncalled:
            notes.append(
                f"reader {reader} is compared on what it called; labelled and not called: {', '.join(uncalled)}"
            )
    left_out = [name for name, number in zip(truth.findings, beaten.beaten, strict=True) if number is None]
    if left_out:
        notes.append(f"readers: {', '.join(left_out)} cannot be compared, and has no part in NRBC")
    if "max" in evaluation.unit.reduce.values() or "mean" in evaluation.unit.reduce.values():
        notes.append("readers saw all of a study's images; a score of it is made of the scores of its scans")
    return {
        "rule": RULE,
        "names": list(calls),
        "findings": {
            finding: {
                name: {
                    "false_positive_rate": tables.document(point.false_positive_rate),
                    "sensitivity": tables.document(point.sensitivity),
                    "model_sensitivity": None if point.beaten is None else point.model_sensitivity,
                    "difference": tables.document(point.difference),
                    "beaten": point.beaten,
                    "units": point.units,
                }
                for name, point in points.items()
            }
            for finding, points in zip(truth.findings, beaten.points, strict=True)
        },
        "nrbc": {**tables.document(beaten.nrbc), "of": beaten.of},
        "notes": notes,
    }


def subgroup(evaluation: Evaluation, method: Method, column: str) -> Part:
    """Return the AUROCs of the groups that a column of the labels makes, and the largest gap between two.

    Raises `UsageError` for a column that is not there, `DataError` for one that makes no groups.
    """
    from damcli.data import bands
    from damcli.metrics.subgroups import by_group
    from damcli.report import tables

    truth = evaluation.truth
    known = [] if truth.metadata is None else truth.metadata.columns
    named = [name for name in known if name.lower() == column.lower()]
    if len(named) != 1 or truth.metadata is None:
        listed = f"choose from: {', '.join(known)}" if known else "add columns to the labels, such as age and sex"
        raise UsageError(f"the labels have no column {column!r}", where="--subgroups", fix=listed)
    made = bands.groups_of(truth.metadata[named[0]], truth.path)
    clusters = method.groups(evaluation)
    found = [
        by_group(truth.values[:, k], evaluation.scores[:, k], made.groups, made.names, clusters)
        for k in range(len(truth.findings))
    ]
    return {
        "column": named[0],
        "groups": [
            {
                "group": name,
                "units": made.groups.count(name),
                "findings": {
                    finding: {
                        "positives": each.groups[place].positives,
                        "negatives": each.groups[place].negatives,
                        "auroc": tables.document(each.groups[place].auroc),
                        "small": each.groups[place].small,
                    }
                    for finding, each in zip(truth.findings, found, strict=True)
                },
            }
            for place, name in enumerate(made.names)
        ],
        "largest_gap": {
            finding: {
                "groups": list(each.largest_gap.groups or ()),
                "difference": tables.document(each.largest_gap.difference),
                "p": None if each.largest_gap.why else each.largest_gap.p,
                "why": each.largest_gap.why or None,
            }
            for finding, each in zip(truth.findings, found, strict=True)
        },
        "notes": [f"{named[0]}: {note}" for note in made.notes],
    }
