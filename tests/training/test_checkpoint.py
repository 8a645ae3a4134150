"""Checkpoints: what is put in comes out, layout and all; a kill between any two steps of writing leaves a whole one."""

import shutil

import pytest
import torch

from damcli import files
from damcli.deepauc.network import Classifier
from damcli.errors import DataError, MachineError
from damcli.training import checkpoint
from damcli.training.checkpoint import Best, Progress

PROGRESS = Progress(stage=2, epoch=1, step=3, steps=11, loss_sum=0.1 + 0.2, best=Best(epoch=1, auroc=0.75))
WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.counter": torch.tensor(7)}


def test_the_state_of_an_optimizer_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.rand(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "loss": {}}
    checkpoint.save(tmp_path, "last", PROGRESS, network.state_dict(), state)

    assert checkpoint.read_progress(tmp_path) == PROGRESS
    weights = checkpoint.load_weights(tmp_path, "last")
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    loaded = checkpoint.load_state(tmp_path)["optimizer"]
    assert loaded["param_groups"][0]["lr"] == 0.1
    for number, before in state["optimizer"]["state"].items():
        for name, value in before.items():
            assert torch.equal(loaded["state"][number][name], value)
            assert loaded["state"][number][name].stride() == value.stride()
    optimizer.load_state_dict(loaded)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    assert checkpoint.read_progress(tmp_path) is None
    with pytest.raises(DataError, match="no best checkpoint yet"):
        checkpoint.load_weights(tmp_path, "best")


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {"x": torch.ones(2)})
    (tmp_path / "checkpoints" / "last" / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        checkpoint.load_weights(tmp_path, "last")
        checkpoint.load_state(tmp_path)


def test_weights_of_another_network_do_not_fit(tmp_path):
    checkpoint.save(tmp_path, "best", PROGRESS, Classifier("test_resnet", 2).state_dict(), {})
    checkpoint.restore(Classifier("test_resnet", 2), tmp_path, "best")
    with pytest.raises(DataError, match="not one of test_resnet with 3 findings"):
        checkpoint.restore(Classifier("test_resnet", 3), tmp_path, "best")


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 99)
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})
    monkeypatch.undo()
    with pytest.raises(DataError, match="format 99"):
        checkpoint.read_progress(tmp_path)


def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})

    shutil.copytree(folder / "last", folder / ".last.new")  # killed while it wrote the new one
    (folder / ".last.new" / "state.json").write_text("{")
    assert checkpoint.read_progress(tmp_path) == PROGRESS

    (folder / "last").rename(folder / ".last.old")  # killed between the two renames
    assert checkpoint.read_progress(tmp_path) == PROGRESS
    assert checkpoint.load_weights(tmp_path, "last").keys() == WEIGHTS.keys()

    later = PROGRESS.model_copy(update={"step": 4})
    checkpoint.save(tmp_path, "last", later, WEIGHTS, {})
    assert checkpoint.read_progress(tmp_path) == later

    shutil.copytree(folder / "last", folder / ".last.old")  # killed before the old one was gone
    assert checkpoint.read_progress(tmp_path) == later
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})
    assert checkpoint.read_progress(tmp_path) == PROGRESS
    assert sorted(entry.name for entry in folder.iterdir()) == ["last", "previous"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, name, damage):
    earlier = PROGRESS.model_copy(update={"step": 2})
    checkpoint.save(tmp_path, "last", earlier, WEIGHTS, {"optimizer": {"lr": torch.tensor(1.0)}}, {"torch": "1"})
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {"optimizer": {"lr": torch.tensor(2.0)}})
    assert checkpoint.latest(tmp_path) == checkpoint.Latest("last", PROGRESS, {}, None)
    file = tmp_path / "checkpoints" / "last" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "flip": lambda: file.write_bytes(data),
        "cut": lambda: file.write_bytes(data[: len(data) // 2]),
        "remove": file.unlink,
    }[damage]()
    found = checkpoint.latest(tmp_path)
    assert (found.which, found.progress, found.made_on) == ("previous", earlier, {"torch": "1"})
    assert "last" in found.doubt
    assert name in found.doubt

    checkpoint.settle(tmp_path, found.which)
    assert checkpoint.latest(tmp_path) == checkpoint.Latest("last", earlier, {"torch": "1"}, None)
    assert checkpoint.load_state(tmp_path)["optimizer"]["lr"] == 1
    # The damaged one does not become the one before of the next.
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})
    (tmp_path / "checkpoints" / "last" / name).unlink()
    assert checkpoint.latest(tmp_path).progress == earlier


def test_two_damaged_checkpoints_are_refused_by_the_name_of_the_last(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for _ in range(2):
        checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})
    for name in ("last", "previous"):
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"damaged: model\.safetensors has changed") as raised:
        checkpoint.latest(tmp_path)
    assert raised.value.where == tmp_path / "checkpoints" / "last" / "model.safetensors"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "last", PROGRESS, WEIGHTS, {})

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(MachineError, match="no space"):
        checkpoint.save(tmp_path, "last", Progress(stage=1), WEIGHTS, {})
    assert checkpoint.read_progress(tmp_path) == PROGRESS
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["last"]
