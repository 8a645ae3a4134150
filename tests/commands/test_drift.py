"""`damcli evaluate MODEL --drift SCANS`: like those trained on, or not, from files or a dataset; nothing is dropped."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from damcli.commands.evaluate import drifting
from damcli.data.store import Dataset


@pytest.fixture(scope="module")
def model(toy, tmp_path_factory):
    """A model of one run on `toy`, as `damcli export` makes it."""
    from damcli.cli import main
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    folder = tmp_path_factory.mktemp("drifting")
    stage = Stage(loss="ce", optimizer="adam", epochs=2, lr=3e-3)
    recipe = Recipe(backbone="test_resnet", batch_size=32, precision="32", stage2=stage, tune_fraction=0.45)
    for _ in train(recipe, Dataset.open(toy), folder / "run", device="cpu"):
        pass
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder / "run"), "-o", str(folder / "toy.onnx"), "-q"])
    assert not ended.value.code
    return folder / "toy.onnx"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def valid(toy):
    """The images of the split that the model has not seen."""
    dataset = Dataset.open(toy)
    return dataset.read(dataset.rows("valid"))


def test_new_scans_of_the_same_kind_do_not_shift_and_limits_are_said(model, valid, tmp_path, run_here):
    code, out, err = run_here("evaluate", model, "--drift", saved(tmp_path / "scans", valid), "-o", "told")
    assert code == 0
    assert "nothing shifted (p after Holm below 0.05" in out
    assert "does not say that the AUROC holds" in out
    assert "does not say that the AUROC fails" in out
    assert "60 scans compared, 0 failed, 0 skipped" in err
    document = json.loads((tmp_path / "told" / "drift.json").read_text())
    names = [(shift["kind"], shift["name"]) for shift in document["shifts"]]
    statistics = ["mean", "deviation", "dark", "bright", "sharpness"]
    assert names == [("score", "Edema"), ("score", "Fracture"), *(("pixels", name) for name in statistics)]
    assert not any(shift["shifted"] for shift in document["shifts"])
    assert any("cannot be told from chance" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda images: 255 - images, {"mean", "bright", "dark"}),
        (lambda images: (images // 2 + 100).astype(np.uint8), {"mean", "deviation", "dark", "sharpness"}),
    ],
    ids=["inverted", "flat"],
)
def test_scans_that_changed_are_told(model, valid, tmp_path, run_here, change, expected):
    scans = saved(tmp_path / "scans", change(valid))
    code, out, _ = run_here("evaluate", model, "--drift", scans, "--json")
    assert code == 0, "a shift is no failure"
    shifted = {shift["name"] for shift in json.loads(out)["shifts"] if shift["shifted"]}
    assert shifted >= expected


def test_files_are_scored_as_predict_scores_them(model, valid, tmp_path):
    from damcli.bundle.runtime import Model

    found = drifting.run(model, saved(tmp_path / "scans", valid), "cpu")
    expected = Model.open(model, "cpu").score(valid)
    for shift, mean in zip(found.shifts, expected.mean(axis=0), strict=False):
        assert shift.now == pytest.approx(mean, abs=1e-6)


def test_archives_are_read_as_the_folder_that_they_hold(model, valid, tmp_path, run_here):
    scans = saved(tmp_path / "scans", valid[:40])
    (scans / "cut.png").write_bytes((scans / "000.png").read_bytes()[:50])
    files = sorted(scans.iterdir())
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    # Of a compressed one nobody knows before how many scans it holds.
    with tarfile.open(tmp_path / "scans.tgz", "w:gz") as archive:
        for file in files:
            archive.add(file, file.name)
    documents = []
    for given in ("scans", "scans.zip", "scans.tgz"):
        code, out, err = run_here("evaluate", model, "--drift", given, "--json")
        assert code == 4, err
        documents.append(json.loads(out) | {"scans": ""})
    assert documents[0] == documents[1] == documents[2]
    assert (documents[0]["compared"], documents[0]["failed"][0]["path"]) == (40, "cut.png")


def test_failed_and_skipped_files_are_counted_and_listed_and_the_code_is_4(model, valid, tmp_path, run_here):
    scans = saved(tmp_path / "scans", valid[:40])
    whole = (scans / "000.png").read_bytes()
    for number in range(13):
        (scans / f"cut{number:02}.png").write_bytes(whole[: len(whole) // 2])
    (scans / "notes.txt").write_text("no scan\n")
    code, out, err = run_here("evaluate", model, "--drift", scans)
    assert code == 4
    assert "nothing shifted" in out
    assert "40 scans compared, 13 failed, 1 skipped" in err
    assert "warning: cut00.png: " in err
    assert "and 3 more that failed" in err
    code, out, _ = run_here("evaluate", model, "--drift", scans, "--json")
    assert (code, len(json.loads(out)["failed"])) == (4, 13)
    for file in scans.glob("0*.png"):
        file.unlink()
    code, _, err = run_here("evaluate", model, "--drift", scans)
    assert code == 3
    assert "none of the 14 scans could be scored" in err


def test_a_dataset_is_compared_and_one_of_another_contract_is_refused(model, toy, make_toy, tmp_path, run_here):
    code, out, _ = run_here("evaluate", model, "--drift", toy)
    assert code == 0
    assert "nothing shifted" in out
    assert "these are scans of the dataset that the model was trained on" in out
    code, out, _ = run_here("evaluate", model, "--drift", make_toy(tmp_path / "rare", scans=150, seed=5, positives=0.9))
    assert code == 0
    assert "score of Edema" in out.split(" shifted (")[0].splitlines()[-1]
    code, _, err = run_here("evaluate", model, "--drift", make_toy(tmp_path / "large", scans=30, size=40))
    assert code == 3
    assert "decoded otherwise" in err


def test_what_cannot_be_compared_is_refused(model, tmp_path, run_here):
    from damcli.bundle import build
    from damcli.data.images import Contract
    from damcli.deepauc.network import Classifier

    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "toy") | {"seed": 0}
    member = build.Member(Classifier("test_resnet", 1).eval(), ["A"], Contract(size=32, channels=1), origin)
    build.export([member], tmp_path / "old.onnx", np.zeros((2, 32, 32), np.uint8))
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        (("old.onnx", "--drift", "empty"), 2, "export it again: damcli export RUN"),
        ((model, "--drift", "empty"), 2, "there is no file to score"),
        ((model, "--drift", "nowhere"), 2, "there is no such folder"),
        ((model, "data", "--drift", "empty"), 2, "drift needs no labels"),
        ((model.parent / "run", "--drift", "empty"), 2, "damcli export"),
    ):
        found, out, err = run_here("evaluate", *arguments)
        assert found == code, err
        assert message in err
        assert out == ""


def test_one_scan_alone_has_a_mean_without_bounds(model, valid, tmp_path, run_here):
    code, out, _ = run_here("evaluate", model, "--drift", saved(tmp_path / "scans", valid[:1]) / "000.png", "--json")
    assert code == 0
    [first, *_] = json.loads(out)["shifts"]
    assert (first["mean_now"]["low"], first["shifted"]) == (None, False)
