"""Two evaluations beside one another: matched by name, corrected for the number of findings, and said what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from damcli.errors import DataError
from damcli.metrics import delong_test, holm
from damcli.report import comparison
from damcli.report.evaluation import Evaluation, Selection, Truth
from damcli.report.method import Method

FINDINGS = ("Edema", "Fracture", "Nodule", "Mass")
UNUSED = Selection(False, "")


def made(seed: int, patients: int = 300) -> Evaluation:
    """300 scans; Nodule has no positives, and of Mass the scores are the truth itself in every evaluation."""
    labels = (np.random.default_rng(0).random((300, 4)) < 0.3).astype(float)
    labels[:, 2] = 0
    scores = labels + np.random.default_rng(seed).normal(size=labels.shape)
    scores[:, 3] = labels[:, 3]
    owners = [f"p{n % patients}" for n in range(300)]
    truth = Truth.of_labels(Path("l.csv"), [f"scan{n}" for n in range(300)], FINDINGS, labels, owners)
    return Evaluation("scores", Path(f"{seed}.csv"), truth, scores, UNUSED)


def test_differences_are_paired_delong_and_p_values_are_corrected_for_the_findings() -> None:
    one, other = made(1), made(2)
    found = json.loads(json.dumps(comparison.section(one, other, Method()), allow_nan=False))
    tests = [delong_test(one.truth.values[:, k], one.scores[:, k], other.scores[:, k]) for k in range(2)]
    for name, test, p in zip(FINDINGS, tests, holm([test.p for test in tests]), strict=False):
        each = found["findings"][name]
        assert [each["difference"][key] for key in ("value", "low", "high")] == list(test[:3])
        assert (each["p"], each["p_holm"]) == (test.p, p)
    assert found["findings"]["Nodule"]["difference"]["value"] is None
    assert found["findings"]["Nodule"]["auroc"] is None
    assert found["findings"]["Mass"]["difference"] == {
        "value": 0.0, "low": None, "high": None,
        "why": "no variance: both order every pair of a positive and a negative alike",
    }  # fmt: skip
    assert found["mean"]["difference"]["low"] < found["mean"]["difference"]["value"]


def test_order_scale_and_further_findings_of_the_other_do_not_matter() -> None:
    one, other = made(1), made(2)
    expected = comparison.section(one, other, Method())
    turned = np.random.default_rng(5).permutation(300)
    columns = [3, 1, 0, 2]
    truth = other.truth.part([FINDINGS[k] for k in columns], turned)
    shuffled = replace(other, truth=truth, scores=np.exp(7 * other.scores[turned][:, columns]))
    assert comparison.section(one, shuffled, Method()) == expected


def test_what_only_one_has_is_left_out_and_said() -> None:
    one, other = made(1), made(2)
    part = replace(other, truth=other.truth.part(FINDINGS[:2], np.arange(290)), scores=other.scores[:290, :2])
    found = comparison.section(one, part, Method())
    assert list(found["findings"]) == ["Edema", "Fracture"]
    assert found["findings"]["Edema"]["units"] == 290
    assert found["notes"] == [
        "2.csv has no scores of Nodule, Mass: not compared",
        "comparison: 10 scans that only one of the two scored are left out",
    ]
    elsewhere = replace(other, truth=replace(other.truth, ids=[f"x{n}" for n in range(300)]))
    with pytest.raises(DataError, match="no scan is in both"):
        comparison.section(one, elsewhere, Method())


def test_an_auroc_without_an_uncertainty_is_not_shown_and_its_finding_not_counted() -> None:
    one, other = made(1), made(2)
    for each in (one, other):
        each.truth.values[:, 1] = np.arange(300) == 0  # one positive
    found = comparison.section(one, other, Method())
    assert (found["findings"]["Fracture"]["auroc"], found["findings"]["Fracture"]["other_auroc"]) == (None, None)
    assert found["method"].endswith("corrected over 1 findings after Holm")


def test_patients_with_several_scans_are_drawn_together() -> None:
    one, other = made(1, patients=100), made(2, patients=100)
    found = comparison.section(one, other, Method("patient", draws=400))
    assert found["method"].startswith("paired, bootstrap, 400 draws of patients")
    alone = comparison.section(one, other, Method())
    for name in FINDINGS[:2]:
        assert found["findings"][name]["difference"]["value"] == alone["findings"][name]["difference"]["value"]
        assert found["findings"][name]["difference"]["low"] != alone["findings"][name]["difference"]["low"]


def test_rows_have_a_line_for_each_finding_and_the_mean() -> None:
    rows = comparison.rows(comparison.section(made(1), made(2), Method()))
    assert [row[0] for row in rows] == [*FINDINGS, "mean"]
    assert all(len(row) == len(comparison.COLUMNS) for row in rows)
    assert rows[2][4].startswith("n/a (")
    assert " to " in rows[0][4]
