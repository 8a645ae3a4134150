"""Training: it learns, it repeats itself to the bit, and it stops where its numbers or its folder are no good."""

import json
import os
import signal
from contextlib import closing

import numpy as np
import polars as pl
import pytest
import torch

from damcli.data.store import Dataset
from damcli.errors import DataError, MachineError, UsageError
from damcli.metrics import auroc
from damcli.training import checkpoint, folder, launch, loop, scoring
from damcli.training.events import (
    Boundary,
    EpochDone,
    Finished,
    PrecisionChosen,
    Scored,
    StageStarted,
    Started,
    Step,
    Warned,
)

EVERY_STEP = "1 step"


@pytest.fixture(scope="module")
def dataset(toy):
    return Dataset.open(toy)


@pytest.fixture(scope="module")
def small(make_toy, tmp_path_factory):
    """A dataset of four steps an epoch, for what does not depend on how much is learnt."""
    return Dataset.open(make_toy(tmp_path_factory.mktemp("small") / "dataset", scans=96))


def everything(run):
    """All of a run that depends on its seed: the bytes of its weights, metrics and scores."""
    state = {name: (run / "checkpoints" / name / "model.safetensors").read_bytes() for name in ("last", "best")}
    state["training"] = (run / "checkpoints" / "last" / "training.safetensors").read_bytes()
    state["metrics"] = (run / "metrics.jsonl").read_bytes()
    state["scores"] = pl.read_parquet(run / "scores-tune.parquet").write_csv()
    state["best"] = checkpoint.read_progress(run, "best")
    return state


def test_two_stages_learn_what_can_be_learnt_and_touch_no_other_split(dataset, recipe, tmp_path):
    settings = recipe(stage1={"epochs": 4}, stage2={"epochs": 3})
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))

    stages = [event for event in events if isinstance(event, StageStarted)]
    assert [(stage.stage, stage.loss, stage.optimizer) for stage in stages] == [(1, "ce", "adam"), (2, "aucm", "pesg")]
    [started] = [event for event in events if isinstance(event, Started)]
    assert started.batches == sum(isinstance(event, Step | Scored) for event in events)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.mean_auroc > 0.9
    epochs = [event for event in events if isinstance(event, EpochDone) and event.stage == 2]
    assert finished.mean_auroc == max(event.mean_auroc for event in epochs)
    assert epochs[finished.best_epoch - 1].mean_auroc == finished.mean_auroc
    assert epochs[finished.best_epoch - 1].best

    network, info = checkpoint.load_network(tmp_path / "run")
    assert info.findings == ("Edema", "Fracture")
    assert info.loss == "aucm"
    assert info.dataset.resolve() == dataset.path.resolve()
    rows = dataset.rows("valid")
    scores = np.concatenate([part for _, part in scoring.score(network, dataset, rows)])
    assert all(auroc(dataset.truth(rows)[:, k], scores[:, k]) > 0.9 for k in range(2))

    kept = set(info.tune_ids)
    tune = dataset.manifest.filter(pl.col("id").is_in(kept))
    rest = dataset.manifest.filter(~pl.col("id").is_in(kept) & (pl.col("split") == "train"))
    assert set(tune["split"]) == {"train"}
    assert not set(tune["patient"]) & set(rest["patient"])
    table = pl.read_parquet(tmp_path / "run" / "scores-tune.parquet")
    assert table.columns == ["path", "Edema", "Fracture"]
    assert set(table["path"]) == kept


def test_stage_two_starts_with_a_new_classifier_and_the_old_backbone(small, recipe, tmp_path):
    settings = recipe(stage1={"epochs": 1}, stage2={"lr": 1e-9}, checkpoint_every=EVERY_STEP)
    weights = {}
    with closing(loop.train(settings, small, tmp_path / "run", device="cpu")) as events:
        for event in events:
            if isinstance(event, EpochDone) and event.stage == 1:
                weights["first"] = checkpoint.load_weights(tmp_path / "run", "last")
            if isinstance(event, Step) and event.stage == 2 and event.step == 2:
                weights["second"] = checkpoint.load_weights(tmp_path / "run", "last")
                break
    second = weights["second"]
    changed = {name for name, value in weights["first"].items() if not torch.allclose(value, second[name], atol=1e-5)}
    assert {name for name in changed if "running" not in name and "batches" not in name} == {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }


@pytest.mark.parametrize("loss", ["aucm", "aucs", "ce", "focal"])
@pytest.mark.parametrize("blank", [0.0, 0.4])
def test_every_loss_trains_in_uneven_batches_with_missing_labels_too(make_toy, recipe, tmp_path, loss, blank):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=90, blank=blank))
    auc = loss in ("aucm", "aucs")
    first = {"epochs": 0} if auc else {"loss": loss, "epochs": 1}
    second = {"loss": loss, "epochs": 1} if auc else {"epochs": 0}
    settings = recipe(first, second, batch_size=11)
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    assert all(np.isfinite(event.loss) for event in events if isinstance(event, Step))
    assert isinstance(events[-1], Finished)


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """A run that was never stopped; made on first use by the function it returns."""
    made = {}

    def get(settings):
        key = settings.model_dump_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("unbroken") / "run"
            list(loop.train(settings, small, made[key], device="cpu"))
        return made[key]

    return get


