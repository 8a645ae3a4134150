"""Settings in layers: precedence, origins, and what is refused."""

import pytest

from damcli.config import Layer, environment_layer, file_layer, known_keys, resolve, set_layers
from damcli.errors import UsageError
from damcli.recipes import Recipe


def test_later_layers_win_and_every_value_keeps_its_origin():
    layers = [
        Layer("recipe demo", {"seed": 1, "stage2": {"loss": "aucm", "optimizer": "pesg", "lr": 0.1, "gamma": 0.001}}),
        Layer("mine.toml", {"seed": 2, "stage2": {"lr": 0.2}}),
        environment_layer(Recipe, {"DAMCLI_STAGE2__LR": "0.3", "DAMCLI_BATCH_SIZE": "16"}),
        *set_layers(["stage2.lr=0.4"]),
        Layer("--seed", {"seed": 5}),
    ]
    resolved = resolve(Recipe, layers)
    assert resolved.value.seed == 5
    assert resolved.value.stage2.lr == 0.4
    assert resolved.value.stage2.gamma == 0.001
    assert resolved.value.batch_size == 16
    origins = {key: origin for key, _, origin in resolved.lines()}
    assert origins["seed"] == "--seed"
    assert origins["stage2.lr"] == "--set stage2.lr"
    assert origins["stage2.gamma"] == "recipe demo"
    assert origins["batch_size"] == "environment"
    assert origins["backbone"] == "default"


@pytest.mark.parametrize(
    ("layer", "key", "near"),
    [
        (Layer("mine.toml", {"stage2": {"lrr": 0.1}}), "stage2.lrr", "stage2.lr"),
        (Layer("mine.toml", {"bacbone": "x"}), "bacbone", "backbone"),
        (Layer("mine.toml", {"margin": 0.5}), "margin", "margin"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(layer, key, near):
    with pytest.raises(UsageError) as refusal:
        resolve(Recipe, [layer])
    assert key in refusal.value.what
    assert near in refusal.value.fix
    assert refusal.value.where == "mine.toml"


def test_an_unknown_environment_variable_is_refused_and_the_reserved_ones_are_not():
    assert environment_layer(Recipe, {"DAMCLI_MODEL": "x.onnx", "DAMCLI_TEST_DATA": "d", "PATH": "p"}).values == {}
    with pytest.raises(UsageError, match="stage2.lrr"):
        environment_layer(Recipe, {"DAMCLI_STAGE2__LRR": "1"})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"stage2": {"lr": -1.0}}, "stage2.lr"),
        ({"batch_size": "many"}, "batch_size"),
        ({"stage2": {"loss": "aucm", "optimizer": "adam"}}, "stage2"),
        ({"stage2": {"loss": "ce", "optimizer": "pesg"}}, "stage2"),
        ({"stage2": {"loss": "aucm", "optimizer": "pesg", "lr": 0.1, "gamma": 500}}, "stage2"),
    ],
)
def test_a_wrong_value_names_its_key_and_its_layer(values, key):
    with pytest.raises(UsageError) as refusal:
        resolve(Recipe, [Layer("mine.toml", values)])
    assert f"setting {key}" in refusal.value.what
    assert refusal.value.where == "mine.toml"


def test_values_on_the_command_line_are_toml_or_text():
    layers = set_layers(["stage2.decay_epochs=[1, 2]", "pretrained=true", "backbone=densenet121", "description=a=b"])
    assert [layer.values for layer in layers] == [
        {"stage2": {"decay_epochs": [1, 2]}},
        {"pretrained": True},
        {"backbone": "densenet121"},
        {"description": "a=b"},
    ]
    for wrong in ("backbone", "=3"):
        with pytest.raises(UsageError, match="key=value"):
            set_layers([wrong])


def test_a_broken_settings_file_says_where(tmp_path):
    (tmp_path / "mine.toml").write_text("lr = = 3")
    with pytest.raises(UsageError, match="no valid TOML") as refusal:
        file_layer(tmp_path / "mine.toml")
    assert refusal.value.where == tmp_path / "mine.toml"
    with pytest.raises(UsageError, match="no such file"):
        file_layer(tmp_path / "yours.toml")


def test_the_names_of_the_settings_are_frozen():
    """Recipes of other people name these keys: adding one is fine, losing one is not."""
    assert {
        "backbone", "weights", "pretrained", "batch_size", "seed", "precision", "tune_fraction",
        "augment.rotate", "augment.translate", "augment.scale", "stage1.loss", "stage2.loss", "stage2.optimizer",
        "stage2.epochs", "stage2.lr", "stage2.weight_decay", "stage2.momentum", "stage2.divide_lr_by",
        "stage2.decay_epochs", "stage2.decay_steps", "stage2.margin", "stage2.form", "stage2.score", "stage2.gamma",
        "stage2.sampler", "stage2.positives",
    } <= set(known_keys(Recipe))  # fmt: skip
