"""Metadata from a dataset's columns to a table of scores: evaluate, export and predict tell the same."""

import csv
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from damcli import files
from damcli.cli import main
from damcli.commands import evaluate
from damcli.data.store import Dataset

COLUMNS = ("age", "sex")


@pytest.fixture(scope="session")
def chain(make_toy, tmp_path_factory):
    """A dataset with age and sex, a run on it and its model."""
    from damcli.config import Layer, resolve
    from damcli.recipes import Recipe
    from damcli.training import loop, metadata

    root = tmp_path_factory.mktemp("chain")
    path, run = make_toy(root / "dataset", scans=120), root / "run"
    manifest, rng = pl.read_parquet(path / "manifest.parquet"), np.random.default_rng(0)
    age = [None if n % 7 == 0 else float(rng.integers(20, 90)) for n in range(120)]
    sex = [None if n % 11 == 0 else "fm"[n % 2] for n in range(120)]
    manifest.with_columns(age=pl.Series(age), sex=pl.Series(sex)).write_parquet(path / "manifest.parquet")
    info = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(info | {"manifest_sha256": files.sha256(path / "manifest.parquet")}))

    values = {
        "backbone": "test_resnet",
        "precision": "32",
        "metadata": {"columns": COLUMNS, "weight": 0.3},
        "stage2": {"loss": "ce", "optimizer": "adam", "epochs": 1, "sampler": "uniform"},
    }
    recipe, dataset = resolve(Recipe, [Layer("test", values)]).value, Dataset.open(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "EPOCHS", 3)
        for _ in loop.train(recipe, dataset, run, device="cpu"):
            pass
    with pytest.raises(SystemExit) as end:
        main(["export", str(run), "-o", str(root / "m.onnx"), "-q"])
    assert not end.value.code
    return path, run, root / "m.onnx"


def predict(*arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments), "--workers", "0", "--device", "cpu"])
    assert (end.value.code or 0) == code


def test_a_run_is_evaluated_on_the_mixture_and_its_model_tells_the_same(chain):
    from damcli.training import checkpoint, metadata, scoring

    path, run, model = chain
    dataset = Dataset.open(path)
    rows = dataset.rows("valid")
    network, info = checkpoint.load_network(run)
    images = np.concatenate([scores for _, scores in scoring.score(network, dataset, rows)])
    own = metadata.load(run, info.recipe).scores(dataset, rows)
    found = evaluate.evaluate(run, path, device="cpu")
    np.testing.assert_allclose(found.scores, 0.7 * images + 0.3 * own, atol=1e-6)
    assert any("mixed with those of age, sex" in note for note in found.notes)
    np.testing.assert_allclose(evaluate.evaluate(model, path, device="cpu").scores, found.scores, atol=1e-5)


@pytest.fixture
def scans(chain, tmp_path):
    """Five scans as files."""
    dataset = Dataset.open(chain[0])
    folder = tmp_path / "scans"
    folder.mkdir()
    images = dataset.read(np.arange(5))
    for name, image in zip("abcde", images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no scan")
    return folder, images


def scores_of(table):
    with table.open(newline="") as file:
        return {row["path"]: [row["Edema"], row["Fracture"]] for row in csv.DictReader(file) if row["status"] == "ok"}


def test_a_csv_is_joined_by_path_and_what_is_not_known_is_said(chain, scans, tmp_path, capfd):
    from damcli.bundle.runtime import Model

    folder, images = scans
    table, out = tmp_path / "about.csv", tmp_path / "s.csv"
    table.write_text(
        "Sex,path,AGE,more\nf,d.png,,x\nother,b.png,61,x\nm,a.png,30,x\nm,z.png,99,x\nF,/old/scans/c.png,45,\n"
    )
    predict(folder, "--model", chain[2], "--metadata", table, "-o", out)
    model = Model.open(chain[2], "cpu")
    about = pl.DataFrame({"age": [30, 61, 45, None, None], "sex": ["m", "x", "f", "f", None]})
    expected = model.score(images, model.info.encoding.encode(about))
    got = scores_of(out)
    np.testing.assert_allclose(np.array([got[f"{name}.png"] for name in "abcde"], float), expected, atol=1e-6)
    said = capfd.readouterr().err
    assert "1 rows of" in said
    assert "1 scans have no row of metadata" in said
    assert "1 scans have no age" in said
    assert "1 scans have a sex that the model never met in training" in said


def test_without_a_csv_all_is_missing_and_said(chain, scans, tmp_path, capfd):
    from damcli.bundle.runtime import Model

    folder, images = scans
    predict(folder, "--model", chain[2], "-o", tmp_path / "s.csv")
    expected = Model.open(chain[2], "cpu").score(images)
    np.testing.assert_allclose(np.array(list(scores_of(tmp_path / "s.csv").values()), float), expected, atol=1e-6)
    assert "the model also takes age, sex: without --metadata all of it counts as missing" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("path,age\na.png,30\n", 2, "there is no column 'sex'"),
        ("file,age,sex\na.png,30,f\n", 3, "path"),
        ("path,age,sex\na.png,30,f\na.png,30,f\n", 3, "more than once"),
        ("path,age,sex\na.png,old,f\n", 3, "are no numbers"),
        ("path,age,sex\nx/a.png,3,f\ny/a.png,3,f\n", 3, "2 rows may be of the scan a.png"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(chain, scans, tmp_path, capfd, text, code, message):
    (tmp_path / "about.csv").write_text(text)
    predict(scans[0], "--model", chain[2], "--metadata", tmp_path / "about.csv", "-o", tmp_path / "s.csv", code=code)
    assert message in capfd.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_the_scores_do_not_take_the_place_of_the_metadata(chain, scans, tmp_path, capfd):
    table = tmp_path / "about.csv"
    table.write_text("path,age,sex\na.png,30,f\n")
    predict(scans[0], "--model", chain[2], "--metadata", table, "-o", table, code=2)
    assert table.read_text().startswith("path,age,sex")