@pytest.mark.parametrize(
    "stop",
    [
        lambda event: isinstance(event, Started),
        lambda event: isinstance(event, Step) and (event.stage, event.epoch, event.step) == (1, 2, 2),
        lambda event: isinstance(event, Scored) and event.scans,
        lambda event: isinstance(event, EpochDone) and (event.stage, event.epoch) == (1, 2),
        lambda event: isinstance(event, Step) and (event.stage, event.epoch, event.step) == (2, 1, 3),
        lambda event: isinstance(event, Step) and (event.stage, event.epoch, event.step) == (2, 2, 4),
        lambda event: isinstance(event, EpochDone) and (event.stage, event.epoch) == (2, 2),
    ],
    ids=["at once", "stage 1", "scoring", "between stages", "stage 2", "after the decay", "before the end"],
)
def test_a_run_that_lost_its_process_ends_as_if_it_had_not(small, recipe, unbroken, tmp_path, stop):
    settings = recipe(checkpoint_every=EVERY_STEP)
    run = tmp_path / "run"
    # A generator that is dropped, as a process that is killed, gets no chance to save.
    with closing(loop.train(settings, small, run, device="cpu")) as events:
        assert any(stop(event) for event in events)
    # The best checkpoint and the metrics may be ahead of the last one.
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "stage": 2, "ep')
    list(loop.train(settings, small, run, device="cpu", resume=True))
    assert everything(run) == everything(unbroken(settings))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_is_granted_after_the_step_and_costs_nothing(small, recipe, unbroken, tmp_path, number, error):
    settings = recipe()
    run = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        for event in loop.train(settings, small, run, device="cpu"):
            if isinstance(event, Step) and (event.stage, event.step) == (2, 4):
                os.kill(os.getpid(), number)
    assert getattr(raised.value, "code", 143) == 143
    assert signal.getsignal(number) == before
    progress = checkpoint.read_progress(run)
    assert (progress.stage, progress.step) == (2, 4)
    list(loop.train(settings, small, run, device="cpu", resume=True))
    assert everything(run) == everything(unbroken(settings))


@pytest.mark.parametrize("written", [Warned, Boundary], ids=["an epoch's warnings", "the last boundary"])
def test_what_was_written_before_a_scoring_that_is_interrupted_is_not_written_twice(
    small, recipe, unbroken, tmp_path, written
):
    settings = recipe(stage2={"margin": 1e-4})  # met from the start, which is warned of
    run, before = tmp_path / "run", None
    with pytest.raises(SystemExit):
        for event in loop.train(settings, small, run, device="cpu"):
            if isinstance(event, Scored) and isinstance(before, written):
                os.kill(os.getpid(), signal.SIGTERM)
            before = event
    list(loop.train(settings, small, run, device="cpu", resume=True))
    assert everything(run) == everything(unbroken(settings))


def test_resuming_a_finished_run_changes_nothing(small, recipe, unbroken):
    run = unbroken(recipe())
    before = everything(run)
    events = list(loop.train(recipe(), small, run, device="cpu", resume=True))
    assert not any(isinstance(event, Step) for event in events)
    assert everything(run) == before


def test_another_seed_makes_another_run(small, recipe, unbroken):
    assert everything(unbroken(recipe())) != everything(unbroken(recipe(seed=1)))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_checkpoint_with_a_flipped_byte_is_refused_by_name(small, recipe, tmp_path, name):
    settings = recipe(stage1={"epochs": 0}, stage2={"epochs": 1})
    run = tmp_path / "run"
    list(loop.train(settings, small, run, device="cpu"))
    file = run / "checkpoints" / "last" / name
    data = bytearray(file.read_bytes())
    place = data.index(b'"epoch": 1') + 9 if name == "state.json" else len(data) // 2
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=name):
        list(loop.train(settings, small, run, device="cpu", resume=True))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_scans(small, recipe, tmp_path):
    settings = recipe(stage1={"optimizer": "sgd", "lr": 1e30}, checkpoint_every="1 d")
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"stage 1, epoch 1, step 2.*Edema") as raised:
        list(loop.train(settings, small, run, device="cpu"))
    assert raised.value.exit_code == 3
    assert "stage1.lr" in raised.value.fix
    report = json.loads((run / "nonfinite.json").read_text())
    assert (report["stage"], report["epoch"], report["step"]) == (1, 1, 2)
    assert set(report["scans"]) <= set(small.manifest["id"])
    assert len(report["scans"]) in (15, 16)
    assert checkpoint.read_progress(run) is None, "a broken network must not be saved"


