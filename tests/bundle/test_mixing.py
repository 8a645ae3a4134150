"""Metadata in the graph: each member takes its own part, what is missing or unseen included."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper

from damcli.bundle import build
from damcli.bundle.build import Mixed
from damcli.bundle.runtime import Model
from damcli.data import metadata
from damcli.deepauc.metadata import MetadataNetwork
from damcli.errors import DataError, UsageError

TABLE = pl.DataFrame(
    {
        "age": [30.0, None, 71.0, 45.0, 12.0, None],
        "sex": ["f", "m", None, "other", "m", None],
        "site": ["arm", "leg", "head", "arm", "?", None],
    }
)


def mixed(columns, findings, weight, seed, rows=slice(None)):
    encoding = metadata.fit(TABLE[rows], columns)
    return Mixed(MetadataNetwork(encoding.width, findings, seed).eval(), encoding, weight)


def by_torch(member, images):
    with torch.no_grad():
        inputs = member.network.as_input(torch.from_numpy(images[..., 0]))
        scores = member.network(inputs).sigmoid()
        if part := member.metadata:
            own = part.network(torch.from_numpy(part.encoding.encode(TABLE))).sigmoid()
            scores = (1 - part.weight) * scores + part.weight * own
    return scores.numpy()


@pytest.fixture(scope="module")
def members(make_member):
    """One with age and sex, one without metadata, one with sex and site of other scans, for which "m" is unseen."""
    first, plain, last = (make_member(["Edema", "Fracture"], seed=seed) for seed in range(3))
    return [
        dataclasses.replace(first, metadata=mixed(["age", "sex"], 2, 0.5, 5)),
        plain,
        dataclasses.replace(last, metadata=mixed(["sex", "site"], 2, 0.2, 6, slice(2, 4))),
    ]


@pytest.fixture(scope="module")
def exported(members, draw, tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    return path, build.export(members, path, draw(6), metadata=TABLE).parity


def test_each_member_mixes_in_its_own_metadata(exported, members, draw):
    path, parity = exported
    model, images = Model.open(path, "cpu"), draw(6)
    assert model.info.encoding.names == ["age", "sex", "sex", "site"]
    expected = np.mean([by_torch(member, images) for member in members], axis=0)
    np.testing.assert_allclose(model.score(images, model.info.encoding.encode(TABLE)), expected, atol=1e-5)
    assert parity.max_difference < 1e-5
    assert [member.metadata and member.metadata.weight for member in model.info.members] == [0.5, None, 0.2]


def test_the_card_says_what_the_model_takes_beside_images(exported):
    card = exported[0].with_name("mixed.onnx.md").read_text(encoding="utf-8")
    assert "- `metadata`: float32 (N, 14), age, sex, site: " in card
    assert "0.5 in run-0, 0.2 in run-2" in card


def test_without_metadata_all_is_missing(exported, draw):
    model, images = Model.open(exported[0], "cpu"), draw(6)
    missing = model.info.encoding.encode(TABLE.clear(6))
    np.testing.assert_array_equal(model.score(images), model.score(images, missing))
    assert np.abs(model.score(images) - model.score(images, model.info.encoding.encode(TABLE))).max() > 1e-4


def test_metadata_of_another_shape_or_type_are_our_mistake(exported, model_file, draw):
    model = Model.open(exported[0], "cpu")
    for rows in (np.zeros((6, 3), np.float32), np.zeros((6, model.info.encoding.width)), np.zeros((5, 4), np.float32)):
        with pytest.raises(ValueError, match="metadata must be float32"):
            model.score(draw(6), rows)
    with pytest.raises(ValueError, match="takes no metadata"):
        Model.open(model_file, "cpu").score(draw(6), np.zeros((6, 2), np.float32))


def wider(model):
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value += 1


def no_metadata(model):
    del model.graph.input[1]


def whole_numbers(model):
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64


def third_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N"]))


def infinite_mean(model):
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"mean":', '"mean":Infinity,"was":', 1)


def weight_above_one(model):
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"weight":0.5', '"weight":1.5')


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (wider, "inputs or outputs"),
        (no_metadata, "inputs or outputs"),
        (whole_numbers, "inputs or outputs"),
        (third_input, "inputs or outputs"),
        (infinite_mean, "metadata are damaged"),
        (weight_above_one, "metadata are damaged"),
    ],
)
def test_a_hostile_model_is_refused(exported, edited, tmp_path, edit, message):
    path = edited(exported[0], tmp_path / "hostile.onnx", edit)
    with pytest.raises(DataError, match=message):
        Model.open(path, "cpu")


def test_one_column_of_two_kinds_is_refused(make_member, draw, tmp_path):
    text = metadata.fit(pl.DataFrame({"age": ["young", "old"]}), ["age"])
    parts = [mixed(["age"], 1, 0.5, 0), Mixed(MetadataNetwork(text.width, 1, 0), text, 0.5)]
    members = [dataclasses.replace(make_member(["Edema"]), metadata=part) for part in parts]
    with pytest.raises(UsageError, match="the column 'age' is of numbers to one, of text to another"):
        build.export(members, tmp_path / "m.onnx", draw(2))
