"""The graph of a model: one network or an ensemble, from uint8 images to scores.

`images` uint8 (N, H, W, C) → [0, 1] → per member: area resizing as two constant matrices where its size differs, the
network (grey to 3 channels and normalisation are its own), sigmoid → per finding the mean over the members that have
it, and its calibration, if any (`calibrating`) → `scores` float32 (N, findings). Members are exported one by one and
joined under prefixes, so that memory stays that of one export and each can be told apart in the file. Views for
test-time augmentation are scored one after the other, by a Scan over their maps: the network is in the file once, and
memory stays that of one view.
A member's metadata network (`mixing`) takes its part of a second input, `metadata` float32 (N, D).
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from damcli import __version__
from damcli.bundle import calibrating, mixing
from damcli.bundle.mixing import Mixed
from damcli.bundle.schema import INPUT, METADATA, OUTPUT
from damcli.data.images import Contract
from damcli.deepauc.network import Classifier
from damcli.errors import UsageError
from damcli.metrics.calibration import Calibration

OPSET = 20


@dataclass(frozen=True)
class Member:
    """One network of a model: its findings in the order of its outputs, the scans it was trained on, its origin.

    `provenance` holds run, recipe, loss, seed, dataset (fingerprint) and weights_sha256, as in `MemberInfo`. `views`
    are the maps, float32 (V, 2, 3), through which a scan is also seen (`data.augment.move`): its score is then the
    mean over it as it is and the V views. `metadata` is the network whose score is mixed with that, if there is one.
    """

    network: Classifier
    findings: Sequence[str]
    contract: Contract
    provenance: Mapping[str, Any]
    views: torch.Tensor | None = None
    metadata: Mixed | None = None


def common_contract(contracts: Sequence[Contract]) -> Contract:
    """Return what the model decodes scans to: the members' contract at the largest of their sizes.

    A smaller member then sees the area average of the larger image. Raises `UsageError` if the contracts differ in
    anything but the size.
    """
    for contract in contracts:
        if contract.model_copy(update={"size": contracts[0].size}) != contracts[0]:
            raise UsageError(
                f"these runs cannot be one model: their datasets decode scans differently ({contracts[0]}, {contract})",
                fix="export them one by one",
            )
    return contracts[0].model_copy(update={"size": max(contract.size for contract in contracts)})


def all_findings(members: Sequence[Member]) -> list[str]:
    """Return the findings of the model: those of its members, each once, in the order they are first met."""
    return list(dict.fromkeys(finding for member in members for finding in member.findings))


def area_matrix(size: int, smaller: int) -> np.ndarray:
    """Return the float32 (smaller, size) matrix of exact area averaging along one side of an image.

    Output pixel i is the mean of the input over [i, i + 1) · size / smaller, pixels at the ends in part.

    >>> area_matrix(5, 2)
    array([[0.4, 0.4, 0.2, 0. , 0. ],
           [0. , 0. , 0.2, 0.4, 0.4]], dtype=float32)
    """
    edges = np.arange(smaller + 1) * size / smaller
    pixels = np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return (overlap.clip(0) * smaller / size).astype(np.float32)


def assemble(members: Sequence[Member], calibration: Mapping[str, Calibration] | None = None) -> onnx.ModelProto:
    """Return the graph of all members together, without what a model says of itself; `calibration` is by finding."""
    contract = common_contract([member.contract for member in members])
    findings = all_findings(members)
    size, channels = contract.size, contract.channels
    constants = {"white": np.array(255, np.float32)}
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["pixels"], perm=[0, 3, 1, 2]),
    ]
    initializers, outputs, votes = [], [], np.zeros((0, len(findings)), np.float32)
    width = 0  # of the metadata
    for number, member in enumerate(members):
        prefix = f"member{number}."
        part = _network(member)
        onnx.compose.add_prefix_graph(part, prefix, inplace=True)
        target = part.input[0].name if member.views is None else prefix + "view.scan"
        if member.contract.size < size:
            matrix = area_matrix(size, member.contract.size)
            constants |= {prefix + "rows": matrix, prefix + "columns": np.ascontiguousarray(matrix.T)}
            nodes.append(helper.make_node("MatMul", [prefix + "rows", "pixels"], [prefix + "lower"]))
            nodes.append(helper.make_node("MatMul", [prefix + "lower", prefix + "columns"], [target]))
        else:
            nodes.append(helper.make_node("Identity", ["pixels"], [target]))
        if member.views is None:
            nodes += part.node
            initializers += part.initializer
            outputs.append(part.output[0].name)
        else:
            over_views, numbers = _over_views(part, member, prefix + "view.")
            nodes += over_views
            constants |= numbers
            outputs.append(prefix + "view.mean")
        if member.metadata:
            mixed, numbers, outputs[-1] = mixing.nodes(member.metadata, outputs[-1], width, prefix + "metadata.")
            nodes += mixed
            constants |= numbers
            width += member.metadata.encoding.width
        has = np.array([[a == b for b in findings] for a in member.findings], np.float32)
        votes = np.concatenate([votes, has])
    constants |= {"votes": votes, "voters": votes.sum(0)}
    mean = "mean" if calibration else OUTPUT
    nodes += [
        helper.make_node("Concat", outputs, ["all"], axis=1),
        helper.make_node("MatMul", ["all", "votes"], ["sums"]),
        helper.make_node("Div", ["sums", "voters"], [mean]),
    ]
    if calibration:
        calibrated, numbers = calibrating.nodes(calibration, findings, mean, OUTPUT, "calibration.")
        nodes += calibrated
        constants |= numbers
    initializers += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", size, size, channels])]
    if width:
        inputs.append(helper.make_tensor_value_info(METADATA, TensorProto.FLOAT, ["N", width]))
    graph = helper.make_graph(
        nodes,
        "damcli",
        inputs,
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(findings)])],
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="damcli",
        producer_version=__version__,
    )
    onnx.checker.check_model(model)
    return model


def _over_views(
    part: onnx.GraphProto, member: Member, prefix: str
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return nodes from `scan` (N, C, S, S) to `mean` (N, K), a network's scores over all views, and their constants.

    Names are under `prefix`.
    """
    assert member.views is not None
    size, channels = member.contract.size, member.contract.channels
    constants = {
        "maps": torch.cat([torch.eye(2, 3)[None], member.views]).numpy(),
        "one": np.array([1, 1, size, size]),
        "flat": np.array([1, -1, size, size]),
        "apart": np.array([-1, channels, size, size]),
        "first": np.array([0]),
    }

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, [prefix + name for name in inputs], [prefix + output], **attributes)

    body = helper.make_graph(
        [
            node("Unsqueeze", ["map", "first"], "map1"),
            node("AffineGrid", ["map1", "one"], "places", align_corners=0),
            node("GridSample", ["plane", "places"], "moved", mode="linear", padding_mode="zeros", align_corners=0),
            node("Reshape", ["moved", "apart"], "pixels"),
            helper.make_node("Identity", [prefix + "pixels"], [part.input[0].name]),
            *part.node,
        ],
        prefix + "body",
        [helper.make_tensor_value_info(prefix + "map", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(part.output[0].name, TensorProto.FLOAT, ["N", len(member.findings)])],
        part.initializer,
    )
    nodes = [
        # The batch as the channels of one image: a view's places are then computed once, not scan by scan.
        node("Reshape", ["scan", "flat"], "plane"),
        node("Scan", ["maps"], "scores", body=body, num_scan_inputs=1),
        node("ReduceMean", ["scores", "first"], "mean", keepdims=0),
    ]
    return nodes, {prefix + name: value for name, value in constants.items()}


class _Scores(torch.nn.Module):
    """A network with its sigmoid."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(pixels))


def _network(member: Member) -> onnx.GraphProto:
    """Export one network: `pixels` float (N, C, H, W) in [0, 1] to `scores` (N, K)."""
    size = member.contract.size
    # Two images: the exporter takes a dimension of 1 for a constant.
    example = torch.zeros(2, member.contract.channels, size, size)
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Scores(member.network).eval(),
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    assert not model.functions, "the exporter left a local function"
    part = model.graph
    # The exporter notes stack traces, and with them the paths of this machine.
    del part.value_info[:]
    for thing in [part, *part.node, *part.initializer]:
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")
    return part
