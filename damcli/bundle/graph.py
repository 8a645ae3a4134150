"""The graph of a model: one network or an ensemble, from uint8 images to scores.

`images` uint8 (N, H, W, C) → [0, 1] → per member: area resizing as two constant matrices where its size differs, the
network (`networks`; grey to 3 channels and normalisation are its own), sigmoid → per finding the weighted mean over the
members that have it, and its calibration, if any (`calibrating`) → `scores` float32 (N, findings). Members are exported
one by one and joined under prefixes, so that memory stays that of one export and each can be told apart in the file.
Views for test-time augmentation are scored one after the other, by a Scan over their maps: the network is in the file
once, and memory stays that of one view.
A member's metadata network (`mixing`) takes its part of a second input, `metadata` float32 (N, D). Class activation
maps (`cams`) are a second output, `cams` float32 (N, findings, h, w). In fp16 the networks alone are in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from damcli import __version__
from damcli.bundle import calibrating, cams, mixing, networks
from damcli.bundle.mixing import Mixed
from damcli.bundle.networks import OPSET
from damcli.bundle.schema import CAMS, INPUT, METADATA, OUTPUT, Precision
from damcli.data.images import Contract
from damcli.deepauc.network import Classifier
from damcli.errors import UsageError
from damcli.metrics.calibration import Calibration


@dataclass(frozen=True)
class Member:
    """One network of a model: its findings in the order of its outputs, the scans it was trained on, its origin.

    `provenance` holds run, recipe, loss, seed, dataset (fingerprint) and weights_sha256, as in `MemberInfo`. `views`
    are the maps, float32 (V, 2, 3), through which a scan is also seen (`data.augment.move`): its score is then the
    mean over it as it is and the V views. `metadata` is the network whose score is mixed with that, if there is one.
    `weights` are by finding, at least 0, in the mean over the members: 1 where none is given.
    """

    network: Classifier
    findings: Sequence[str]
    contract: Contract
    provenance: Mapping[str, Any]
    views: torch.Tensor | None = None
    metadata: Mixed | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


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


def votes(members: Sequence[Member]) -> np.ndarray:
    """Return what each output of each member (rows, side by side) weighs in each finding (columns), float64.

    Raises `UsageError` for a weight that is negative or no number, of a finding that a member does not have, or where
    nothing is left of a finding.
    """
    findings = all_findings(members)
    for member in members:
        for finding, weight in member.weights.items():
            if finding not in member.findings:
                raise UsageError(f"a weight is given for {finding!r}, which {_name(member)} does not have")
            if not 0 <= weight < float("inf"):
                raise UsageError(f"a weight is a number of at least 0, got {weight:g} for {finding}")
    weights = np.array(
        [[member.weights.get(b, 1.0) * (a == b) for b in findings] for member in members for a in member.findings]
    )
    for finding, total in zip(findings, weights.sum(0), strict=True):
        if not total:
            raise UsageError(
                f"all that have the finding {finding!r} have the weight 0", fix="give one of them a weight above 0"
            )
    return weights


def _name(member: Member) -> str:
    return str(member.provenance["run"])


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


def assemble(
    members: Sequence[Member],
    calibration: Mapping[str, Calibration] | None = None,
    precision: Precision = "fp32",
    maps: bool = False,
) -> onnx.ModelProto:
    """Return the graph of all members together, without what a model says of itself; `calibration` is by finding.

    With `maps` it has the output `cams`; raises `UsageError` where a member cannot have them.
    """
    contract = common_contract([member.contract for member in members])
    findings = all_findings(members)
    size, channels = contract.size, contract.channels
    weights = votes(members).astype(np.float32)
    constants = {"white": np.array(255, np.float32), "votes": weights, "voters": weights.sum(0)}
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["pixels"], perm=[0, 3, 1, 2]),
    ]
    model = helper.make_model(
        onnx.GraphProto(name="damcli"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
        producer_name="damcli",
        producer_version=__version__,
    )
    graph, outputs, grids = model.graph, [], {}
    width = 0  # of the metadata
    for number, member in enumerate(members):
        prefix = f"member{number}."
        if maps:
            grids[prefix + "maps"] = grid(member)
        part = networks.traced(member.network, member.contract.size, channels, precision, maps)
        onnx.compose.add_prefix_graph(part, prefix, inplace=True)
        part.node.append(helper.make_node("Sigmoid", [prefix + "logits"], [prefix + "scores"]))
        target = prefix + "pixels" if member.views is None else prefix + "view.scan"
        if member.contract.size < size:
            matrix = area_matrix(size, member.contract.size)
            constants |= {prefix + "rows": matrix, prefix + "columns": np.ascontiguousarray(matrix.T)}
            nodes.append(helper.make_node("MatMul", [prefix + "rows", "pixels"], [prefix + "lower"]))
            nodes.append(helper.make_node("MatMul", [prefix + "lower", prefix + "columns"], [target]))
        else:
            nodes.append(helper.make_node("Identity", ["pixels"], [target]))
        if member.views is None:
            nodes += part.node
            graph.initializer.extend(part.initializer)
            outputs.append(prefix + "scores")
        else:
            over_views, numbers = _over_views(part, member, prefix)
            nodes += over_views
            constants |= numbers
            outputs.append(prefix + "view.mean")
        if member.metadata:
            mixed, numbers, outputs[-1] = mixing.nodes(member.metadata, outputs[-1], width, prefix + "metadata.")
            nodes += mixed
            constants |= numbers
            width += member.metadata.encoding.width
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
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", size, size, channels]))
    if width:
        graph.input.append(helper.make_tensor_value_info(METADATA, TensorProto.FLOAT, ["N", width]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(findings)]))
    if maps:
        mapping, numbers, size_of_maps = cams.nodes(grids, "votes", "voters", CAMS, "cams.")
        nodes += mapping
        constants |= numbers
        graph.output.append(helper.make_tensor_value_info(CAMS, TensorProto.FLOAT, ["N", len(findings), *size_of_maps]))
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def grid(member: Member) -> tuple[int, int]:
    """Return the height and width of a member's class activation maps; raises `UsageError` where it has none."""
    if member.views is not None:
        raise UsageError("each view has another map, so a model with test-time augmentation has none", where="--cam")
    return cams.grid(member.network, member.contract.size, member.contract.channels)


def _over_views(
    part: onnx.GraphProto, member: Member, member_prefix: str
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return nodes from `scan` (N, C, S, S) to `mean` (N, K), a network's scores over all views, and their constants.

    Names are under the member's prefix and `view.`.
    """
    assert member.views is not None
    prefix = member_prefix + "view."
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
            helper.make_node("Identity", [prefix + "pixels"], [member_prefix + "pixels"]),
            *part.node,
        ],
        prefix + "body",
        [helper.make_tensor_value_info(prefix + "map", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(member_prefix + "scores", TensorProto.FLOAT, ["N", len(member.findings)])],
        part.initializer,
    )
    nodes = [
        # The batch as the channels of one image: a view's places are then computed once, not scan by scan.
        node("Reshape", ["scan", "flat"], "plane"),
        node("Scan", ["maps"], "scores", body=body, num_scan_inputs=1),
        node("ReduceMean", ["scores", "first"], "mean", keepdims=0),
    ]
    return nodes, {prefix + name: value for name, value in constants.items()}
