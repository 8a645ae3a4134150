"""What tune scans decide: calibrated first, thresholds of what comes out, and reasons where nothing can be decided."""

import numpy as np
import pytest

from damcli.metrics import calibration, operating
from damcli.metrics.decisions import Decisions, decide
from damcli.metrics.operating import Rule

YOUDEN, SENSITIVE, COSTLY = Rule.parse("youden"), Rule.parse("sensitivity=0.9"), Rule.parse("cost=5")


@pytest.fixture
def tune():
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 2)) < 0.3).astype(float)
    truth[:20, 0] = np.nan
    logits = 1.5 * np.nan_to_num(truth) + rng.normal(-2, 1, truth.shape)
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


def as_output(made, scores):
    """What a model gives of the scores of A and B: float32."""
    return made.calibrated(["A", "B"], scores).astype(np.float32).astype(np.float64)


def test_thresholds_are_of_calibrated_scores_and_call_the_same_scans(tune):
    truth, scores = tune
    plain = decide(["A", "B"], truth, scores, [YOUDEN, SENSITIVE])
    made = decide(["A", "B"], truth, scores, [YOUDEN, SENSITIVE], "platt", views=3, weights_sha256="f" * 64)
    assert (made.tune_scans, made.views, made.weights_sha256, made.notes) == (200, 3, "f" * 64, ())
    assert made.calibration["A"] == calibration.fit(truth[:, 0], scores[:, 0], "platt")
    calibrated = made.calibrated(["B", "A"], scores[:, ::-1])[:, ::-1]
    for k, finding in enumerate(["A", "B"]):
        np.testing.assert_array_equal(calibrated[:, k], made.calibration[finding].apply(scores[:, k]))
        output = as_output(made, scores)[:, k]
        for rule in (YOUDEN, SENSITIVE):
            point = made.points[rule.name][finding]
            assert point == operating.point(truth[:, k], output, rule)
            assert point.chosen_on == plain.points[rule.name][finding].chosen_on
            assert point.threshold in output
            np.testing.assert_array_equal(
                output >= point.threshold, scores[:, k] >= plain.points[rule.name][finding].threshold
            )
    assert made.points["sensitivity-0.9"]["A"].chosen_on.sensitivity >= 0.9
    assert plain.calibration == {}
    np.testing.assert_array_equal(plain.calibrated(["A", "B"], scores), scores.astype(np.float64))


def test_it_is_the_same_after_json(tune):
    made = decide(["A", "B"], *tune, [YOUDEN, COSTLY], "isotonic", prevalence={"": 0.1, "B": 0.02})
    assert Decisions.model_validate_json(made.model_dump_json()) == made


def test_a_finding_without_a_class_or_turned_round_is_left_out_and_it_is_said_why(tune):
    truth, scores = tune
    truth[:, 0] = np.where(np.isnan(truth[:, 0]), np.nan, 0)
    truth[:, 1] = scores[:, 1] < np.median(scores[:, 1])
    made = decide(["A", "B"], truth, scores, [YOUDEN], "temperature")
    assert made.calibration == {}
    assert made.points == {"youden": {}}
    said = "\n".join(made.notes)
    assert "A is not calibrated: no positives" in said
    assert "A has no operating point youden: no positives" in said
    assert "B is not calibrated: the fit would turn the ranking round" in said
    assert (made.method, made.rules) == ("temperature", (YOUDEN,)), "what was asked for can be asked again"


def test_the_prevalence_given_for_a_finding_or_for_all_weighs_costs(tune):
    made = decide(["A", "B"], *tune, [COSTLY], prevalence={"": 0.3, "B": 0.12})
    truth, scores = tune
    assert made.points["cost-5"]["A"] == operating.point(truth[:, 0], scores[:, 0].astype(float), COSTLY, 0.3)
    assert made.points["cost-5"]["B"] == operating.point(truth[:, 1], scores[:, 1].astype(float), COSTLY, 0.12)


def test_scans_calibrate_and_units_are_called(tune):
    truth, scores = tune
    pairs = np.fmax(truth[::2], truth[1::2])

    def studies(calibrated):
        return pairs, np.maximum(calibrated[::2], calibrated[1::2])

    rules = {"A": "max", "B": "max"}
    made = decide(["A", "B"], truth, scores, [YOUDEN], "platt", by="study", reduce=rules, units=studies)
    assert (made.by, made.reduce, made.tune_scans) == ("study", rules, 200)
    assert made.calibration["B"] == calibration.fit(truth[:, 1], scores[:, 1], "platt"), "of scans"
    chosen = made.points["youden"]["B"]
    assert chosen == operating.point(pairs[:, 1], studies(as_output(made, scores))[1][:, 1], YOUDEN)
    assert chosen.chosen_on.positives + chosen.chosen_on.negatives == 100


@pytest.mark.parametrize("shape", [(200,), (199, 2), (200, 3)])
def test_what_does_not_fit_together_is_refused(tune, shape):
    with pytest.raises(ValueError, match="must be"):
        decide(["A", "B"], np.zeros(shape), tune[1])
