"""What a run will do: a tune part by patient, samplers and priors that fit their losses, warnings in words."""

import numpy as np
import polars as pl
import pytest
import torch

from damcli.data.store import Dataset
from damcli.deepauc import PESG, BalancedSampler, UniformSampler
from damcli.errors import DataError, UsageError
from damcli.training import plan


@pytest.fixture
def dataset(toy):
    return Dataset.open(toy)


def test_no_patient_is_on_both_sides_and_both_classes_are_on_each(dataset, recipe):
    planned = plan.make(recipe(tune_fraction=0.25), dataset)
    assert not set(dataset.patients(planned.train)) & set(dataset.patients(planned.tune))
    assert sorted([*planned.train, *planned.tune]) == dataset.rows("train").tolist()
    assert len(planned.tune) == pytest.approx(0.25 * len(dataset.rows("train")), abs=6)
    for rows in (planned.train, planned.tune):
        assert {0.0, 1.0} == set(dataset.truth(rows).ravel())


def test_a_resumed_run_keeps_its_tune_part_whatever_the_seed(dataset, recipe):
    first = plan.make(recipe(), dataset)
    again = plan.make(recipe(seed=5), dataset, tune_ids=dataset.ids(first.tune))
    np.testing.assert_array_equal(first.tune, again.tune)
    np.testing.assert_array_equal(first.train, again.train)


def test_stages_get_their_sampler_loss_and_optimizer(dataset, recipe):
    first, second = plan.make(recipe(), dataset).stages
    assert isinstance(first.sampler, UniformSampler)
    assert isinstance(second.sampler, BalancedSampler)
    loss = second.loss()
    assert isinstance(second.optimizer(torch.nn.Linear(3, 2), loss), PESG)
    assert first.sampler.seed != second.sampler.seed


def test_the_prior_is_that_of_the_scans_that_are_drawn(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", blank=0.3))
    planned = plan.make(recipe(stage2={"form": "prior", "sampler": "uniform"}), dataset)
    targets = dataset.targets(planned.train)
    expected = [targets[~np.isnan(targets[:, k]), k].mean() for k in range(2)]
    assert planned.stages[1].prior == pytest.approx(expected)
    assert planned.stages[1].loss().prior.tolist() == pytest.approx(expected)


def test_balanced_sampling_of_several_findings_has_no_prior(dataset, recipe):
    with pytest.raises(UsageError, match="prior"):
        plan.make(recipe(stage2={"form": "prior", "sampler": "balanced"}), dataset)


def test_the_prior_of_one_class_is_refused(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=30, positives=0.0))
    with pytest.raises(DataError, match="Edema has one class only"):
        plan.make(recipe(stage2={"form": "prior", "sampler": "uniform"}), dataset)


def test_nothing_to_balance_is_the_datasets_fault(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=30, positives=0.0))
    with pytest.raises(DataError, match="both positives and negatives"):
        plan.make(recipe(), dataset)


def test_too_few_patients_for_a_tune_part_are_refused(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=4))
    with pytest.raises(DataError, match="cannot be divided"):
        plan.make(recipe(), dataset)


@pytest.mark.parametrize(("margin", "said"), [(0.7, False), (1.0, True)])
def test_a_margin_out_of_reach_is_said(dataset, recipe, margin, said):
    settings = recipe(stage2={"margin": margin})
    found = [text for text in plan.warnings(plan.make(settings, dataset), settings, dataset) if "acts as AUC-S" in text]
    assert bool(found) == said


@pytest.mark.parametrize(
    ("score", "margin", "named"),
    [
        ("bsn", 0.4, ["Edema"]),  # 12 of 32 are positive: √(1/12 + 1/20) = 0.37; of the other 3: 0.61
        ("bsn", 0.7, ["Edema", "Fracture"]),
        ("bsn", 0.3, []),
        ("sigmoid", 1.0, ["Edema, Fracture"]),
    ],
)
def test_a_margin_out_of_reach_is_said_of_the_findings_it_is_out_of_reach_for(
    dataset, recipe, monkeypatch, score, margin, named
):
    """Scans that are balanced for one finding and rare for the other must not be taken for an average."""
    settings = recipe(stage2={"score": score, "margin": margin, "sampler": "uniform"}, batch_size=32)
    planned = plan.make(settings, dataset)
    targets = np.zeros((len(planned.train), 2), np.float32)
    targets[: round(len(targets) * 12 / 32), 0] = targets[: round(len(targets) * 3 / 32), 1] = 1
    monkeypatch.setattr(dataset, "targets", lambda rows: targets)
    found = [text for text in plan.warnings(planned, settings, dataset) if "acts as AUC-S" in text]
    assert [text.split(":")[0] for text in found] == [f"stage 2, {names}" for names in named]


def test_pieces_are_those_of_the_smallest_batch_there_is(dataset, recipe):
    scans = len(plan.make(recipe(), dataset).train)
    one_more = {"batch_size": scans - 1, "stage2": {"epochs": 0}}  # two batches, each about half as large
    assert plan.make(recipe(accumulate=scans // 4, **one_more), dataset).stages[0].sampler.smallest == scans // 2
    with pytest.raises(UsageError, match=f"a batch of {scans // 2} is too small for 1 processes"):
        plan.make(recipe(accumulate=scans // 3, **one_more), dataset)


def test_a_fold_leaves_out_its_patients_other_scans_too(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=48, folds=3))
    held_out = plan.rows_of_folds(dataset, 1)[1]
    table = dataset.manifest.with_row_index()
    # One of them is in the train split and in no fold, as other years' scans are, and another's patient is not known.
    loose, unknown = int(held_out[0]), int(held_out[-1])
    dataset.manifest = table.with_columns(
        pl.when(pl.col("index") == loose).then(None).otherwise(pl.col("fold")).alias("fold"),
        pl.when(pl.col("index") == loose).then(pl.lit("train")).otherwise(pl.col("split")).alias("split"),
        pl.when(pl.col("index").is_in([unknown, 0])).then(None).otherwise(pl.col("patient")).alias("patient"),
    ).drop("index")
    rows, out = plan.rows_of_folds(dataset, 1)
    assert set(out) == set(held_out) - {loose}
    assert loose not in rows
    assert {*rows, *out, loose} == set(range(48)), "scans without a patient are nobody's"
    planned = plan.make(recipe(), dataset, fold=1)
    [said] = plan.notes(planned, dataset, 1)
    assert said == "1 scans outside fold 1 are of patients in it, and are not trained on"
    assert not list(plan.notes(planned, dataset, 2))