def test_broken_weights_never_replace_a_sound_checkpoint(small, recipe, tmp_path):
    settings = recipe(stage1={"optimizer": "sgd", "lr": 1e300}, checkpoint_every=EVERY_STEP)
    with pytest.raises(DataError, match="no longer finite"):
        list(loop.train(settings, small, tmp_path / "run", device="cpu"))
    assert checkpoint.read_progress(tmp_path / "run") is None


def test_two_writers_of_one_run_are_refused(small, recipe, tmp_path):
    run = tmp_path / "run"
    with closing(loop.train(recipe(), small, run, device="cpu")) as events:
        while not isinstance(next(events), Step):
            pass
        with pytest.raises(UsageError, match="another damcli"):
            list(loop.train(recipe(), small, run, device="cpu", resume=True))


def test_a_folder_in_use_is_refused_and_left_alone(small, recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        list(loop.train(recipe(), small, tmp_path, device="cpu"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_what_cannot_be_trained_leaves_no_folder(small, recipe, tmp_path):
    with pytest.raises(UsageError, match="weights"):
        list(loop.train(recipe(weights="absent.safetensors"), small, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_another_dataset_is_refused_on_resume(recipe, unbroken, make_toy, tmp_path):
    other = Dataset.open(make_toy(tmp_path / "dataset", seed=1))
    with pytest.raises(DataError, match="fingerprint"):
        list(loop.train(recipe(), other, unbroken(recipe()), device="cpu", resume=True))


def test_findings_without_both_classes_are_said_and_the_last_epoch_is_taken(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=60, positives=0.0))
    settings = recipe(stage2={"epochs": 0})
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    said = [event.text for event in events if isinstance(event, Warned)]
    assert any("Edema has no positives" in text for text in said)
    assert any("the last epoch is taken" in text for text in said)
    assert events[-1].best_epoch == 2
    assert np.isnan(events[-1].mean_auroc)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [*_, epoch] = [record for record in records if record["event"] == "epoch"]
    assert epoch["tune_auroc"] == {"Edema": None, "Fracture": None}


def test_precision_is_measured_once_and_kept(small, recipe, tmp_path):
    run = tmp_path / "run"
    settings = recipe(stage1={"epochs": 0}, stage2={"epochs": 1}, precision="auto")
    chosen = None
    with closing(loop.train(settings, small, run, device="cpu")) as events:
        for event in events:
            chosen = event if isinstance(event, PrecisionChosen) else chosen
            if isinstance(event, Step):
                break
    info = folder.read_run(run)
    assert info.recipe.precision == chosen.precision in ("32", "bf16")
    assert f'precision = "{chosen.precision}"  # measured' in (run / "config.toml").read_text()
    again = list(loop.train(settings, small, run, device="cpu", resume=True))
    assert not any(isinstance(event, PrecisionChosen) for event in again)


def test_precision_is_measured_on_as_many_scans_as_a_piece_has(small, recipe, tmp_path, monkeypatch):
    sizes, measure = [], launch.faster_precision

    def measured(device, network, images):
        sizes.append(len(images))
        return measure(device, network, images)

    monkeypatch.setattr(launch, "faster_precision", measured)
    with closing(loop.train(recipe(precision="auto", accumulate=4), small, tmp_path / "run", device="cpu")) as events:
        assert any(isinstance(event, PrecisionChosen) for event in events)
    assert sizes == [4]


def test_memory_that_is_too_small_to_measure_precision_is_said(small, recipe, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(launch, "faster_precision", full)
    with pytest.raises(MachineError, match="not enough memory for a batch"):
        list(loop.train(recipe(precision="auto"), small, tmp_path / "run", device="cpu"))


def test_bf16_trains(small, recipe, tmp_path):
    settings = recipe(stage1={"epochs": 0}, stage2={"epochs": 1}, precision="bf16")
    events = list(loop.train(settings, small, tmp_path / "run", device="cpu"))
    assert isinstance(events[-1], Finished)
    weights = checkpoint.load_weights(tmp_path / "run", "last")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_that_is_not_there_is_the_machines_fault(small, recipe, tmp_path):
    with pytest.raises(MachineError, match="CUDA"):
        list(loop.train(recipe(), small, tmp_path / "run", device="cuda"))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_gpu_learns_what_can_be_learnt(dataset, recipe, tmp_path, precision):
    settings = recipe(stage1={"epochs": 4}, stage2={"epochs": 3}, precision=precision)
    *_, finished = loop.train(settings, dataset, tmp_path / "run", device="cuda")
    assert isinstance(finished, Finished)
    assert finished.mean_auroc > 0.9
