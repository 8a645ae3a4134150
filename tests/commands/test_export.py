"""`damcli export`: from runs to one verified file and its card, or nothing."""

import json
import shutil

import numpy as np
import pytest

from damcli.bundle.runtime import Model
from damcli.cli import main
from damcli.data.store import Dataset


def train(toy, folder, backbone="test_resnet", seed=0):
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=1, lr=1e-3)
    recipe = Recipe(backbone=backbone, batch_size=32, precision="32", stage2=stage, seed=seed)
    for _ in train(recipe, Dataset.open(toy), folder, recipe_name="toy", device="cpu"):
        pass
    return folder


@pytest.fixture(scope="session")
def runs(toy, tmp_path_factory):
    """Two runs on `toy`; read them only."""
    folder = tmp_path_factory.mktemp("exported") / "runs"
    return [train(toy, folder / "ce"), train(toy, folder / "other", "test_efficientnet", seed=1)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def export(*arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    assert (end.value.code or 0) == code


def by_torch(run, images):
    import torch

    from damcli.training.checkpoint import load_network

    network, _ = load_network(run)
    with torch.no_grad():
        return network(network.as_input(torch.from_numpy(images))).sigmoid().numpy()


def test_an_ensemble_of_runs_scores_as_pytorch_does_and_says_where_it_is_from(runs, toy, tmp_path, capfd):
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


def test_with_no_path_the_newest_run_goes_to_models(runs, toy, tmp_path, monkeypatch, capfd):
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


def test_parity_that_fails_ends_with_6_and_the_old_model_stays(runs, tmp_path, monkeypatch, capfd):
    from damcli.bundle import build

    (tmp_path / "cxr.onnx").write_bytes(b"before")
    monkeypatch.setattr(build, "TOLERANCE", 0.0)
    export(runs[0], "-o", "cxr.onnx", code=6)
    assert "differ from PyTorch's" in capfd.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["cxr.onnx"]
    assert (tmp_path / "cxr.onnx").read_bytes() == b"before"


def test_a_damaged_run_another_contract_and_other_bad_input(runs, toy, make_toy, tmp_path, capfd):
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
