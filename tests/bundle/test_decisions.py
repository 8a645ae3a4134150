"""A model that carries what tune decided: calibrated as in PyTorch, thresholds and a reference beside, and a card."""

import json

import numpy as np
import pytest
import torch

from damcli.bundle import build
from damcli.bundle.runtime import Model, read_info
from damcli.metrics.calibration import Calibration
from damcli.metrics.decisions import Decisions, decide
from damcli.metrics.drift import Reference, Sample, pixel_statistics
from damcli.metrics.operating import Rule

FINDINGS = ["Edema", "Fracture", "Mass"]


@pytest.fixture(scope="module")
def carried(make_member, draw, tmp_path_factory):
    """A model of three findings, calibrated in three ways, its path, its member's own scores and the scans."""
    member, images = make_member(FINDINGS, seed=3), draw(60, seed=9)
    with torch.no_grad():
        scores = member.network(member.network.as_input(torch.from_numpy(images[..., 0]))).sigmoid().numpy()
    rng = np.random.default_rng(0)
    spread = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    truth = (spread + rng.normal(0, 1, scores.shape) > 0.4).astype(float)
    truth[:, 2] = np.nan
    decisions = decide(FINDINGS, truth, scores, [Rule.parse("youden"), Rule.parse("sensitivity=0.9")], "platt")
    isotonic = Calibration(method="isotonic", knots_x=(0.1, 0.4, 0.9), knots_y=(0.05, 0.5, 0.7))
    decisions = decisions.model_copy(update={"calibration": {**decisions.calibration, "Fracture": isotonic}})
    pixels = {name: Sample.of(values) for name, values in pixel_statistics(images[..., 0]).items()}
    calibrated = decisions.calibrated(FINDINGS, scores)
    reference = Reference(
        scans=60, scores={name: Sample.of(calibrated[:, k]) for k, name in enumerate(FINDINGS)}, pixels=pixels
    )
    path = tmp_path_factory.mktemp("carried") / "cxr.onnx"
    build.export([member], path, images[:20], decisions=decisions, reference=reference)
    return path, decisions, reference, scores, images


def test_scores_are_calibrated_and_points_and_reference_come_back_as_they_were(carried):
    path, decisions, reference, scores, images = carried
    model = Model.open(path, "cpu")
    assert model.info.decisions == decisions
    assert model.info.reference == reference
    expected = decisions.calibrated(FINDINGS, scores)
    np.testing.assert_allclose(model.score(images), expected, atol=2e-5)
    assert np.abs(expected[:, :2] - scores[:, :2]).max() > 0.05, "calibration makes a difference"
    np.testing.assert_array_equal(expected[:, 2], scores[:, 2].astype(np.float64))
    found = model.score(images)
    for k, name in enumerate(FINDINGS):
        assert reference.scores[name].distance(found[:, k]) < 1e-9, "scans of the reference are at no distance from it"


def test_the_card_says_which_thresholds_there_are_and_which_findings_have_none(carried):
    path, decisions, *_ = carried
    card = path.with_name(path.name + ".md").read_text(encoding="utf-8")
    [line] = [line for line in card.splitlines() if line.startswith("| Edema | sensitivity-0.9 |")]
    point = decisions.points["sensitivity-0.9"]["Edema"]
    assert f"| {point.threshold:.6g} | {point.chosen_on.sensitivity:.3f} |" in line
    for words in (
        "- Mass has no operating point youden: ",
        "- Mass is not calibrated: ",
        "isotonic, platt, fitted on 60 scans",
        "That of Mass is no probability",
        "--drift SCANS",
        "kept out of training",
    ):
        assert words in card
    assert "none yet" not in card
    assert "| Mass |" not in card


def test_a_model_without_decisions_says_how_to_get_them(model_file):
    info = read_info(model_file)
    assert (info.decisions, info.reference) == (None, None)
    card = model_file.with_name(model_file.name + ".md").read_text(encoding="utf-8")
    assert "nothing here is calibrated" in card
    assert "Thresholds: none yet. `damcli evaluate RUN --operating RULE`" in card
    assert "--drift" not in card


def test_decisions_that_decided_nothing_say_why(make_member, draw, tmp_path):
    nothing = Decisions(tune_scans=0, rules=(Rule.parse("youden"),), points={}, notes=("no scan is shared",))
    build.export([make_member(["A"])], tmp_path / "m.onnx", draw(2), decisions=nothing)
    card = (tmp_path / "m.onnx.md").read_text(encoding="utf-8")
    assert "Thresholds: none.\n- no scan is shared." in card


def test_thresholds_of_studies_say_that_they_are_of_studies(make_member, draw, tmp_path):
    truth, scores = np.array([[0.0], [1.0]]), np.array([[0.2], [0.7]])
    made = decide(
        ["A"], truth, scores, [Rule.parse("youden")], by="study", reduce={"A": "max"}, units=lambda _: (truth, scores)
    )
    build.export([make_member(["A"])], tmp_path / "m.onnx", draw(2), decisions=made)
    card = (tmp_path / "m.onnx.md").read_text(encoding="utf-8")
    assert "A study is called positive where the score that its scans have together (max for A)" in card


def test_a_model_from_before_decisions_is_read(model_file, edited, tmp_path):
    def age(model):
        values = json.loads(model.metadata_props[0].value)
        del values["decisions"], values["reference"]
        model.metadata_props[0].value = json.dumps(values)

    info = read_info(edited(model_file, tmp_path / "old.onnx", age))
    assert info == read_info(model_file)
    assert info.decisions is None
