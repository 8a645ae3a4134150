"""The graph of a model: one network or an ensemble, from uint8 images to scores.

`images` uint8 (N, H, W, C) → [0, 1] → per member: area resizing as two constant matrices where its size differs, the
network (grey to 3 channels and normalisation are its own), sigmoid → per finding the mean over the members that have
it → `scores` float32 (N, findings). Members are exported one by one and joined under prefixes, so that memory stays
that of one export and each can be told apart in the file.
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
from damcli.bundle.schema import INPUT, OUTPUT
from damcli.data.images import Contract
from damcli.deepauc.network import Classifier
from damcli.errors import UsageError

OPSET = 20


@dataclass(frozen=True)
class Member:
    """One network of a model: its findings in the order of its outputs, the scans it was trained on, its origin.

    `provenance` holds run, recipe, loss, seed, dataset (fingerprint) and weights_sha256, as in `MemberInfo`.
    """

    network: Classifier
    findings: Sequence[str]
    contract: Contract
    provenance: Mapping[str, Any]


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


def assemble(members: Sequence[Member]) -> onnx.ModelProto:
    """Return the graph of all members together, without metadata."""
    contract = common_contract([member.contract for member in members])
    findings = all_findings(members)
    size, channels = contract.size, contract.channels
    constants = {"white": np.array(255, np.float32)}
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["pixels"], perm=[0, 3, 1, 2]),
    ]
    initializers, votes = [], np.zeros((0, len(findings)), np.float32)
    for number, member in enumerate(members):
        prefix = f"member{number}."
        part = _network(member)
        onnx.compose.add_prefix_graph(part, prefix, inplace=True)
        target = part.input[0].name
        if member.contract.size < size:
            matrix = area_matrix(size, member.contract.size)
            constants |= {prefix + "rows": matrix, prefix + "columns": np.ascontiguousarray(matrix.T)}
            nodes.append(helper.make_node("MatMul", [prefix + "rows", "pixels"], [prefix + "lower"]))
            nodes.append(helper.make_node("MatMul", [prefix + "lower", prefix + "columns"], [target]))
        else:
            nodes.append(helper.make_node("Identity", ["pixels"], [target]))
        nodes += part.node
        initializers += part.initializer
        has = np.array([[a == b for b in findings] for a in member.findings], np.float32)
        votes = np.concatenate([votes, has])
    outputs = [f"member{number}.scores" for number in range(len(members))]
    constants |= {"votes": votes, "voters": votes.sum(0)}
    nodes += [
        helper.make_node("Concat", outputs, ["all"], axis=1),
        helper.make_node("MatMul", ["all", "votes"], ["sums"]),
        helper.make_node("Div", ["sums", "voters"], [OUTPUT]),
    ]
    initializers += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "damcli",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", size, size, channels])],
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
