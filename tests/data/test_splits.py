"""Splits by patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damcli.data import splits

THREE = {"train": 0.7, "valid": 0.2, "test": 0.1}


def crowd(patients: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Patients with one to six scans, whose findings are of a patient rather than of a scan."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, patients)
    names = [f"p{i}" for i in range(patients) for _ in range(sizes[i])]
    ill = rng.random((patients, 3)) < np.array([0.02, 0.1, 0.4])
    return names, np.repeat(ill, sizes, axis=0).astype(float)


def test_no_patient_is_on_two_sides_and_positives_are_spread() -> None:
    patients, truth = crowd(800)
    made = splits.by_patient(patients, truth, THREE, seed=0)
    assert splits.crossing(patients, made.tolist()) == []
    for split, share in THREE.items():
        inside = made == split
        assert inside.mean() == pytest.approx(share, abs=0.01)
        np.testing.assert_allclose(truth[inside].sum(axis=0) / truth.sum(axis=0), share, atol=0.06)


def test_a_rare_finding_reaches_the_small_part() -> None:
    truth = np.zeros((200, 1))
    truth[:10] = 1
    inside = splits.part([f"p{i}" for i in range(200)], truth, 0.2, seed=5)
    assert inside.sum() == 40
    assert truth[inside].sum() == 2


def test_soft_labels_are_spread_as_what_most_readers_say() -> None:
    """Two thirds count as 1; one third, a half, -1 and blank do not, and add nothing to what is spread."""
    patients, truth = crowd(300)
    soft = np.where(truth == 1, 2 / 3, np.random.default_rng(1).choice([0, 1 / 3, 0.5, -1, np.nan], truth.shape))
    made = splits.by_patient(patients, soft, THREE, seed=0)
    np.testing.assert_array_equal(made, splits.by_patient(patients, truth, THREE, seed=0))


def test_blank_patients_are_patients_of_their_own() -> None:
    patients = [None] * 50 + [""] * 50
    made = splits.by_patient(patients, np.zeros((100, 1)), {"train": 0.8, "valid": 0.2}, seed=0)
    assert (made == "valid").sum() == 20
    assert splits.crossing(patients, made.tolist()) == []


def test_the_order_of_rows_changes_nothing_and_the_seed_does() -> None:
    patients, truth = crowd(300)
    made = splits.by_patient(patients, truth, THREE, seed=0)
    order = np.random.default_rng(1).permutation(len(patients))
    shuffled = splits.by_patient([patients[i] for i in order], truth[order], THREE, seed=0)
    np.testing.assert_array_equal(shuffled, made[order])
    assert (splits.by_patient(patients, truth, THREE, seed=1) != made).any()


@given(
    patients=st.lists(st.sampled_from([None, "", "p", "q", "r", "s"]), max_size=30),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_any_patients_any_share(patients: list[str | None], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).choice([1.0, 0.0, np.nan], (len(patients), 2))
    made = splits.by_patient(patients, labels, {"rest": 1 - fraction, "part": fraction}, seed)
    assert len(made) == len(patients)
    assert set(made) <= {"rest", "part"}
    assert splits.crossing(patients, made.tolist()) == []


def test_crossing_names_two_scans_of_each_patient() -> None:
    patients = ["p", "q", "p", "p", "q", None, None]
    where = ["train", "train", "train", "valid", "test", "train", "test"]
    assert splits.crossing(patients, where) == [(0, 3), (1, 4)]


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 1.2, "valid": -0.2}, {}])
def test_fractions_must_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        splits.by_patient(["p"], np.zeros((1, 1)), fractions, seed=0)


def test_folds_hold_whole_patients_and_equal_shares_of_positives() -> None:
    patients, truth = crowd(400)
    fold = splits.folds(patients, truth, 5, seed=3)
    assert set(fold.tolist()) == set(range(5))
    of_patient: dict[str, set[int]] = {}
    for patient, number in zip(patients, fold.tolist(), strict=True):
        if patient:
            of_patient.setdefault(patient, set()).add(number)
    assert max(map(len, of_patient.values())) == 1
    whole = (truth == 1).mean(axis=0)
    for number in range(5):
        share = (truth[fold == number] == 1).mean(axis=0)
        assert np.abs(share - whole).max() < 0.03
        assert abs((fold == number).mean() - 0.2) < 0.02
    assert np.array_equal(fold, splits.folds(patients, truth, 5, seed=3))
    assert not np.array_equal(fold, splits.folds(patients, truth, 5, seed=4))


def test_more_folds_than_patients_are_refused() -> None:
    for number in (1, 4):
        with pytest.raises(ValueError, match="between 2 and the number of patients, 3"):
            splits.folds(["a", "a", "b", "c"], np.ones((4, 1)), number, seed=0)
