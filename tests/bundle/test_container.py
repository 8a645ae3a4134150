"""A model file is untrusted: what is not ours, not whole or not harmless is refused before anything runs."""

import json
import os
import re
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from damcli.bundle import container
from damcli.errors import DataError, UsageError


def test_what_was_written_is_read(hand_made, tmp_path):
    model, info = hand_made(cams=True)
    written = container.write(tmp_path / "m.onnx", model, info)
    opened = container.read(tmp_path / "m.onnx")
    assert written == info == opened.info
    assert opened.external is None
    assert opened.data == (tmp_path / "m.onnx").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_resealing_alone_changes_nothing(plain, edited, tmp_path):
    assert edited(plain, tmp_path / "m.onnx", lambda model: None).read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no ONNX file") as caught:
        container.read(path)
    assert caught.value.where == path


def test_a_path_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    for path in (tmp_path / "none.onnx", tmp_path, tmp_path / "pipe.onnx", tmp_path / "loop.onnx"):
        with pytest.raises(UsageError, match="no such model"):
            container.read(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read is needed")
def test_a_file_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "m.onnx").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        container.read(tmp_path / "m.onnx")


def test_a_file_beyond_protobuf_is_not_loaded(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(DataError, match="larger than 2 GiB"):
        container.read(tmp_path / "m.onnx")


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="not made by damcli"):
        container.read(tmp_path / "m.onnx")


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


def custom_operator_that_paints_the_terminal(model):
    model.graph.node.append(helper.make_node("\x1b[2J" + 1000 * "x", ["images"], ["z"], domain="evil"))


def custom_domain(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def custom_operator_in_a_scan(model):
    [scan] = [node for node in model.graph.node if node.op_type == "Scan"]
    [body] = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    body.node.append(helper.make_node("Shell", ["row"], ["z"], domain="evil.ops"))


def local_function(model):
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], model.opset_import))


def training(model):
    model.training_info.add()


def more_metadata(model):
    model.metadata_props.add(key="author", value="me")


def metadata_twice(model):
    model.metadata_props.insert(0, model.metadata_props[0])


def names_that_are_no_text(model):
    custom_operator(model)
    model.ParseFromString(model.SerializeToString().replace(b"evil.ops", b"\xffvil.ops"))


def metadata_that_are_no_text(model):
    model.ParseFromString(model.SerializeToString().replace(b"Edema", b"\xffdema"))


def second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N"]))


def float_input(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def other_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 49


def batches_of_five_alone(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5


def no_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def input_that_is_a_sequence(model):
    port = helper.make_tensor_sequence_value_info("images", TensorProto.UINT8, ["N", 16, 16, 1])
    model.graph.input[0].CopyFrom(port)


def no_output(model):
    del model.graph.output[:]


def maps_that_were_not_said(model):
    model.graph.output.append(helper.make_tensor_value_info("cams", TensorProto.FLOAT, ["N", 2, 1, 1]))


def maps_that_are_not_there(model):
    said(cams={"height": 1, "width": 1})(model)


def said(**values):
    """Return an edit that puts other values into the metadata."""

    def edit(model):
        entry = model.metadata_props[0]
        entry.value = json.dumps(json.loads(entry.value) | values)

    return edit


def text(value):
    """Return an edit that puts another text in place of the metadata."""

    def edit(model):
        model.metadata_props[0].value = value

    return edit


OUTSIDE = {"file": "m.onnx.aaaaaaaa.data", "sha256": "a" * 64, "bytes": 100}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (external, "outside its file"),
        (external_in_a_branch, "outside its file"),
        (external_and_sparse, "outside its file"),
        (custom_operator, r"custom operator: evil\.ops\.Shell"),
        (custom_operator_that_paints_the_terminal, r"custom operator: evil\.\\x1b\[2Jx{,80}$"),
        (custom_operator_in_a_scan, r"custom operator: evil\.ops\.Shell"),
        (custom_domain, r"custom operator: com\.microsoft"),
        (local_function, "local functions"),
        (training, "training"),
        (more_metadata, "metadata hold what damcli never writes"),
        (metadata_twice, "metadata hold what damcli never writes"),
        (names_that_are_no_text, r"custom operator: b.*xffvil"),
        (metadata_that_are_no_text, "metadata are damaged"),
        (second_input, "inputs or outputs"),
        (float_input, "inputs or outputs"),
        (other_size, "inputs or outputs"),
        (batches_of_five_alone, "inputs or outputs"),
        (no_shape, "inputs or outputs"),
        (input_that_is_a_sequence, "inputs or outputs"),
        (no_output, "inputs or outputs"),
        (maps_that_were_not_said, "inputs or outputs"),
        (maps_that_are_not_there, "inputs or outputs"),
        (said(schema_version=99), "schema version 99 is unknown"),
        (said(schema_version="2"), "schema version '2' is unknown"),
        (said(schema_version=[1]), r"schema version \[1\] is unknown"),
        (said(findings=7), "metadata are damaged"),
        (said(findings=["status", "Fracture"]), "may not be called 'status'"),
        (said(findings=["Edema", "Study"]), "may not be called 'Study'"),
        (said(findings=["Edema", "\x1b[2J"]), r"may not be called '\\x1b\[2J'"),
        (said(findings=["Edema"]), "inputs or outputs"),
        (said(findings=["A", "A"]), "each once"),
        (said(findings=[]), "findings must be named"),
        (said(external=OUTSIDE), "do not lie in their file"),
        (text("Edema"), "metadata are damaged"),
        (text("[1]"), "metadata are damaged"),
        (text(""), "metadata are damaged"),
        (text("[" * 100_000), "metadata are damaged"),
        (text('{"schema_version": ' + "1" * 10_000 + "}"), "metadata are damaged"),
        (text('{"schema_version": NaN}'), "schema version nan is unknown"),
    ],
)
def test_hostile_models_are_refused_with_the_reason(plain, edited, tmp_path, edit, message):
    path = edited(plain, tmp_path / "hostile.onnx", edit)
    with pytest.raises(DataError) as caught:
        container.read(path)
    assert re.search(message, caught.value.what)
    assert caught.value.where == path
    assert caught.value.exit_code == 3
