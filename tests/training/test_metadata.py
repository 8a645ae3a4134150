"""The metadata network of a run: it learns what is there, to the same bits each time, and is kept whole."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch

from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.metrics import auroc
from damcli.training import metadata, plan

COLUMNS = ["age", "sex"]


def with_columns(dataset, **columns):
    return Dataset(
        dataset.path, dataset.info, dataset.manifest.with_columns(pl.Series(k, v) for k, v in columns.items())
    )


@pytest.fixture(scope="session")
def dataset(make_toy, tmp_path_factory):
    """Age tells something of Edema, and sex of Fracture; some of both is not known."""
    toy = Dataset.open(make_toy(tmp_path_factory.mktemp("metadata") / "dataset", scans=480))
    truth, rng = toy.truth(np.arange(480)), np.random.default_rng(1)
    age = np.where(rng.random(480) < 0.1, np.nan, 50 + 10 * truth[:, 0] + rng.normal(0, 10, 480))
    sex = np.where(np.arange(480) % 4 == 0, 1 - truth[:, 1], truth[:, 1])
    columns = {"age": pl.Series(age).fill_nan(None), "sex": ["fm"[int(s)] if rng.random() < 0.9 else None for s in sex]}
    return with_columns(toy, **columns, shots=np.full(480, 3), noise=rng.normal(size=480))


@pytest.fixture
def settings(recipe):
    return lambda **more: recipe(batch_size=64, metadata={"columns": COLUMNS, **more.pop("metadata", {})}, **more)


@pytest.fixture(scope="session")
def trained_once(dataset):
    return {}


@pytest.fixture
def trained(dataset, settings, trained_once):
    """Trained by CE, then AUC-M; the same in all tests."""
    if not trained_once:
        trained_once["it"] = metadata.train(settings(), dataset, plan.make(settings(), dataset))
    return trained_once["it"]


def test_a_signal_that_was_planted_is_learnt(trained, dataset):
    rows = dataset.rows("valid")
    truth, scores = dataset.truth(rows), trained.scores(dataset, rows)
    assert scores.dtype == np.float32
    assert auroc(truth[:, 0], scores[:, 0]) > 0.68
    assert auroc(truth[:, 1], scores[:, 1]) > 0.65
    assert trained.findings == ("Edema", "Fracture")


def test_the_best_epoch_is_the_one_that_is_kept(trained, dataset, settings):
    tune = plan.make(settings(), dataset).tune
    truth, scores = dataset.truth(tune), trained.scores(dataset, tune)
    assert trained.aurocs == {name: auroc(truth[:, k], scores[:, k]) for k, name in enumerate(trained.findings)}
    assert 1 <= trained.epoch <= metadata.EPOCHS


def test_training_again_gives_the_same_bits_whatever_the_threads_and_the_generator(trained, dataset, settings):
    torch.manual_seed(99)
    torch.set_num_threads(2)
    again = metadata.train(settings(), dataset, plan.make(settings(), dataset))
    assert torch.get_num_threads() == 2
    first, second = trained.network.state_dict(), again.network.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (again.epoch, again.aurocs, again.encoding) == (trained.epoch, trained.aurocs, trained.encoding)


def test_the_encoding_knows_only_the_scans_that_are_trained_on(trained, dataset, settings):
    train = dataset.manifest[plan.make(settings(), dataset).train]
    assert trained.encoding.columns[0].mean == pytest.approx(train["age"].mean())


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_another_loss_is_one_stage(dataset, settings, monkeypatch, loss):
    monkeypatch.setattr(metadata, "EPOCHS", 2)
    given = settings(stage1={"loss": loss}, stage2={"epochs": 0})
    assert [(s.loss, s.optimizer, s.epochs) for s in metadata._stages(given.stage1)] == [(loss, "adam", 2)]
    assert metadata.train(given, dataset, plan.make(given, dataset)).epoch in (1, 2)


def test_a_stage_of_its_own_findings_decides_what_is_told(dataset, settings, monkeypatch):
    monkeypatch.setattr(metadata, "EPOCHS", 1)
    given = settings(stage2={"findings": ["Fracture"], "form": "prior", "score": "bsn"})
    one = metadata.train(given, dataset, plan.make(given, dataset))
    assert one.findings == ("Fracture",)
    assert one.scores(dataset, np.arange(5)).shape == (5, 1)


def test_hidden_cells_are_missing_or_unseen_and_nothing_else(trained, dataset):
    encoding = trained.encoding
    rows = encoding.encode(pl.DataFrame({"age": [60.0] * 4000, "sex": ["f"] * 4000}))
    shown = metadata._hidden(rows, encoding, seed=1)
    np.testing.assert_array_equal(shown[:, 2:].sum(axis=1), 1)
    [(_, no_age, _), (_, no_sex, other_sex)] = encoding.doubts(shown)
    assert all(150 < count < 250 for count in (no_age, no_sex, other_sex))
    kept = (shown == rows).all(axis=1).mean()
    assert kept == pytest.approx(0.95 * 0.9, abs=0.03)


def test_the_mixture_is_weighted(trained, dataset):
    rows = np.arange(6)
    images = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)
    own = trained.scores(dataset, rows)
    np.testing.assert_allclose(trained.mixed(images, dataset, rows), (images + own) / 2, atol=1e-7)
    np.testing.assert_allclose(metadata.mix(images, own, 0.2), 0.8 * images + 0.2 * own, atol=1e-7)


def test_another_dataset_without_a_column_is_scored_as_if_it_were_missing(trained, dataset):
    without = Dataset(dataset.path, dataset.info, dataset.manifest.drop("sex"))
    blank = with_columns(dataset, sex=[None] * 480)
    rows = np.arange(20)
    np.testing.assert_array_equal(trained.scores(without, rows), trained.scores(blank, rows))


def test_columns_are_checked_before_anything_is_trained(dataset, settings):
    def prepare(*columns, **more):
        given = settings(metadata={"columns": columns, **more})
        return metadata.prepare(given, dataset, plan.make(given, dataset))

    with pytest.raises(UsageError, match="there is no metadata column 'agee'"):
        prepare("agee")
    with pytest.raises(DataError, match="the same for every scan"):
        prepare("shots")
    telling = with_columns(dataset, stage=dataset.manifest["label:Edema"])
    given = settings(metadata={"columns": ["stage"]})
    with pytest.raises(DataError, match="the column stage alone tells Edema with AUROC 1.00"):
        metadata.prepare(given, telling, plan.make(given, telling))
    forced = settings(metadata={"columns": ["stage"], "allow_leaks": True})
    assert metadata.prepare(forced, telling, plan.make(forced, telling)).names == ["stage"]


def test_a_run_keeps_its_network(trained, dataset, settings, tmp_path):
    assert metadata.load(tmp_path, settings(metadata={"columns": []})) is None
    with pytest.raises(DataError, match="no metadata network yet"):
        metadata.load(tmp_path, settings())
    metadata.save(trained, tmp_path)
    loaded = metadata.of_run(tmp_path, settings(), dataset, plan.make(settings(), dataset))
    np.testing.assert_array_equal(loaded.scores(dataset, np.arange(9)), trained.scores(dataset, np.arange(9)))
    assert (loaded.encoding, loaded.findings, loaded.weight) == (trained.encoding, trained.findings, 0.5)
    assert (loaded.epoch, loaded.aurocs) == (trained.epoch, trained.aurocs)
    assert sorted(file.name for file in metadata.folder(tmp_path).iterdir()) == ["metadata.json", "model.safetensors"]


def test_an_undefined_auroc_is_kept_as_such(trained, settings, tmp_path):
    undefined = metadata.Trained(trained.network, trained.encoding, trained.findings, 0.5, 1, {"Edema": math.nan})
    metadata.save(undefined, tmp_path)
    loaded = metadata.load(tmp_path, settings())
    assert math.isnan(loaded.aurocs["Edema"])
    assert str(loaded) == "the metadata network (age, sex) alone, on the tune part: AUROC n/a"


@pytest.mark.parametrize("name", ["metadata.json", "model.safetensors"])
def test_a_changed_byte_is_found(trained, settings, tmp_path, name):
    metadata.save(trained, tmp_path)
    file = metadata.folder(tmp_path) / name
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(DataError, match="damaged"):
        metadata.load(tmp_path, settings())


def test_another_format_is_refused(trained, settings, tmp_path):
    metadata.save(trained, tmp_path)
    file = metadata.folder(tmp_path) / "metadata.json"
    about = json.loads(file.read_text()) | {"schema_version": 9}
    del about["seal"]
    file.write_text(json.dumps({**about, "seal": metadata._seal(about)}))
    with pytest.raises(DataError, match="format 9"):
        metadata.load(tmp_path, settings())
