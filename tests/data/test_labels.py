"""What findings may be called, and what uncertain and blank labels become."""

import numpy as np
import pytest
from pydantic import ValidationError

from damcli.data import labels
from damcli.data.labels import Policy
from damcli.data.store import Counts, count
from damcli.errors import DataError, UsageError

RAW = np.array([1.0, 0.0, -1.0, np.nan])
DRAWN = 0.0483092318435302
IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("finding", "why"),
    [
        *((name, "tables of scores have a column of that name") for name in (*labels.NO_FINDINGS, "Edema:positive")),
        ("Status", "called 'Status'"),
        (" PATIENT ", "called ' PATIENT '"),
        ("Ede\x1b[2Jma", r"'Ede\\x1b\[2Jma': '\\x1b' is no character that can be shown"),
        ("Ede\nma", "no character"),
        ("Edema\x85", "no character"),
        ("", "must be named"),
        (" ", "must be named"),
        ("Mass", "each once"),
    ],
)
def test_findings_that_cannot_be_columns_are_refused(finding: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        labels.check_findings(["Mass", finding])


def test_findings_may_be_called_anything_else() -> None:
    labels.check_findings(
        ["mass", "Mass", "Pleural Effusion, large", "=1+1", "HER2 positive", "Ödem", "patients", "ok"]
    )
    with pytest.raises(DataError, match="must be named"):
        labels.check_findings([])


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ones", "negative", [1, 0, 1, 0]),
        ("zeros", "missing", [1, 0, 0, np.nan]),
        ("ignore", "negative", [1, 0, np.nan, 0]),
        ("ignore", "missing", [1, 0, np.nan, np.nan]),
        (0.25, "negative", [1, 0, 0.25, 0]),
        (0.0, "missing", [1, 0, 0, np.nan]),
        (1.0, "missing", [1, 0, 1, np.nan]),
    ],
)
def test_rules_without_chance(uncertain: str, blank: str, expected: list[float]) -> None:
    made = labels.targets(RAW, IDS, "Edema", Policy(uncertain=uncertain, blank=blank), seed=0)
    np.testing.assert_array_equal(made, np.array(expected, np.float32))
    assert made.dtype == np.float32


@pytest.mark.parametrize(("rule", "low", "high"), [("ones-lsr", 0.55, 0.85), ("zeros-lsr", 0.0, 0.30)])
def test_smoothed_targets_are_uniform_in_their_range(rule: str, low: float, high: float) -> None:
    n = 20_000
    ids = [f"train/patient{i}/view1.jpg" for i in range(n)]
    made = labels.targets(np.full(n, -1.0), ids, "Edema", Policy(uncertain=rule), seed=3).astype(np.float64)
    scaled = np.sort((made - low) / (high - low))
    # Kolmogorov-Smirnov: the largest gap to the uniform distribution, 1.95/√n at the level of 0.001.
    assert np.abs(scaled - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)
    assert made.min() >= low - 1e-6
    assert made.max() <= high + 1e-6


def test_smoothed_targets_depend_on_seed_scan_and_finding_only() -> None:
    policy = Policy(uncertain="ones-lsr")
    raw = np.full(50, -1.0)
    ids = [f"scan{i}" for i in range(50)]
    made = labels.targets(raw, ids, "Edema", policy, seed=0)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(labels.targets(raw, [ids[i] for i in order], "Edema", policy, seed=0), made[order])
    np.testing.assert_array_equal(labels.targets(raw[:1], ids[7:8], "Edema", policy, seed=0), made[7:8])
    for other in (
        labels.targets(raw, ids, "Edema", policy, seed=1),
        labels.targets(raw, ids, "Atelectasis", policy, seed=0),
    ):
        assert not np.isin(other, made).any()
        assert abs(np.corrcoef(other, made)[0, 1]) < 0.4


def test_draws_are_the_same_in_every_release() -> None:
    assert labels.draw(0, "train/patient00001/study1/view1_frontal.jpg", "Edema") == DRAWN
    assert 0 <= labels.draw(0, "name in Latin-1 \udce9") < 1


