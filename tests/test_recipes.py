"""Every recipe that travels in the wheel is valid, the paper's hold its values, and what the cards say is understood.

That the small forms train is in tests/training/test_small_forms.py.
"""

import re
import shlex

import pytest
import typer

from damcli import recipes
from damcli.cli import app
from damcli.commands.train import resolve as resolve_training
from damcli.config import Layer, flatten, resolve
from damcli.errors import UsageError
from damcli.recipes import Recipe

NAMES = recipes.names()
FORMS = [form for name in NAMES for form in recipes.forms(name)]
# What a small form may change: the size of the network, of the batch and of the run.
SMALLER = re.compile(
    r"description|backbone|batch_size|precision|tune_fraction|ensemble\.backbones|augment\.(saturation|hue)"
    r"|stage\d\.(epochs|cycle_epochs|decay_epochs|decay_steps)"
)
HEADINGS = [
    "Data", "Recipe", "Published figures", "What differs from", "What has been run here", "Use and limits", "Export",
]  # fmt: skip


def load(name):
    return resolve(Recipe, [recipes.load(str(name))]).value


def values(name):
    return dict(flatten(load(name).model_dump()))


@pytest.mark.parametrize("name", [*NAMES, *FORMS])
def test_every_recipe_resolves_says_what_it_is_and_trains_something(name):
    recipe = load(name)
    assert recipe.description
    assert recipe.stages()
    assert not recipe.pretrained, "nothing is downloaded unless asked"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_ends_in_an_auc_loss_and_has_a_card_and_a_small_form(name):
    assert load(name).stage2.loss == "aucm"
    assert f"{name}/ci" in recipes.forms(name)
    card = recipes.find(name).with_name("README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    assert len(re.findall(r"^## (.+)$", card, re.MULTILINE)) == len(HEADINGS)
    for heading in HEADINGS:
        assert f"\n## {heading}" in card
    overview = (recipes.folders()[0] / "README.md").read_text(encoding="utf-8")
    assert f"({name}/README.md)" in overview


@pytest.mark.parametrize("name", NAMES)
def test_a_small_form_differs_in_size_alone(name):
    full, small = values(name), values(f"{name}/ci")
    changed = {key for key in full if full[key] != small[key]}
    assert [key for key in changed if not SMALLER.fullmatch(key)] == []
    assert small["backbone"] in ("test_resnet", "test_efficientnet", "resnet20_cifar")
    for stage in ("stage1", "stage2"):
        assert min(full[f"{stage}.epochs"], 1) <= small[f"{stage}.epochs"] <= 2
        assert bool(full[f"{stage}.decay_epochs"]) == bool(small[f"{stage}.decay_epochs"])
        assert len(full[f"{stage}.decay_steps"]) == len(small[f"{stage}.decay_steps"])


# ALGORITHM section 8, row by row.
CE = {"stage1.loss": "ce", "stage1.optimizer": "adam", "stage1.weight_decay": 1e-5}
AUC = {
    "stage2.loss": "aucm", "stage2.optimizer": "pesg", "stage2.update": "plain", "stage2.momentum": 0.0,
    "stage2.clip_norm": None, "stage2.form": "prior", "stage2.sampler": "uniform", "stage2.ab_start": 0.0,
    "stage2.nonnegative": True, "stage2.gamma": 1 / 500,
}  # fmt: skip
MEDICAL = {**CE, **AUC, "stage2.score": "sigmoid"}
CHEXPERT = {
    **MEDICAL, "batch_size": 32, "stage1.epochs": 2, "stage1.lr": 1e-5, "stage2.epochs": 2, "stage2.lr": 0.1,
    "stage2.divide_lr_by": 3.0, "stage2.decay_steps": (2000, 8000), "stage2.decay_epochs": (),
    "stage2.weight_decay": 0.0,
}  # fmt: skip
MELANOMA = {
    **MEDICAL, "batch_size": 256, "stage1.epochs": 16, "stage1.lr": 3e-5, "stage1.max_lr": 2.4e-4,
    "stage1.cycle_epochs": 8.0, "stage2.epochs": 35, "stage2.lr": 0.01, "stage2.divide_lr_by": 2.0,
    "stage2.decay_epochs": (10, 20, 30), "augment.flip": True,
}  # fmt: skip
DDSM = {
    **MEDICAL, "backbone": "densenet121", "stage1.epochs": 5, "stage2.epochs": 1, "stage2.weight_decay": 0.0,
    "stage2.decay_epochs": (), "stage2.decay_steps": (), "tune_fraction": 0.1,
}  # fmt: skip
BENCHMARK = {
    **AUC, "activation": "elu", "stage1.epochs": 0, "stage2.epochs": 100, "stage2.lr": 0.1,
    "stage2.decay_epochs": (50, 75), "stage2.weight_decay": 1e-4, "stage2.score": "bsn", "tune_fraction": 0.1,
}  # fmt: skip
NETWORKS = ("densenet121", "densenet161", "densenet169", "densenet201", "inception_resnet_v2")


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("chexpert", {**CHEXPERT, "backbone": "densenet121"}),
        ("chexpert-ensemble", {**CHEXPERT, "ensemble.backbones": NETWORKS, "ensemble.per_finding": True}),
        ("melanoma", {**MELANOMA, "backbone": "tf_efficientnet_b5"}),
        ("melanoma-b3", {**MELANOMA, "backbone": "tf_efficientnet_b3"}),
        ("melanoma-b6", {**MELANOMA, "backbone": "tf_efficientnet_b6"}),
        ("melanoma/metadata", {**MELANOMA, "metadata.columns": ("age", "sex", "site"), "metadata.weight": 0.5}),
        ("ddsm", {**DDSM, "batch_size": 32}),
        ("pcam", {**DDSM, "batch_size": 64}),
        ("benchmark", {**BENCHMARK, "backbone": "resnet20_cifar", "batch_size": 128}),
        ("benchmark-densenet121", {**BENCHMARK, "backbone": "densenet121", "batch_size": 128}),
        ("benchmark-stl10", {**BENCHMARK, "backbone": "resnet20_cifar", "batch_size": 32}),
    ],
)
def test_the_papers_recipes_hold_its_values(name, paper):
    found = values(name)
    assert {key: found[key] for key in paper} == paper


