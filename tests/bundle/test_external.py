"""Models of two files: the second holds the weights, is verified like the first, and both are replaced as one."""

import json
import os
import re
import shutil

import numpy as np
import onnx
import pytest

from damcli.bundle import container, external
from damcli.bundle.runtime import Model
from damcli.errors import DataError


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch):
    monkeypatch.setattr(container, "MAX_INLINE", 10_000)


@pytest.fixture
def pair(hand_made, tmp_path):
    """A model of two files in a folder of its own: (model, weights)."""
    path = tmp_path / "models" / "m.onnx"
    info = container.write(path, *hand_made())
    return path, path.parent / info.external.file


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def scores(path):
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), dtype=np.uint8)
    return Model.open(path, "cpu").score(images)


def test_beyond_the_limit_weights_go_into_one_file_beside_and_give_the_same_scores(hand_made, tmp_path, monkeypatch):
    info = container.write(tmp_path / "two.onnx", *hand_made())
    sidecar = tmp_path / info.external.file
    assert re.fullmatch(r"two\.onnx\.[0-9a-f]{8}\.data", sidecar.name)
    assert names(tmp_path) == ["two.onnx", sidecar.name]
    opened = container.read(tmp_path / "two.onnx")
    assert (opened.info, opened.external) == (info, sidecar)
    monkeypatch.setattr(container, "MAX_INLINE", 1e9)
    container.write(tmp_path / "one.onnx", *hand_made())
    np.testing.assert_array_equal(scores(tmp_path / "two.onnx"), scores(tmp_path / "one.onnx"))
    onnx.checker.check_model(str(tmp_path / "two.onnx"), full_check=True)


def test_info_models_says_that_the_second_file_is_missing(pair, monkeypatch, run_here):
    monkeypatch.chdir(pair[0].parent.parent)
    pair[1].unlink()
    code, out, _ = run_here("info", "models", "--json")
    assert code == 0
    [model] = json.loads(out)["models"]
    assert model["model"] == "models/m.onnx"
    assert f"its weights are in a second file, {pair[1].name!r}" in model["problem"]


def test_weights_begin_on_pages_and_small_ones_stay(pair):
    model = onnx.load(pair[0], load_external_data=False)
    [first, *rest] = [tensor for graph in external.graphs(model.graph) for tensor in graph.initializer]
    places = {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in (first, *rest)}
    length = 16 * 16 * 24 * 4
    assert places["first"] == {"location": pair[1].name, "offset": "0", "length": str(length)}
    assert int(places["inner"]["offset"]) == -(-length // 4096) * 4096
    assert [name for name, place in places.items() if not place] == ["last", "flat", "rows"]


@pytest.mark.parametrize(("more", "files"), [(0, 1), (-1, 2)])
def test_the_limit_itself_still_fits(hand_made, tmp_path, monkeypatch, more, files):
    model, info = hand_made()
    monkeypatch.setattr(container, "MAX_INLINE", sum(length for _, length in external.movable(model)) + more)
    container.write(tmp_path / "m.onnx", model, info)
    assert len(names(tmp_path)) == files


def test_weights_cut_off_at_any_border_or_longer_are_refused(pair):
    path, weights = pair
    whole = weights.read_bytes()
    for length in (0, 1, 4095, 4096, 24575, 24576, 24577, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged or that of another model"):
            container.read(path)
    weights.write_bytes(whole + b"\x00")
    with pytest.raises(DataError, match="damaged or that of another model"):
        container.read(path)


def test_a_flipped_bit_in_the_weights_is_found(hand_made, tmp_path):
    model, info = hand_made()
    # 24,576 bytes are whole pages: a second weight of another length makes a gap to damage.
    model.graph.initializer.insert(1, onnx.numpy_helper.from_array(np.ones(300, np.float32), "gap"))
    path = tmp_path / "m.onnx"
    weights = tmp_path / container.write(path, model, info).external.file
    whole = weights.read_bytes()
    assert 24576 + 1200 < 28672 < len(whole)
    with weights.open("rb+", buffering=0) as file:
        for place in (0, 4097, 24575, 24576, 24576 + 1200, 28671, 28672, len(whole) - 1):
            file.seek(place)
            file.write(bytes([whole[place] ^ 1]))
            with pytest.raises(DataError, match="damaged or that of another model"):
                container.read(path)
            file.seek(place)
            file.write(whole[place : place + 1])
    assert container.read(path).external == weights


def test_weights_swapped_with_those_of_another_model_are_refused(pair, hand_made):
    path, weights = pair
    other = path.parent / container.write(path.with_name("o.onnx"), *hand_made(1)).external.file
    kept = weights.read_bytes()
    weights.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    for model in (path, path.with_name("o.onnx")):
        with pytest.raises(DataError, match="damaged or that of another model") as caught:
            container.read(model)
        assert caught.value.where == model


def test_a_renamed_model_still_finds_its_weights(pair):
    path, weights = pair
    renamed = path.rename(path.with_name("best.onnx"))
    assert container.read(renamed).external == weights
    assert scores(renamed).shape == (7, 2)


@pytest.mark.parametrize("change", ["moved", "renamed", "folder", "pipe", "loop"])
def test_weights_that_are_not_there_are_named(pair, tmp_path, change):
    path, weights = pair
    kept = weights.rename(tmp_path / "kept")
    if change == "moved":
        path = path.rename(tmp_path / "m.onnx")
        kept.rename(weights)
    elif change == "renamed":
        kept.rename(weights.with_name("m.data"))
    elif change == "folder":
        weights.mkdir()
    elif change == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to(weights.name)
    with pytest.raises(DataError, match=re.escape(weights.name)) as caught:
        container.read(path)
    assert "half of this model is missing" in caught.value.what
    assert caught.value.fix == "put that file into the folder of the model, under that name"


def test_links(pair, tmp_path):
    path, weights = pair
    (tmp_path / "current.onnx").symlink_to(path)
    (tmp_path / "alias").symlink_to(path.parent)
    for name in ("current.onnx", "alias/m.onnx"):
        assert container.read(tmp_path / name).external == weights
        np.testing.assert_array_equal(scores(tmp_path / name), scores(path))
    weights.rename(weights.with_name("real"))
    weights.symlink_to("real")
    assert container.read(path).external == weights
    weights.with_name("real").rename(tmp_path / "real")
    for target in (tmp_path / "real", "../real"):
        weights.unlink()
        weights.symlink_to(target)
        with pytest.raises(DataError, match="outside its folder, behind a link"):
            container.read(path)


def reference(tensor, **values):
    del tensor.external_data[:]
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)


NAME = "the weights' own name"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "/etc/passwd", "offset": "0", "length": "24576"}, "another file"),
        ({"location": "../m.data", "offset": "0", "length": "24576"}, "another file"),
        ({"location": f"./{NAME}", "offset": "0", "length": "24576"}, "another file"),
        ({"location": "", "offset": "0", "length": "24576"}, "another file"),
        ({"location": NAME, "offset": "1", "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": "0", "length": "24572"}, "do not lie in their file"),
        ({"location": NAME, "offset": "0", "length": "99999"}, "do not lie in their file"),
        ({"location": NAME, "offset": "-4096", "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": str(2**64), "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": "0x0", "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": "", "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": "٠", "length": "24576"}, "do not lie in their file"),
        ({"location": NAME, "offset": "0"}, "never does"),
        ({"location": NAME, "offset": "0", "length": "24576", "checksum": "x"}, "never does"),
        ({}, "never does"),
    ],
)
def test_weights_placed_elsewhere_are_refused(pair, edited, place, message):
    path, weights = pair
    if "location" in place:
        place = place | {"location": place["location"].replace(NAME, weights.name)}
    edited(path, path, lambda model: reference(model.graph.initializer[0], **place))
    with pytest.raises(DataError, match=message):
        container.read(path)


