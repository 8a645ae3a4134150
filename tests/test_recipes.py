"""Every recipe that travels in the wheel is valid, and `extends` lays one over another."""

import pytest

from damcli import recipes
from damcli.config import Layer, resolve
from damcli.errors import UsageError
from damcli.recipes import Recipe


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_resolves_and_says_what_it_is(name):
    recipe = resolve(Recipe, [recipes.load(name)]).value
    assert recipe.description
    assert recipe.stage2.loss in ("aucm", "aucs")
    assert recipe.stage2.optimizer == "pesg"


def test_a_file_may_extend_a_recipe_and_only_what_differs_changes(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "chexpert-small"\n[stage2]\nmargin = 0.5\n')
    mine = resolve(Recipe, [recipes.load(str(tmp_path / "mine.toml"))]).value
    base = resolve(Recipe, [recipes.load("chexpert-small")]).value
    assert mine.stage2.margin == 0.5
    assert mine.model_copy(update={"stage2": base.stage2}) == base


def test_a_circle_of_recipes_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b"')
    (tmp_path / "b.toml").write_text('extends = "a"')
    with pytest.raises(UsageError, match="circle"):
        recipes.load(str(tmp_path / "a.toml"))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UsageError) as refusal:
        recipes.load("chexprt")
    assert "chexpert-small" in refusal.value.fix


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_the_baselines_of_the_benchmarks_are_the_papers(loss):
    from damcli.commands.train import resolve as resolve_training

    [(number, stage)] = resolve_training("benchmark", loss).value.stages()
    assert (number, stage.loss, stage.optimizer) == (1, loss, "sgd")
    assert (stage.lr, stage.weight_decay, stage.epochs, stage.decay_epochs) == (0.1, 1e-4, 100, (50, 75))


PESG = {"loss": "aucm", "optimizer": "pesg"}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({**PESG, "update": "adam", "momentum": 0.9}, "momentum is not for Adam"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is not for Adam"),
        ({**PESG, "update": "libauc", "clip_norm": 1.0}, "clip_norm is not for update = libauc"),
        ({"optimizer": "adam", "clip_norm": 1.0}, "clip_norm is PESG's"),
        ({"optimizer": "sgd", "clip_norm": 1.0}, "clip_norm is PESG's"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused_before_anything_runs(stage, words):
    with pytest.raises(UsageError, match=f"stage2: .*{words}"):
        resolve(Recipe, [Layer("test", {"stage2": stage})])


@pytest.mark.parametrize(
    "stage",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {**PESG, "momentum": 0.9, "clip_norm": 1.0},
        {**PESG, "update": "libauc", "momentum": 0.9},
        {**PESG, "update": "adam", "clip_norm": 1.0},
    ],
)
def test_what_it_can_do_is_not(stage):
    assert resolve(Recipe, [Layer("test", {"stage2": stage})]).value.stage2.optimizer == stage["optimizer"]
