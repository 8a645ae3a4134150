"""An evaluation's figures, rows, notes and document from scores and truth alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damcli.metrics import auroc, delong_interval, mean_auroc
from damcli.report.evaluation import Evaluation, Selection, Truth

FINDINGS = ("Edema", "Fracture", "Cardiomegaly")
UNUSED = Selection(False, "not used")


def made(**changes: Any) -> Evaluation:
    """200 scans of 100 patients; Edema has uncertain and blank labels, Fracture no positives."""
    rng = np.random.default_rng(0)
    raw = (rng.random((200, 3)) < 0.4).astype(float)
    scores = rng.normal(size=(200, 3)) + raw
    raw[:20, 0], raw[20:25, 0] = -1, math.nan
    raw[:, 1] = 0
    ids = [f"scan{number}" for number in range(200)]
    truth = Truth.of_labels(Path("labels.csv"), ids, FINDINGS, raw, [f"p{number // 2}" for number in range(200)])
    values = {"kind": "scores", "subject": Path("s.csv"), "truth": truth, "scores": scores, "selection": UNUSED}
    return Evaluation(**(values | changes))


def test_every_figure_comes_with_its_interval_and_the_mean_leaves_out_what_is_undefined() -> None:
    evaluation = made()
    document = json.loads(json.dumps(evaluation.document(), allow_nan=False))
    truth, scores = evaluation.truth.values, evaluation.scores
    for column, name in ((0, "Edema"), (2, "Cardiomegaly")):
        low, high = delong_interval(truth[:, column], scores[:, column])
        value = auroc(truth[:, column], scores[:, column])
        assert document["findings"][name]["auroc"] == {"value": value, "low": low, "high": high, "why": None}
    assert document["findings"]["Fracture"]["auroc"] == {
        "value": None, "low": None, "high": None, "why": "no positives"
    }  # fmt: skip
    mean = mean_auroc(truth[:, [0, 2]], scores[:, [0, 2]])
    assert document["mean"] == {
        "findings": 2, "auroc": {"value": mean.value, "low": mean.low, "high": mean.high, "why": None}
    }  # fmt: skip


def test_every_scan_is_accounted_for() -> None:
    found = made().document()["findings"]
    for counts in found.values():
        assert sum(counts[key] for key in ("positives", "negatives", "uncertain", "unlabelled")) == 200
    assert (found["Edema"]["uncertain"], found["Edema"]["unlabelled"]) == (20, 5)


def test_rows_are_the_findings_and_last_the_mean() -> None:
    rows = made().rows()
    assert [row[0] for row in rows] == [*FINDINGS, "mean of 2"]
    assert rows[1] == ["Fracture", "0", "200", "n/a (no positives)", ""]
    assert all(row[3].startswith("n/a") or "–" in row[4] for row in rows)


def test_nothing_defined_is_no_figure_at_all() -> None:
    evaluation = made()
    truth = evaluation.truth.part(["Fracture"])
    alone = made(truth=truth, scores=evaluation.scores[:, [1]])
    assert alone.rows()[-1] == ["mean of 0", "", "", "n/a (no positives)", ""]
    assert alone.document()["mean"]["auroc"]["value"] is None


@pytest.mark.parametrize(
    ("patients", "count", "note"),
    [
        ([f"p{n // 2}" for n in range(200)], 100, "DeLong treats scans as independent: 200 scans of 100 patients"),
        ([str(n) for n in range(200)], 200, None),
        ([""] * 200, 200, None),
        (["p1", "p1", *[""] * 198], 199, "DeLong treats scans as independent: 200 scans of 199 patients"),
        (None, None, "DeLong treats scans as independent: whether patients repeat is not known"),
    ],
)
def test_repeated_patients_are_said(patients: list[str] | None, count: int | None, note: str | None) -> None:
    plain = made().truth
    truth = Truth.of_labels(plain.path, plain.ids, FINDINGS, plain.values, patients)
    evaluation = made(truth=truth)
    assert evaluation.patients == evaluation.document()["patients"] == count
    assert evaluation.notes == ([note] if note else [])


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"selection": Selection(True, "chosen on these")}, "selection: chosen on these"),
        ({"selection": Selection(None, "not known")}, "selection: not known"),
        ({"failed": 3}, "3 scans could not be scored (status failed) and are left out"),
        ({"remarks": ("there are no scores of Edema",)}, "there are no scores of Edema"),
        ({}, "uncertain labels are left out: Edema 20"),
    ],
)
def test_what_a_reader_must_know_is_noted(changes: dict[str, Any], note: str) -> None:
    evaluation = made(**changes)
    assert note in evaluation.notes == evaluation.document()["notes"]


def test_a_part_keeps_ids_labels_and_patients_together() -> None:
    truth = made().truth
    kept = np.arange(200) % 3 == 0
    part = truth.part(["Cardiomegaly", "Edema"], kept)
    assert part.ids == truth.ids[::3]
    assert part.patients == truth.patients[::3]
    np.testing.assert_array_equal(part.values, truth.values[::3][:, [2, 0]])
    np.testing.assert_array_equal(part.uncertain, truth.uncertain[::3][:, [2, 0]])


def test_lines_hold_each_findings_curve() -> None:
    evaluation = made()
    lines = evaluation.lines()
    assert [line.name for line in lines] == list(FINDINGS)
    area = np.trapezoid(lines[2].curve.true_positive_rate, lines[2].curve.false_positive_rate)
    assert area == pytest.approx(lines[2].auroc.value)
