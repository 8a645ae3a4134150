"""Pictures are drawn small here, since how they look is tested in `report`; and runs, trained and exported."""

import pytest


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("damcli.report.plots.DPI", 20)


@pytest.fixture(scope="session")
def train():
    """Returns `train(dataset, folder, …)`: a run of a tiny network, in that folder."""
    return _train


@pytest.fixture(scope="session")
def export():
    """Returns `export(*arguments, code=0)`: that command line in this process, ended with this code."""
    return _export


@pytest.fixture(scope="session")
def by_torch():
    """Returns `by_torch(run, images)`: the scores of a run's best network."""
    return _by_torch


def _train(dataset, folder, backbone="test_resnet", seed=0, fold=None, epochs=1, **settings):
    from damcli.data.store import Dataset
    from damcli.recipes import Recipe, Stage
    from damcli.training.loop import train

    stage = Stage(loss="ce", optimizer="adam", epochs=epochs, lr=1e-3)
    recipe = Recipe(backbone=backbone, batch_size=32, precision="32", stage2=stage, seed=seed, **settings)
    for _ in train(recipe, Dataset.open(dataset), folder, recipe_name="toy", device="cpu", fold=fold):
        pass
    return folder


def _export(*arguments, code=0):
    from damcli.cli import main

    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    assert (end.value.code or 0) == code


def _by_torch(run, images):
    import torch

    from damcli.training.checkpoint import load_network

    network, _ = load_network(run)
    with torch.no_grad():
        return network(network.as_input(torch.from_numpy(images))).sigmoid().numpy()
