"""Calibration inside the graph against `Calibration.apply`: values, order, gaps, and the export that carries it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from damcli.bundle import build, calibrating, graph
from damcli.bundle.runtime import Model
from damcli.errors import GateError
from damcli.metrics.calibration import Calibration, calibrated, fit
from damcli.metrics.decisions import Decisions

FINDINGS = ["a", "b", "c", "d", "e", "f"]
PLATT = Calibration(method="platt", slope=0.4, intercept=-1.5)
STEEP = Calibration(method="platt", slope=40, intercept=-30)
COOLED = Calibration(method="temperature", slope=1.7)
STAIRS = Calibration(method="isotonic", knots_x=(0.1, 0.2, 0.2000001, 0.9), knots_y=(0.05, 0.05, 0.6, 0.95))
SLOPE = Calibration(method="isotonic", knots_x=(0, 1), knots_y=(0.25, 0.75))
SEVERAL = {"f": PLATT, "b": STAIRS, "d": COOLED, "e": SLOPE, "a": STEEP}


def run(calibration, scores):
    made, constants = calibrating.nodes(calibration, FINDINGS, "in", "out", "x.")
    assert all(name.startswith("x.") for name in constants)
    assert all(name.startswith("x.") or name == "out" for node in made for name in node.output)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(FINDINGS)]) for name in ("in", "out")]
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(made, "calibration", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"in": scores})[0]


def some_scores():
    rng = np.random.default_rng(0)
    anywhere = rng.random((500, 6))
    crowded = 1 / (1 + np.exp(-rng.normal(0, 20, (500, 6))))
    edges = np.repeat([[0, 1, 0.1, 0.2, 0.2000001, 0.9, 1e-45, 1e-38, 1 - 2**-24]], 6, axis=0).T
    return np.concatenate([anywhere, crowded, edges]).astype(np.float32)


@pytest.mark.parametrize("calibration", [SEVERAL, {"c": PLATT}, {"c": STAIRS}, dict.fromkeys(FINDINGS, COOLED)])
def test_the_graph_gives_what_apply_gives(calibration):
    scores = some_scores()
    found, expected = run(calibration, scores), calibrated(calibration, FINDINGS, scores)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # Much closer in fact: only the last rounding differs, and untouched columns not at all.
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-12)
    for k, finding in enumerate(FINDINGS):
        if finding not in calibration:
            np.testing.assert_array_equal(found[:, k], scores[:, k])


def test_order_stays_and_only_float32_makes_ties():
    scores = some_scores()
    found, expected = run(SEVERAL, scores), calibrated(SEVERAL, FINDINGS, scores).astype(np.float32)
    for k in range(len(FINDINGS)):
        order = np.argsort(scores[:, k], kind="stable")
        assert (np.diff(found[order, k]) >= 0).all()
        distinct = len(np.unique(expected[:, k]))
        assert abs(len(np.unique(found[:, k])) - distinct) <= 0.02 * distinct
    mild = FINDINGS.index("f")  # a slope below 1 takes nothing from float32's room
    ranks = [np.argsort(column[:500], kind="stable") for column in (scores[:, mild], found[:, mild])]
    np.testing.assert_array_equal(*ranks)


def test_fitted_isotonic_regression_of_many_knots():
    rng = np.random.default_rng(1)
    scores = rng.random((3000, 6)).astype(np.float32)
    fitted = {
        f: fit(rng.random(3000) < scores[:, k] ** (k + 1), scores[:, k], "isotonic") for k, f in enumerate("abcd")
    }
    assert len({len(each.knots_x) for each in fitted.values()}) > 1
    np.testing.assert_allclose(run(fitted, scores), calibrated(fitted, FINDINGS, scores), rtol=0, atol=1e-7)


def test_a_score_that_is_nan_stays_nan_and_spoils_no_other():
    scores = some_scores()[:20]
    spoilt = scores.copy()
    spoilt[3:19] = np.nan
    found = run(SEVERAL, spoilt)
    assert np.isnan(found[3:19]).all()
    np.testing.assert_array_equal(found[[0, 1, 2, 19]], run(SEVERAL, scores)[[0, 1, 2, 19]])


def test_a_calibration_of_no_finding_is_our_mistake():
    with pytest.raises(AssertionError, match="that the model does not have"):
        calibrating.nodes({"Edema": PLATT}, FINDINGS, "in", "out", "x.")


@pytest.fixture(scope="module")
def members(make_member):
    return [make_member(["Edema", "Fracture"]), make_member(["Fracture", "Mass"], seed=1)]


@pytest.fixture(scope="module")
def plain(members):
    return graph.assemble(members).SerializeToString()


def scored(model, images):
    return onnxruntime.InferenceSession(model).run(None, {"images": images})[0]


def test_an_exported_model_of_several_members_calibrates_their_mean(members, plain, draw, tmp_path):
    calibration, images, path = {"Fracture": COOLED, "Mass": SLOPE}, draw(6), tmp_path / "calibrated.onnx"
    decisions = Decisions(tune_scans=10, method="temperature", calibration=calibration)
    parity = build.export(members, path, images, decisions=decisions).parity
    assert parity.max_difference < 1e-5
    before, after = scored(plain, images), Model.open(path, "cpu").score(images)
    np.testing.assert_allclose(after, calibrated(calibration, ["Edema", "Fracture", "Mass"], before), rtol=0, atol=1e-6)
    assert np.abs(after - before)[:, 1:].max() > 0.01
    # A graph that calibrates otherwise than PyTorch's side is not let through.
    for model, wanted in ((plain, calibration), (path.read_bytes(), None)):
        with pytest.raises(GateError, match="differ from PyTorch's"):
            build.compare(members, model, images, None, None, wanted)


def test_a_step_moves_a_score_no_further_than_the_tolerance_before_it_does(members, plain, draw):
    images = draw(6)
    score = float(scored(plain, images)[0, 2])

    def step(x):
        return {"Mass": Calibration(method="isotonic", knots_x=(0, x, x + 1e-9, 1), knots_y=(0.1, 0.1, 0.9, 0.9))}

    # The graph's step lies a little above the score, as if the score were a little lower: less than the tolerance.
    model = graph.assemble(members, step(score + 5e-5)).SerializeToString()
    parity = build.compare(members, model, images, None, None, step(score - 2e-5))
    assert parity.max_difference == pytest.approx(0.8, abs=1e-6)
    with pytest.raises(GateError, match=r"differ from PyTorch's by 0\.8") as refused:
        build.compare(members, model, images, None, None, step(score - 5e-4))
    assert "finding Mass" in str(refused.value.where)
