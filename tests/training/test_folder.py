"""The run folder: what is written can be read back, names its origins, and tells nothing of who and where."""

import getpass
import json
import socket
import tomllib

import pytest
import torch

from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.recipes import Recipe
from damcli.training import folder, plan


@pytest.fixture
def run(toy, recipe, tmp_path):
    dataset = Dataset.open(toy)
    settings = recipe(description='a "quoted" \\ name\nin two lines: µ')
    planned = plan.make(settings, dataset)
    run = tmp_path / "run"
    run.mkdir()
    origins = {"stage2.lr": "--set stage2.lr"}
    folder.create(run, settings, origins, "toy", dataset, planned, None, torch.device("cpu"), {})
    return run


def test_every_setting_is_there_with_its_origin_and_comes_back(run, recipe, toy):
    text = (run / "config.toml").read_text(encoding="utf-8")
    assert "lr = 0.1  # --set stage2.lr" in text
    assert "# weights is not set" in text
    written = {
        key for key, value in Recipe.model_validate(tomllib.loads(text)).model_dump().items() if value is not None
    }
    assert written == set(Recipe.model_fields) - {"weights", "activation", "patience"}
    info = folder.read_run(run)
    assert info.recipe == recipe(description='a "quoted" \\ name\nin two lines: µ')
    assert info.facts.recipe_name == "toy"
    assert info.dataset.resolve() == toy.resolve()
    assert info.facts.selection == ("tune",)
    assert len(info.tune_ids) == len(set(info.tune_ids)) > 0


def test_the_environment_names_versions_but_neither_host_nor_user(run):
    text = (run / "environment.json").read_text()
    known = json.loads(text)
    assert known["packages"]["torch"] == torch.__version__.split("+")[0]
    assert known["device"] == "cpu"
    keys = set(known)
    assert not keys & {"host", "hostname", "user"}
    for secret in (socket.gethostname(), getpass.getuser()):
        assert secret not in [value for value in known.values() if isinstance(value, str)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "config.toml").unlink(), "no run"),
        (lambda run: (run / "run.json").unlink(), "run.json is missing"),
        (lambda run: (run / "run.json").write_text("{}"), "format None"),
        (lambda run: (run / "run.json").write_text('{"schema_version": 1}'), "damaged"),
        (lambda run: (run / "config.toml").write_text('batch_size = "many"'), "damaged"),
    ],
)
def test_a_damaged_run_is_refused(run, change, message):
    change(run)
    with pytest.raises(DataError, match=message):
        folder.read_run(run)


def test_a_run_whose_settings_were_changed_is_not_resumed(run, toy):
    folder.read_run(run).check_resumable(Dataset.open(toy))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.1", "lr = 0.2"))
    with pytest.raises(DataError, match="settings were changed"):
        folder.read_run(run).check_resumable(Dataset.open(toy))


def test_a_damaged_tune_part_is_refused(run):
    data = bytearray((run / "tune.parquet").read_bytes())
    (run / "tune.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"tune\.parquet"):
        folder.read_run(run).tune_ids  # noqa: B018


def test_only_an_empty_folder_or_the_start_of_a_killed_run_is_taken(run, tmp_path):
    with pytest.raises(UsageError, match="holds a run"):
        folder.refuse_used(run)
    (run / "config.toml").unlink()
    (run / ".config.123.tmp.toml").write_text("half")
    folder.refuse_used(run)
    (run / "model.pth").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        folder.refuse_used(run)
    with pytest.raises(UsageError, match="a file"):
        folder.refuse_used(run / "model.pth")
    folder.refuse_used(tmp_path / "new")