@pytest.mark.parametrize(
    ("name", "lr", "grid"),
    [
        ("ddsm", "stage1.lr", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]),
        ("ddsm", "stage2.lr", [1e-1, 1e-2, 1e-3]),
        ("ddsm", "stage2.margin", [0.3, 0.5, 0.7, 1.0]),
        ("melanoma", "stage2.margin", [0.3, 0.5, 0.7, 1.0]),
    ],
)
def test_what_the_paper_leaves_to_a_grid_is_taken_from_it(name, lr, grid):
    assert values(name)[lr] in grid


@pytest.mark.parametrize(
    ("name", "libauc"),
    [
        ("benchmark-libauc", ("resnet20_cifar", 128, 100, 0.1, (50, 75), 3e-3, 1e-4, "balanced")),
        ("chexpert-libauc", ("densenet121", 32, 2, 0.05, (1,), 2e-3, 1e-5, "uniform")),
        ("chexpert-libauc-multi", ("densenet121", 32, 2, 0.1, (1,), 2e-3, 1e-5, "uniform")),
        ("melanoma-libauc", ("densenet121", 64, 16, 0.1, (8, 12), 2e-3, 1e-5, "uniform")),
        ("melanoma-libauc/resnet18", ("resnet18", 128, 60, 0.1, (30, 45), 3e-3, 1e-5, "balanced")),
        ("ddsm-libauc", ("densenet121", 32, 60, 0.1, (30, 45), 3e-3, 1e-5, "balanced")),
    ],
)
def test_libaucs_recipes_hold_its_values(name, libauc):
    recipe = load(name)
    stage = recipe.stage2
    schedule = (stage.epochs, stage.lr, stage.decay_epochs, stage.gamma, stage.weight_decay, stage.sampler)
    assert (recipe.backbone, recipe.batch_size, *schedule) == libauc
    assert (stage.update, stage.momentum, stage.margin, stage.divide_lr_by) == ("libauc", 0.9, 1.0, 10.0)
    assert (stage.score, stage.positives if stage.sampler == "balanced" else 0.2) == ("sigmoid", 0.2)


