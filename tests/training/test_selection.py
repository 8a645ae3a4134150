"""Which epoch is taken and when training ends; folds, and stages with findings of their own."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
import torch

from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.metrics import auroc
from damcli.training import checkpoint, folder, loop, plan, scoring
from damcli.training.events import EpochDone, Finished, Noted, StageStarted, Step, TimeIsUp, Warned


@pytest.fixture(scope="module")
def dataset(make_toy, tmp_path_factory):
    """Few scans, for what does not depend on how much is learnt."""
    return Dataset.open(make_toy(tmp_path_factory.mktemp("small") / "dataset", scans=96))


@pytest.fixture(scope="module")
def folded(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("folded") / "dataset", scans=96, folds=3))


def test_the_monitored_finding_chooses_the_epoch(dataset, recipe, tmp_path):
    settings = recipe({"epochs": 0}, {"epochs": 4, "decay_epochs": []}, monitor="Fracture")
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    figures = [event.aurocs["Fracture"] for event in epochs]
    assert events[-1].best_epoch == 1 + int(np.argmax(figures))
    assert checkpoint.latest(tmp_path / "run").progress.best.auroc == max(figures)
    running = list(itertools.accumulate(figures, max))
    assert [event.best for event in epochs] == [True, *(b > a for a, b in itertools.pairwise(running))]


def test_a_finding_that_is_not_there_cannot_be_monitored(dataset, recipe, tmp_path):
    with pytest.raises(UsageError, match="no finding 'Edena'") as raised:
        list(loop.train(recipe(monitor="Edena"), dataset, tmp_path / "run", device="cpu"))
    assert "Edema" in raised.value.fix


def test_patience_ends_the_last_stage_and_a_resumed_run_too(toy, recipe, tmp_path):
    dataset = Dataset.open(toy)
    # Nothing moves, so that no epoch is better than the first.
    settings = recipe({"epochs": 3}, {"epochs": 6, "lr": 1e-30, "decay_epochs": []}, patience=2)
    run = tmp_path / "run"
    events = list(loop.train(settings, dataset, run, device="cpu"))
    epochs = [(event.stage, event.epoch) for event in events if isinstance(event, EpochDone)]
    best = events[-1].best_epoch
    assert epochs == [(1, 1), (1, 2), (1, 3), *((2, n + 1) for n in range(best + 2))]
    assert any("ends early" in event.text for event in events if isinstance(event, Noted))
    metrics = (run / "metrics.jsonl").read_bytes()
    again = list(loop.train(settings, dataset, run, device="cpu", resume=True))
    assert not any(isinstance(event, Step) for event in again)
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_time_limit_saves_what_there_is_and_the_run_goes_on(dataset, recipe, tmp_path):
    settings, run, whole = recipe(), tmp_path / "run", tmp_path / "whole"
    *_, end = loop.train(settings, dataset, run, device="cpu", time_limit=0)
    assert end == TimeIsUp(run, "stage 1 after 0 epochs and 1 steps", None)
    *_, end = loop.train(settings, dataset, run, device="cpu", resume=True)
    assert isinstance(end, Finished)
    list(loop.train(settings, dataset, whole, device="cpu"))
    for name in ("metrics.jsonl", "checkpoints/last/model.safetensors", "scores-tune.parquet"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_time_limit_in_the_last_stage_ends_with_the_best_epoch_so_far(dataset, recipe, tmp_path, monkeypatch):
    run, clock = tmp_path / "run", [0.0]
    monkeypatch.setattr("damcli.training.loop.time.monotonic", lambda: clock[0])
    seen = []
    for event in loop.train(recipe({"epochs": 0}), dataset, run, device="cpu", time_limit=1):
        seen.append(event)
        clock[0] += isinstance(event, EpochDone)
    assert isinstance(seen[-1], Finished)
    assert seen[-1].best_epoch == 1
    [late] = [event for event in seen if isinstance(event, TimeIsUp)]
    assert (late.at, late.best_epoch) == ("stage 2 after 1 epochs and 1 steps", 1)
    assert len(pl.read_parquet(run / "scores-tune.parquet")) == len(folder.read_run(run).tune_ids)


def test_a_fold_is_kept_out_of_training_and_of_selection(folded, recipe, tmp_path):
    rows, out = plan.rows_of_folds(folded, 1)
    manifest = folded.manifest
    assert set(manifest["fold"][out]) == {1}
    assert not set(manifest["patient"][rows]) & set(manifest["patient"][out])
    planned = plan.make(recipe(), folded, fold=1)
    assert sorted([*planned.train, *planned.tune]) == rows.tolist()
    list(loop.train(recipe({"epochs": 0}, {"epochs": 1}), folded, tmp_path / "run", device="cpu", fold=1))
    assert folder.read_run(tmp_path / "run").facts.fold == 1


@pytest.mark.parametrize(("fold", "message"), [(7, "no fold 7"), (0, "has no folds")])
def test_a_fold_that_is_not_there_is_refused(folded, dataset, recipe, tmp_path, fold, message):
    with pytest.raises(UsageError, match=message):
        list(loop.train(recipe(), folded if fold else dataset, tmp_path / "run", device="cpu", fold=fold))
    assert not (tmp_path / "run").exists()


def test_stage_two_trains_one_finding_of_stage_ones_two(toy, recipe, tmp_path):
    dataset = Dataset.open(toy)
    run, settings = tmp_path / "run", recipe({"epochs": 4}, {"epochs": 3, "findings": ["Fracture"]})
    events = list(loop.train(settings, dataset, run, device="cpu"))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [list(event.aurocs) for event in epochs] == [["Edema", "Fracture"]] * 4 + [["Fracture"]] * 3
    network, info = checkpoint.load_network(run)
    assert info.findings == ("Fracture",)
    rows = dataset.rows("valid")
    scores = np.concatenate([part for _, part in scoring.score(network, dataset, rows)])
    assert scores.shape == (len(rows), 1)
    assert auroc(dataset.truth(rows)[:, 1], scores[:, 0]) > 0.9
    steps = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert {len(line["losses"]) for line in steps if line["event"] == "step" and line["stage"] == 2} == {1}


@pytest.mark.parametrize("after", [(1, 2), (2, 1)])
def test_stages_of_other_findings_resume_to_the_same_bits(dataset, recipe, tmp_path, after):
    settings = recipe({"epochs": 2}, {"epochs": 2, "findings": ["Fracture"]}, checkpoint_every="1 step")
    ends = []
    for name in ("whole", "broken"):
        run = tmp_path / name
        for event in loop.train(settings, dataset, run, device="cpu"):
            if name == "broken" and isinstance(event, Step) and (event.stage, event.epoch) == after:
                break
        if name == "broken":
            list(loop.train(settings, dataset, run, device="cpu", resume=True))
        ends.append({key: (run / key).read_bytes() for key in ("metrics.jsonl", "checkpoints/last/model.safetensors")})
    assert ends[0] == ends[1]


def test_a_stage_of_an_unknown_finding_is_refused(dataset, recipe, tmp_path):
    with pytest.raises(UsageError, match="no finding 'Edena'") as raised:
        list(loop.train(recipe(stage2={"findings": ["Edena"]}), dataset, tmp_path / "run", device="cpu"))
    assert raised.value.where == "stage2.findings"


def test_a_second_stage_starts_from_the_first_stage_of_another_run(dataset, recipe, tmp_path):
    first, whole, second = (tmp_path / name for name in ("first", "whole", "second"))
    list(loop.train(recipe({"epochs": 2}, {"epochs": 0}), dataset, first, device="cpu"))
    list(loop.train(recipe({"epochs": 2}), dataset, whole, device="cpu"))
    list(loop.train(recipe({"epochs": 0}, weights=str(first)), dataset, second, device="cpu"))
    weights = [checkpoint.load_weights(run, "last") for run in (whole, second)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, msg=name)
    info = folder.read_run(second)
    assert info.facts.weights_sha256 == checkpoint.weights_sha256(first, "last")


def test_weights_of_a_run_that_has_seen_the_fold_held_out_are_refused(folded, recipe, tmp_path):
    first = tmp_path / "first"
    list(loop.train(recipe({"epochs": 1}, {"epochs": 0}), folded, first, device="cpu", fold=1))
    settings = recipe({"epochs": 0}, {"epochs": 1}, weights=str(first))
    with pytest.raises(DataError, match="trained on scans of fold 2"):
        list(loop.train(settings, folded, tmp_path / "other", device="cpu", fold=2))
    assert not (tmp_path / "other").exists()
    events = list(loop.train(settings, folded, tmp_path / "same", device="cpu", fold=1))
    assert not any("flatter" in event.text for event in events if isinstance(event, Warned))


def test_weights_of_a_run_that_has_seen_the_tune_part_are_warned_of(dataset, recipe, tmp_path):
    first = tmp_path / "first"
    list(loop.train(recipe({"epochs": 1}, {"epochs": 0}, seed=1), dataset, first, device="cpu"))
    settings = recipe({"epochs": 0}, {"epochs": 1}, weights=str(first))
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    seen = set(folder.read_run(tmp_path / "run").tune_ids) - set(folder.read_run(first).tune_ids)
    assert seen
    [said] = [event.text for event in events if isinstance(event, Warned) and "flatter" in event.text]
    assert f"was trained on {len(seen)} of the" in said


def test_a_cyclic_learning_rate_goes_up_and_down(dataset, recipe, tmp_path):
    cycle = {"epochs": 2, "lr": 1e-4, "max_lr": 1e-3, "cycle_epochs": 1.0}
    events = list(loop.train(recipe(cycle, {"epochs": 0}), dataset, tmp_path / "run", device="cpu"))
    rates = [event.lr for event in events if isinstance(event, Step)]
    [stage] = [event for event in events if isinstance(event, StageStarted)]
    half = stage.steps / 2
    expected = [1e-4 + 9e-4 * (1 - abs(n % stage.steps - half) / half) for n in range(2 * stage.steps)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycle_epochs": 1.0}, "needs both"),
        ({"cycle_epochs": 1.0, "max_lr": 1e-9}, "must be above lr"),
        ({"cycle_epochs": 1.0, "max_lr": 1.0, "decay_epochs": [1]}, "cyclic or divided"),
    ],
)
def test_a_cycle_that_makes_no_sense_is_refused(recipe, settings, message):
    with pytest.raises(UsageError, match=message):
        recipe(stage1=settings)


def test_a_damaged_checkpoint_is_said_and_the_run_ends_with_the_same_bits(dataset, recipe, tmp_path):
    settings = recipe(checkpoint_every="1 step")
    ends = []
    for name in ("whole", "broken"):
        run = tmp_path / name
        for event in loop.train(settings, dataset, run, device="cpu"):
            if name == "broken" and isinstance(event, Step) and (event.stage, event.epoch, event.step) == (2, 1, 3):
                break
        if name == "broken":
            (run / "checkpoints" / "last" / "training.safetensors").write_bytes(b"")
            events = list(loop.train(settings, dataset, run, device="cpu", resume=True))
            [said] = [event.text for event in events if isinstance(event, Warned) and "damaged" in event.text]
            assert "training.safetensors" in said
            assert "stage 2 after 0 epochs and 1 steps" in said
        ends.append({key: (run / key).read_bytes() for key in ("metrics.jsonl", "checkpoints/last/model.safetensors")})
    assert ends[0] == ends[1]