def test_truth_holds_certain_labels_only() -> None:
    expected = {"negative": [1, 0, np.nan, 0], "missing": [1, 0, np.nan, np.nan]}
    for uncertain in ("ones", "zeros", "ones-lsr", 0.9):
        for blank, values in expected.items():
            np.testing.assert_array_equal(labels.truth(RAW, Policy(uncertain=uncertain, blank=blank)), values)
    np.testing.assert_array_equal(RAW, [1, 0, -1, np.nan])


SOFT = np.array([0, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 1, -1, np.nan])


@pytest.mark.parametrize("uncertain", [*labels.UNCERTAIN_RULES, 0.9])
def test_a_soft_label_is_its_own_target_whatever_the_rule(uncertain: str | float) -> None:
    policy = Policy(uncertain=uncertain, blank="negative")
    made = labels.targets(SOFT, list("abcdefghi"), "Edema", policy, seed=0)
    np.testing.assert_array_equal(made[:7], SOFT[:7].astype(np.float32))
    assert made[8] == 0


def test_a_soft_label_is_judged_by_what_most_readers_say() -> None:
    np.testing.assert_array_equal(labels.truth(SOFT, Policy()), [0, 0, 0, np.nan, 1, 1, 1, np.nan, np.nan])
    assert labels.uncertain(SOFT).tolist() == [False, False, False, True, False, False, False, True, False]
    counted = count(SOFT, Policy())
    assert counted == Counts(positive=3, negative=3, uncertain=2, missing=1)
    assert count(SOFT, Policy(blank="negative")) == Counts(positive=3, negative=4, uncertain=2, missing=0)


def test_the_papers_policies_are_chexperts_defaults() -> None:
    rules = {finding: labels.chexpert_policy(finding) for finding in labels.CHEXPERT_FINDINGS}
    assert {f for f, p in rules.items() if p.uncertain == "ones-lsr"} == {"Atelectasis", "Edema"}
    assert {f for f, p in rules.items() if p.uncertain == "zeros-lsr"} == {
        "Cardiomegaly",
        "Consolidation",
        "Pleural Effusion",
    }
    assert {p.blank for p in rules.values()} == {"negative"}


def test_rules_from_the_command_line() -> None:
    start = {"Edema": Policy(), "Fracture": Policy()}
    assert {p.uncertain for p in labels.with_rules(start, "ones-lsr", None).values()} == {"ones-lsr"}
    mixed = labels.with_rules(start, " edema = zeros , Fracture=0.3", "negative")
    assert mixed == {
        "Edema": Policy(uncertain="zeros", blank="negative"),
        "Fracture": Policy(uncertain=0.3, blank="negative"),
    }
    assert labels.with_rules(start, None, None) == start


@pytest.mark.parametrize(
    "text", ["twos", "Edema=1.5", "Edema=-0.1", "Edemaa=ones,Fracture", "Hernia=ones", "Edema=nan"]
)
def test_unknown_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        labels.with_rules({"Edema": Policy(), "Fracture": Policy()}, text, None)
    assert caught.value.fix


def test_policies_survive_json() -> None:
    for uncertain in ("ones-lsr", 0.5, 1.0, 0):
        policy = Policy(uncertain=uncertain)
        assert Policy.model_validate_json(policy.model_dump_json()) == policy
    with pytest.raises(ValidationError):
        Policy(uncertain=1.2)


def test_names_are_chosen_whatever_their_case_and_the_nearest_is_offered() -> None:
    assert labels.choose(["pleural effusion", "EDEMA"], labels.COMPETITION, "finding", "x") == [
        "Pleural Effusion",
        "Edema",
    ]
    with pytest.raises(UsageError, match="Consolidation"):
        labels.choose(["Consolidaton"], labels.COMPETITION, "finding", "x")
    with pytest.raises(UsageError, match="twice"):
        labels.choose(["Edema", "edema"], labels.COMPETITION, "finding", "x")