@pytest.mark.parametrize("name", ["melanoma", "ddsm", "pcam"])
@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_the_baselines_beside_a_recipe_are_its_first_stage_alone(name, loss):
    full, baseline = load(name), load(f"{name}/{loss}")
    assert baseline.stages() == [(1, full.stage1.model_copy(update={"loss": loss}))]
    same = ("batch_size", "augment", "tune_fraction", "backbone")
    assert [getattr(baseline, key) for key in same] == [getattr(full, key) for key in same]


def lines(command):
    """Every line of a card that starts with `command`, a backslash at its end taken as the shell does."""
    for name in NAMES:
        card = recipes.find(name).with_name("README.md").read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(rf"^    (damcli {command} .*)$", card, re.MULTILINE):
            yield pytest.param(name, line, id=line)


@pytest.mark.parametrize(
    ("name", "line"),
    [line for command in ("prepare", "train", "evaluate", "reproduce", "export") for line in lines(command)],
)
def test_what_the_cards_say_to_type_is_understood(name, line):
    words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    while words[0] in getattr(group, "commands", {}):
        group = group.commands[words.pop(0)]
    given = group.make_context("damcli", words).params
    if line.startswith("damcli train"):
        assert given["recipe"].split("/")[0] == name
        recipe = resolve_training(given["recipe"], assignments=given["assignments"] or ()).value
        if given["tune"]:
            from damcli.training import tuning

            assert all(len(axis.values) > 2 for axis in tuning.parse(given["tune"], recipe))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_how_to_prepare_train_and_export(name):
    card = recipes.find(name).with_name("README.md").read_text(encoding="utf-8")
    for command in ("damcli prepare ", f"--recipe {name}", "damcli export "):
        assert command in card


def test_a_recipe_is_found_by_name_form_file_and_folder(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.toml").write_text('extends = "melanoma/focal"\nseed = 3\n')
    (mine / "fast.toml").write_text('extends = "recipe"\nbatch_size = 8\n')
    monkeypatch.chdir(tmp_path)
    assert recipes.find("melanoma/focal").parent == recipes.find("melanoma").parent
    assert load("mine") == load("mine/recipe.toml") == load(mine)
    assert (load("mine").stage1.loss, load("mine").seed) == ("focal", 3)
    assert load("mine/fast") == load(mine / "fast.toml") == load("mine").model_copy(update={"batch_size": 8})
    called = {name: recipes.load(name).origin for name in ("mine", "mine/recipe.toml", "mine/fast.toml", "demo/ci")}
    assert list(called.values()) == ["recipe mine", "recipe mine", "recipe mine/fast", "recipe demo/ci"]


def test_a_folder_of_ones_own_does_not_hide_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "recipe.toml").write_text("batch_size = 7")
    monkeypatch.chdir(tmp_path)
    assert load("demo").batch_size == 32
    assert load("./demo/recipe.toml").batch_size == 7


def test_a_file_may_extend_a_recipe_and_only_what_differs_changes(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "chexpert-small"\n[stage2]\nmargin = 0.5\n')
    mine, base = load(tmp_path / "mine.toml"), load("chexpert-small")
    assert mine.stage2.margin == 0.5
    assert mine.model_copy(update={"stage2": base.stage2}) == base


def test_a_circle_of_recipes_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b"')
    (tmp_path / "b.toml").write_text('extends = "./a.toml"')
    with pytest.raises(UsageError, match="circle: a → b → a"):
        recipes.load(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("name", "nearest"), [("chexprt", "chexpert"), ("melanoma/focl", "melanoma/focal"), ("nothing like it", None)]
)
def test_an_unknown_recipe_lists_the_known_ones_with_the_nearest(name, nearest):
    with pytest.raises(UsageError, match="there is no recipe") as refusal:
        recipes.load(name)
    assert ", ".join(NAMES) in refusal.value.fix
    assert refusal.value.fix.startswith(f"did you mean {nearest}?" if nearest else "choose one of")


@pytest.mark.parametrize("name", ["absent.toml", "chexpert/absent.toml", "", ".", ".."])
def test_what_is_no_recipe_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no (such )?recipe"):
        recipes.load(name)


def test_extends_takes_a_name(tmp_path):
    (tmp_path / "mine.toml").write_text("extends = ['demo', 'chexpert']")
    with pytest.raises(UsageError, match="extends takes the name"):
        recipes.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_the_baselines_of_the_benchmarks_are_the_papers(loss):
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
