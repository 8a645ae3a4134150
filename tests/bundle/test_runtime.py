"""A model file is untrusted: what is not ours, not whole or not harmless is refused before anything runs."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from damcli.bundle import container, runtime
from damcli.bundle.runtime import Model
from damcli.errors import DataError, MachineError, UsageError


@pytest.fixture
def resealed(model_file, tmp_path):
    """Change the model and seal it again, as an attacker would."""

    def change(edit):
        model = onnx.load(model_file)
        del model.metadata_props[1:]
        edit(model)
        body = model.SerializeToString()
        path = tmp_path / "hostile.onnx"
        path.write_bytes(body + container.seal(body))
        return path

    return change


def test_an_untouched_model_survives_resealing(resealed, draw, model_file):
    images = draw(2)
    np.testing.assert_array_equal(
        Model.open(resealed(lambda model: None), "cpu").score(images), Model.open(model_file, "cpu").score(images)
    )


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no ONNX file") as caught:
        Model.open(path)
    assert caught.value.where == path


def test_a_path_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(UsageError, match="no such model"):
            Model.open(path)


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="not made by damcli"):
        Model.open(tmp_path / "m.onnx")


def test_a_flipped_byte_anywhere_is_found(model_file, tmp_path):
    whole = model_file.read_bytes()
    path = tmp_path / "m.onnx"
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            Model.open(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(model_file, tmp_path, share):
    whole = model_file.read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError):
        Model.open(tmp_path / "m.onnx")


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_a_branch(model):
    tensor = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def external_and_sparse(model):
    values = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="../secret")
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("at", TensorProto.INT64, [1], [0]), [4])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))


def custom_operator(model):
    model.graph.node.append(helper.make_node("Shell", ["images"], ["z"], domain="evil.ops"))


def local_function(model):
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], model.opset_import))


def second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N"]))


def float_input(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def other_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 49


def no_output(model):
    del model.graph.output[:]


def newer_schema(model):
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"schema_version":1', '"schema_version":99')


def broken_metadata(model):
    model.metadata_props[0].value = '{"schema_version": 1, "findings": 7}'


def metadata_not_json(model):
    model.metadata_props[0].value = "Edema"


def metadata_as_a_list(model):
    model.metadata_props[0].value = "[1]"


def finding_named_status(model):
    entry = model.metadata_props[0]
    entry.value = entry.value.replace('"Edema"', '"status"')


def broken_graph(model):
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (external, "outside its file"),
        (external_in_a_branch, "outside its file"),
        (external_and_sparse, "outside its file"),
        (custom_operator, r"custom operator: evil\.ops\.Shell"),
        (local_function, "local functions"),
        (second_input, "inputs or outputs"),
        (float_input, "inputs or outputs"),
        (other_size, "inputs or outputs"),
        (no_output, "inputs or outputs"),
        (newer_schema, "schema version 99 is unknown"),
        (broken_metadata, "metadata are damaged"),
        (metadata_not_json, "metadata are damaged"),
        (metadata_as_a_list, "metadata are damaged"),
        (finding_named_status, "may not be called 'status'"),
        (broken_graph, "ONNX Runtime refuses this model"),
    ],
)
def test_hostile_models_are_refused_with_the_reason(resealed, edit, message):
    path = resealed(edit)
    with pytest.raises(DataError, match=message) as caught:
        Model.open(path, "cpu")
    assert caught.value.where == path
    assert caught.value.exit_code == 3


def test_images_of_another_shape_or_type_are_our_mistake(model_file):
    model = Model.open(model_file, "cpu")
    for images in (np.zeros((1, 47, 48, 1), np.uint8), np.zeros((1, 48, 48), np.float32), np.zeros((48, 48), np.uint8)):
        with pytest.raises(ValueError, match="images must be uint8"):
            model.score(images)
    assert model.score(np.zeros((0, 48, 48, 1), np.uint8)).shape == (0, 2)


@pytest.mark.skipif(runtime._gpus() > 0, reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_taken_and_said(model_file, capfd):
    asked = Model.open(model_file, "cuda")
    assert asked.provider == runtime.CPU
    assert asked.fell_back
    assert asked.provider_note
    assert not Model.open(model_file, "auto").fell_back
    with pytest.raises(MachineError, match="GPU is required"):
        Model.open(model_file, "auto", require_gpu=True)
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(runtime._gpus() > 0, reason="this machine has a GPU")
def test_a_silent_fall_back_of_onnx_runtime_is_seen_in_the_session(model_file, monkeypatch, capfd):
    monkeypatch.setattr(runtime, "_gpus", lambda: 1)
    model = Model.open(model_file, "auto")
    assert model.provider == runtime.CPU
    assert model.fell_back
    assert "fell back" in model.provider_note
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_on_a_gpu_the_scores_are_those_of_the_cpu(model_file, draw):
    model = Model.open(model_file, "auto", require_gpu=True)
    assert model.provider == runtime.CUDA
    np.testing.assert_allclose(model.score(draw(9)), Model.open(model_file, "cpu").score(draw(9)), atol=1e-3)


def test_scoring_needs_no_torch(model_file):
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom damcli.bundle.runtime import Model\n"
        f"Model.open(Path({os.fspath(model_file)!r}), 'cpu').score(np.zeros((1, 48, 48, 1), np.uint8))\n"
        "print({'torch', 'timm', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
