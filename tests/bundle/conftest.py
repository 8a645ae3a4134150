"""Tiny members of an ensemble, one exported model to damage, and graphs written by hand, which are faster."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from damcli.bundle import build, container
from damcli.bundle.schema import CAMS, INPUT, OUTPUT, Cams, MemberInfo, ModelInfo, Parity
from damcli.data.images import Contract
from damcli.deepauc.network import Classifier

SIZE, WIDTH, FINDINGS = 16, 24, ("Edema", "Fracture")


@pytest.fixture(scope="session")
def make_member():
    def make(findings, backbone="test_resnet", size=48, channels=1, seed=0, **options):
        torch.manual_seed(seed)
        network = Classifier(backbone, len(findings), **options).eval()
        # Running statistics as after training: at their initial values much would not be tested.
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        origin = {"run": f"run-{seed}", "recipe": "toy", "loss": "aucm", "seed": seed}
        hashes = {"dataset": "d" * 64, "weights_sha256": "a" * 64}
        return build.Member(network, findings, Contract(size=size, channels=channels), origin | hashes)

    return make


@pytest.fixture(scope="session")
def draw():
    def images(number, size=48, channels=1, seed=0):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (number, 6, 6, channels), dtype=np.uint8)
        fine = coarse.repeat(size // 6, axis=1).repeat(size // 6, axis=2)
        return np.clip(fine + rng.integers(-20, 21, fine.shape), 0, 255).astype(np.uint8)

    return images


@pytest.fixture(scope="session")
def model_file(make_member, draw, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    build.export([make_member(["Edema", "Fracture"])], path, draw(5))
    return path


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A model file from a graph written by hand, to read only."""
    path = tmp_path_factory.mktemp("plain") / "m.onnx"
    container.write(path, *hand_made())
    return path


@pytest.fixture(scope="session")
def edited():
    """Returns `edited(path, to, edit)`: `to`, the model of `path` after `edit(model)`, under a seal that fits.

    So an attacker would write it.
    """

    def write(path, to, edit):
        model = onnx.load(path, load_external_data=False)
        del model.metadata_props[1:]
        edit(model)
        body = model.SerializeToString()
        to.write_bytes(body + container.seal(body))
        return to

    return write


def hand_made(seed=0, cams=False):
    """Return a graph written by hand, some of whose weights are in the body of a Scan, and what it says of itself."""
    rng = np.random.default_rng(seed)
    port, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    constants = {
        "first": rng.normal(0, 0.05, (SIZE * SIZE, WIDTH)).astype(np.float32),
        "last": rng.normal(0, 1, (WIDTH, len(FINDINGS))).astype(np.float32),
        "flat": np.array([1, -1, SIZE * SIZE]),
        "rows": np.array([0]),
    }
    inner = numpy_helper.from_array(rng.normal(0, 0.5, (WIDTH, WIDTH)).astype(np.float32), "inner")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["row", "inner"], ["sum"]), helper.make_node("Tanh", ["sum"], ["out"])],
        "body",
        [port("row", floats, ["N", WIDTH])],
        [port("out", floats, ["N", WIDTH])],
        [inner],
    )
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=floats),
        helper.make_node("Reshape", ["float", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "first"], ["hidden"]),
        helper.make_node("Scan", ["hidden"], ["seen"], body=body, num_scan_inputs=1),
        helper.make_node("Squeeze", ["seen", "rows"], ["features"]),
        helper.make_node("MatMul", ["features", "last"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [OUTPUT]),
    ]
    outputs = [port(OUTPUT, floats, ["N", len(FINDINGS)])]
    if cams:
        constants |= {"grid": np.array([-1, len(FINDINGS), 1, 1])}
        nodes.append(helper.make_node("Reshape", ["logits", "grid"], [CAMS]))
        outputs.append(port(CAMS, floats, ["N", len(FINDINGS), 1, 1]))
    graph = helper.make_graph(
        nodes,
        "toy",
        [port(INPUT, TensorProto.UINT8, ["N", SIZE, SIZE, 1])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, said(cams=Cams(height=1, width=1) if cams else None)


def said(**more):
    """Return what a model of one member says of itself."""
    member = MemberInfo(
        run="run-0",
        recipe="toy",
        backbone="test_resnet",
        loss="aucm",
        seed=0,
        dataset="d" * 64,
        weights_sha256="a" * 64,
        findings=FINDINGS,
        size=SIZE,
    )
    values = {
        "damcli": "0.1",
        "created": "2026-01-01T00:00:00+00:00",
        "findings": FINDINGS,
        "contract": Contract(size=SIZE, channels=1),
        "members": (member,),
        "parity": Parity(scans=5, max_difference=1e-7, tolerance=1e-4, auroc_difference=None),
    }
    return ModelInfo(**values | more)


@pytest.fixture(scope="session", name="hand_made")
def _hand_made():
    return hand_made


@pytest.fixture(scope="session", name="said")
def _said():
    return said
