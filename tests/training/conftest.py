"""A recipe that is small enough for a test, and a way to run it to its end."""

import pytest

from damcli.config import Layer, resolve
from damcli.recipes import Recipe


@pytest.fixture
def recipe():
    """Returns `recipe(**settings)`: CE, then AUC-M, on a tiny network."""

    def make(stage1=(), stage2=(), **settings):
        ce = {"loss": "ce", "optimizer": "adam", "epochs": 2, "lr": 2e-3}
        auc = {"loss": "aucm", "optimizer": "pesg", "epochs": 2, "lr": 0.1, "sampler": "balanced", "decay_epochs": [1]}
        small = {"backbone": "test_resnet", "batch_size": 16, "precision": "32"}
        given = {**small, **settings, "stage1": {**ce, **dict(stage1)}, "stage2": {**auc, **dict(stage2)}}
        return resolve(Recipe, [Layer("test", given)]).value

    return make
