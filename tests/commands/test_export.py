"""`damcli export`: from runs to one verified file and its card, or nothing."""

import json
import shutil

import numpy as np
import pytest

from damcli.bundle.runtime import Model
from damcli.data.store import Dataset


@pytest.fixture(scope="session")
def runs(toy, tmp_path_factory, train):
    """Two runs on `toy`; read them only."""
    folder = tmp_path_factory.mktemp("exported") / "runs"
    return [train(toy, folder / "ce"), train(toy, folder / "other", "test_efficientnet", seed=1)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_ensemble_of_runs_scores_as_pytorch_does_and_says_where_it_is_from(
    runs, toy, tmp_path, capfd, export, by_torch
):
    export(*runs, "-o", tmp_path / "out" / "cxr.onnx", "--json")
    streams = capfd.readouterr()
    document = json.loads(streams.out)
    assert document["findings"] == ["Edema", "Fracture"]
    assert document["parity"]["scans"] == 60, "all of the split valid"
    assert document["parity"]["max_difference"] <= 1e-5
    assert document["parity"]["auroc_difference"] < 0.01
    assert streams.err.splitlines()[-1] == f"next: damcli predict SCANS --model {tmp_path}/out/cxr.onnx --export csv"
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["cxr.onnx", "cxr.onnx.md"]

    dataset = Dataset.open(toy)
    images = dataset.read(np.arange(20))
    model = Model.open(tmp_path / "out" / "cxr.onnx", "cpu")
    expected = np.mean([by_torch(run, images) for run in runs], axis=0)
    np.testing.assert_allclose(model.score(images), expected, atol=1e-5)
    first, second = model.info.members
    assert (first.run, first.recipe, first.loss, first.seed) == ("ce", "toy", "ce", 0)
    assert (second.backbone, second.seed) == ("test_efficientnet", 1)
    assert first.dataset == dataset.info.fingerprint
    assert len(first.weights_sha256) == 64
    assert first.started_from is None


def test_with_no_path_the_newest_run_goes_to_models(runs, toy, tmp_path, monkeypatch, capfd, export):
    project = tmp_path / "some" / "project"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    export(code=2)
    assert "there is no run under runs/ here" in capfd.readouterr().err
    shutil.copytree(runs[0], project / "runs" / "ce")
    export(code=2)
    assert "--dataset DATASET" in capfd.readouterr().err, "the copy has lost sight of its dataset"
    export("--dataset", toy, "--dry-run")
    assert "would write models/ce.onnx" in capfd.readouterr().err
    assert not (project / "models").exists()
    export("--dataset", toy)
    streams = capfd.readouterr()
    assert streams.out == "models/ce.onnx\n"
    assert "runs: runs/ce" in streams.err
    assert Model.open(project / "models" / "ce.onnx", "cpu").info.findings == ("Edema", "Fracture")


def test_parity_that_fails_ends_with_6_and_the_old_model_stays(runs, tmp_path, monkeypatch, capfd, export):
    from damcli.bundle import parity

    (tmp_path / "cxr.onnx").write_bytes(b"before")
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    export(runs[0], "-o", "cxr.onnx", code=6)
    assert "differ from PyTorch's" in capfd.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["cxr.onnx"]
    assert (tmp_path / "cxr.onnx").read_bytes() == b"before"


def test_a_damaged_run_another_contract_and_other_bad_input(runs, toy, make_toy, tmp_path, capfd, export):
    shutil.copytree(runs[0], tmp_path / "run")
    [weights] = (tmp_path / "run" / "checkpoints" / "best").glob("model*.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    larger = make_toy(tmp_path / "larger", scans=60, size=40)
    for arguments, code, message in [
        ([tmp_path / "run"], 3, "damaged"),
        ([tmp_path / "larger"], 3, "no run"),
        ([tmp_path / "nowhere"], 3, "no run"),
        ([runs[0], "--dataset", larger], 2, "another contract"),
        ([runs[0], "--dataset", tmp_path / "run"], 3, "no dataset"),
        ([runs[0], "-o", "cxr.pt"], 2, "ends in .onnx"),
    ]:
        export(*arguments, code=code)
        streams = capfd.readouterr()
        assert message in streams.err, arguments
        assert streams.out == ""
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--combine", "rank-mean"], "its score would change with the scans predicted with it"),
        (["--combine", "max"], "cannot be combined by 'max'"),
        (["--precision", "int8"], "int8 is not offered: measured"),
        (["--precision", "fp8"], "choose fp32 or fp16"),
        (["--force"], "fp32 has to agree with PyTorch, and is never forced"),
        (["--weights", "1"], "weights are 2 numbers of at least 0, one for each run, got '1'"),
        (["--weights", "1,x"], "--weights FINDING=2,1 for one"),
        (["--weights", "nan,1"], "at least 0"),
        (["--weights", "1,-1"], "at least 0"),
        (["--weights", "2,1", "--weights", "1,2"], "given twice for all findings"),
        (["--weights", "Edema=2,1", "--weights", "Edema=2,1"], "given twice for Edema"),
        (["--weights", "Mass=2,1"], "no run has the finding 'Mass'"),
        (["--weights", "0,1"], "weighs 0 in all its findings"),
        (["--cam", "--tta", "3"], "test-time augmentation has none"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_reason(runs, tmp_path, capfd, options, message, export):
    export(*runs, "-o", "m.onnx", *options, code=2)
    shown = " ".join(capfd.readouterr().err.split())
    assert message in shown
    assert not list(tmp_path.glob("*.onnx*"))


def test_weights_by_finding_maps_and_terms_are_in_the_file(runs, toy, tmp_path, capfd, export, by_torch):
    words = ["--license", "CC BY 4.0", "--intended-use", "Research on adults."]
    export(*runs, "-o", "m.onnx", "--weights", "2,1", "--weights", "Edema=1,3", *words)
    assert "parity: scores differ from PyTorch's by at most" in capfd.readouterr().err
    model = Model.open(tmp_path / "m.onnx", "cpu")
    images = Dataset.open(toy).read(np.arange(12))
    first, second = (by_torch(run, images) for run in runs)
    edema, fracture = (first[:, 0] + 3 * second[:, 0]) / 4, (2 * first[:, 1] + second[:, 1]) / 3
    np.testing.assert_allclose(model.score(images), np.stack([edema, fracture], 1), atol=1e-5)
    assert [member.weights for member in model.info.members] == [
        {"Edema": 1.0, "Fracture": 2.0},
        {"Edema": 3.0, "Fracture": 1.0},
    ]
    assert (model.info.licence, model.info.intended_use) == ("CC BY 4.0", "Research on adults.")
    card = (tmp_path / "m.onnx.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in card
    assert "Research on adults." in card


def test_half_precision_that_moves_an_auroc_ends_with_6_and_force_says_so(runs, tmp_path, monkeypatch, capfd, export):
    from damcli.bundle import parity

    monkeypatch.setattr(parity, "SHIFT", -1.0)
    export(runs[0], "-o", "m.onnx", "--precision", "fp16", code=6)
    assert "in fp16 the AUROC of" in capfd.readouterr().err
    assert not list(tmp_path.glob("m.onnx*"))
    export(runs[0], "-o", "m.onnx", "--precision", "fp16", "--force", "--json")
    streams = capfd.readouterr()
    assert "forced: in fp16 the AUROC of" in streams.err
    assert "moves by" in json.loads(streams.out)["parity"]["forced"]
    assert Model.open(tmp_path / "m.onnx", "cpu").info.precision == "fp16"
