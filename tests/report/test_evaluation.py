"""An evaluation's figures, rows, notes and document, from scores and truth alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damcli.errors import DataError
from damcli.metrics import auroc, average_precision, bootstrap_interval, delong_interval, mean_auroc
from damcli.report.evaluation import Evaluation, Selection, Truth
from damcli.report.judgement import Judgement, judge
from damcli.report.method import Method

FINDINGS = ("Edema", "Fracture", "Cardiomegaly")
UNUSED = Selection(False, "not used")


def made(**changes: Any) -> Evaluation:
    """200 scans of as many patients; Edema has uncertain and blank labels, Fracture no positives."""
    rng = np.random.default_rng(0)
    raw = (rng.random((200, 3)) < 0.4).astype(float)
    scores = rng.normal(size=(200, 3)) + raw
    raw[:20, 0], raw[20:25, 0] = -1, math.nan
    raw[:, 1] = 0
    ids = [f"scan{number}" for number in range(200)]
    truth = Truth.of_labels(Path("labels.csv"), ids, FINDINGS, raw, [f"p{number}" for number in range(200)])
    values = {"kind": "scores", "subject": Path("s.csv"), "truth": truth, "scores": scores, "selection": UNUSED}
    return Evaluation(**(values | changes))


def judged(method: Method | None = None, **changes: Any) -> Judgement:
    evaluation = made(**changes)
    return judge(evaluation, method or Method.of(evaluation, draws=200))


def of_patients(each: int) -> Truth:
    """The truth of `made`, `each` scans a patient."""
    truth = made().truth
    return replace(truth, patients=[f"p{number // each}" for number in range(200)])


def test_every_figure_comes_with_its_interval_and_the_mean_leaves_out_what_is_undefined() -> None:
    evaluation = made()
    document = json.loads(json.dumps(judged().document(), allow_nan=False))
    truth, scores = evaluation.truth.values, evaluation.scores
    for column, name in ((0, "Edema"), (2, "Cardiomegaly")):
        low, high = delong_interval(truth[:, column], scores[:, column])
        value = auroc(truth[:, column], scores[:, column])
        assert document["findings"][name]["auroc"] == {"value": value, "low": low, "high": high, "why": None}
    assert document["findings"]["Fracture"]["auroc"] == {
        "value": None, "low": None, "high": None, "why": "no positives"
    }  # fmt: skip
    mean = mean_auroc(truth[:, [0, 2]], scores[:, [0, 2]])
    expected = {"value": mean.value, "low": mean.low, "high": mean.high, "why": None}
    assert (document["mean"]["findings"], document["mean"]["auroc"]) == (2, expected)


def test_every_scan_is_accounted_for() -> None:
    found = judged().document()["findings"]
    for counts in found.values():
        assert sum(counts[key] for key in ("positives", "negatives", "uncertain", "unlabelled")) == 200
    assert (found["Edema"]["uncertain"], found["Edema"]["unlabelled"]) == (20, 5)


def test_rows_are_the_findings_and_last_the_mean() -> None:
    rows = judged().rows()
    assert [row[0] for row in rows] == [*FINDINGS, "mean of 2"]
    assert rows[1] == ["Fracture", "0", "200", "n/a (no positives)", ""]
    assert all(row[3].startswith("n/a") or "–" in row[4] for row in rows)


def test_nothing_defined_is_no_figure_at_all() -> None:
    evaluation = made()
    truth = evaluation.truth.part(["Fracture"])
    alone = judged(truth=truth, scores=evaluation.scores[:, [1]])
    assert alone.rows()[-1] == ["mean of 0", "", "", "n/a (no positives)", ""]
    assert alone.document()["mean"]["auroc"]["value"] is None


def test_patients_with_several_scans_are_drawn_together_and_the_report_says_so() -> None:
    truth = of_patients(4)
    evaluation = made(truth=truth)
    judgement = judge(evaluation, Method.of(evaluation, draws=300, seed=3))
    found = judgement.aurocs["Cardiomegaly"]
    labels, scores = truth.values[:, 2], evaluation.scores[:, 2]
    expected = bootstrap_interval(labels, scores, truth.patients, draws=300, seed=3)
    assert found == expected
    document = judgement.document()
    assert document["interval"]["cluster"] == "patient"
    assert document["interval"]["auroc"].startswith("bootstrap, 300 draws of patients with replacement (seed 3)")
    assert any("draws of patients" in note for note in judgement.notes)
    values = [each.value for each in judgement.aurocs.values() if not each.why]
    assert judgement.mean.value == pytest.approx(sum(values) / 2)
    assert judgement.mean.low < judgement.mean.value < judgement.mean.high


@pytest.mark.parametrize(
    ("patients", "count", "note"),
    [
        ([f"p{n // 2}" for n in range(200)], 100, "too narrow: 200 scans of 100 patients"),
        ([str(n) for n in range(200)], 200, None),
        ([""] * 200, None, "intervals take scans as independent: whether patients repeat is not known"),
        (["p1", "p1", *[""] * 198], 199, "too narrow: 200 scans of 199 patients"),
        (None, None, "intervals take scans as independent: whether patients repeat is not known"),
    ],
)
def test_scans_taken_as_independent_are_said_to_be(patients: list[str] | None, count: int | None, note: str) -> None:
    evaluation = made(truth=replace(made().truth, patients=patients, uncertain=np.zeros((200, 3), bool)))
    judgement = judge(evaluation, Method.of(evaluation, "none", draws=200))
    assert evaluation.patients == judgement.document()["patients"] == count
    assert [n for n in judgement.notes if "independent" in n] == [n for n in judgement.notes if note and note in n]
    assert bool(note) == any("independent" in n for n in judgement.notes)


def test_studies_that_repeat_are_named_where_patients_are_not_known() -> None:
    def independent(studies: list[str]) -> str:
        evaluation = made(truth=replace(made().truth, patients=None, studies=studies))
        return next(n for n in judge(evaluation, Method.of(evaluation, draws=200)).notes if "independent" in n)

    assert "--cluster study" in independent([f"s{n // 2}" for n in range(200)])
    assert "--cluster study" not in independent([f"s{n}" for n in range(200)])
    assert "--cluster study" not in independent([""] * 200)


def test_clusters_that_are_not_known_are_refused() -> None:
    with pytest.raises(DataError, match="do not say which study"):
        Method.of(made(), "study")
    with pytest.raises(DataError, match="do not say which patient"):
        Method.of(made(truth=replace(made().truth, patients=None)), "patient")


def test_studies_are_told_apart_by_their_patients() -> None:
    truth = replace(of_patients(4), studies=["study1"] * 200)
    evaluation = made(truth=truth)
    groups = Method.of(evaluation, "study").groups(evaluation)
    assert len(set(groups)) == 50


def test_further_figures_are_those_of_the_metrics() -> None:
    evaluation, judgement = made(), judged()
    found = judgement.findings["Cardiomegaly"].average_precision
    assert found.value == average_precision(evaluation.truth.values[:, 2], evaluation.scores[:, 2])
    assert 0 < found.low < found.value < found.high < 1
    rows = judgement.further_rows()
    assert rows[1][1:] == ["n/a (no positives)"] * 3
    assert all("–" in cell for row in (rows[0], rows[2]) for cell in row[1:])
    band = judgement.findings["Edema"].roc_band
    assert band.shape == (2, 101)
    assert (band[0] <= band[1]).all()
    assert judgement.findings["Fracture"].roc_band is None


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
    judgement = judged(**changes)
    assert note in judgement.notes == judgement.document()["notes"]


def test_a_part_keeps_ids_labels_and_patients_together() -> None:
    truth = made().truth
    kept = np.arange(200) % 3 == 0
    part = truth.part(["Cardiomegaly", "Edema"], kept)
    assert part.ids == truth.ids[::3]
    assert part.patients == truth.patients[::3]
    np.testing.assert_array_equal(part.values, truth.values[::3][:, [2, 0]])
    np.testing.assert_array_equal(part.uncertain, truth.uncertain[::3][:, [2, 0]])


def test_lines_hold_each_findings_curve() -> None:
    lines = judged().lines()
    assert [line.name for line in lines] == list(FINDINGS)
    area = np.trapezoid(lines[2].curve.true_positive_rate, lines[2].curve.false_positive_rate)
    assert area == pytest.approx(lines[2].auroc.value)


def test_an_interval_on_few_scans_of_a_class_is_said_to_be_rough() -> None:
    truth = made().truth
    few = truth.values.copy()
    few[np.flatnonzero(few[:, 2] == 1)[4:], 2] = 0
    judgement = judged(truth=replace(truth, values=few))
    assert (
        "with fewer than 10 of a class an interval is rough, and may be too narrow: Cardiomegaly 4" in judgement.notes
    )