def twice(model):
    """The second weight lies where the first does."""
    [inner] = [t for graph in external.graphs(model.graph) for t in graph.initializer if t.name == "inner"]
    inner.external_data[1].value = "0"


def missing(model):
    """The file holds more than the graph takes."""
    del model.graph.initializer[0]


def constant(model):
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.extend(model.graph.initializer[0].external_data)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def strings(model):
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING


def larger(model):
    model.graph.initializer[0].dims[0] = 2**40


def negative(model):
    model.graph.initializer[0].dims[0] = -256


def many_sides(model):
    model.graph.initializer[0].dims.extend([2**62] * 1_000_000)  # a product of which takes hours


def no_text(model):
    model.ParseFromString(model.SerializeToString().replace(b"24576", b"2\xff576"))


def unsaid(model):
    entry = model.metadata_props[0]
    entry.value = json.dumps(json.loads(entry.value) | {"external": None})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (twice, "do not lie in their file"),
        (missing, "do not lie in their file"),
        (constant, "never does"),
        (strings, "do not lie in their file"),
        (larger, "do not lie in their file"),
        (negative, "do not lie in their file"),
        (many_sides, "do not lie in their file"),
        (no_text, "do not lie in their file"),
        (unsaid, "refers to data outside its file"),
    ],
)
def test_graphs_that_do_not_fit_their_weights_are_refused(pair, edited, edit, message):
    edited(pair[0], pair[0], edit)
    with pytest.raises(DataError, match=message):
        container.read(pair[0])


@pytest.mark.parametrize(
    "name",
    [
        "/etc/{}",
        "../{}",
        "sub/{}",
        "sub\\{}",
        "C:{}",
        "C:\\{}",
        "\\\\host\\share\\{}",
        "..",
        ".",
        "",
        "m.data",
        "x" * 300 + "{}",
    ],
)
def test_a_file_of_weights_elsewhere_or_of_a_strange_name_is_refused(pair, edited, name):
    path, weights = pair
    (path.parent / "sub").mkdir()
    shutil.copy(weights, path.parent / "sub")
    shutil.copy(weights, path.parent.parent)
    name = name.format(weights.name)

    def rename(model):
        document = json.loads(model.metadata_props[0].value)
        document["external"]["file"] = name
        model.metadata_props[0].value = json.dumps(document)
        for graph in external.graphs(model.graph):
            for tensor in graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = name

    edited(path, path, rename)
    with pytest.raises(DataError, match="outside its folder, or in a file of a strange name"):
        container.read(path)
