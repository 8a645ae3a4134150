"""Every recipe's small form (`NAME/ci`) trains to its end; some in the default suite, all in the slow one."""

import pytest

from damcli import recipes
from damcli.config import resolve
from damcli.data.store import Dataset
from damcli.recipes import Recipe
from damcli.training import group, loop, members
from damcli.training.events import Boundary, EpochDone, Finished, MembersFinished

QUICK = ("chexpert", "chexpert-libauc", "melanoma", "ddsm-libauc")
ENSEMBLE = "chexpert-ensemble"


@pytest.fixture(scope="module")
def small(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("small") / "dataset", scans=96))


def form(name):
    return resolve(Recipe, [recipes.load(f"{name}/ci")]).value


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in recipes.names()
        if name != ENSEMBLE
    ],
)
def test_every_epoch_of_its_stages(name, small, tmp_path):
    recipe = form(name)
    if not name.startswith(("chexpert", "demo")):  # what these are for has one finding
        one = {f"stage{number}": stage.model_copy(update={"findings": ("Edema",)}) for number, stage in recipe.stages()}
        recipe = recipe.model_copy(update=one)
    events = list(loop.train(recipe, small, tmp_path / "run", device="cpu"))
    epochs = [(event.stage, event.epoch) for event in events if isinstance(event, EpochDone)]
    assert epochs == [(number, e + 1) for number, stage in recipe.stages() for e in range(stage.epochs)]
    divided = [event for event in events if isinstance(event, Boundary) and event.next_lr is not None]
    assert len(divided) == sum(len(stage.decay_epochs) + len(stage.decay_steps) for _, stage in recipe.stages())
    assert isinstance(events[-1], Finished)
    assert 0 <= events[-1].mean_auroc <= 1


@pytest.mark.slow
def test_the_ensemble_is_a_second_stage_of_each_network_for_each_finding(small, tmp_path):
    recipe = form(ENSEMBLE)
    made = group.describe(tmp_path / "run", "ensemble", members.of_ensemble(recipe, small), recipe, small)
    group.create(made)
    events = list(members.train(made, small, device="cpu"))
    assert isinstance(events[-1], MembersFinished)
    results = [member for member in group.read(tmp_path / "run").group.members if not member.helper]
    assert [(m.settings["backbone"], m.settings["stage2.findings"], m.status) for m in results] == [
        (backbone, [finding], "done") for backbone in recipe.ensemble.backbones for finding in ("Edema", "Fracture")
    ]
