"""One network as a part of the graph: traced by PyTorch's exporter, and its arithmetic in half precision if asked."""

from __future__ import annotations

import contextlib
import sys
import warnings

import onnx
import torch

from damcli.bundle.cams import Mapped
from damcli.bundle.schema import Precision
from damcli.deepauc.network import Classifier

OPSET = 20


def traced(network: Classifier, size: int, channels: int, precision: Precision, maps: bool) -> onnx.GraphProto:
    """Export a network: `pixels` float (N, C, S, S) in [0, 1] to `logits` (N, K), and `maps` (N, K, h, w) if asked.

    Both are float32 in any precision. Of fp16 the last layer is in float32 as well: its sums over all channels are
    what tells apart scores that lie close together.
    """
    # Two images: the exporter takes a dimension of 1 for a constant.
    example = torch.zeros(2, channels, size, size)
    module = Mapped(network) if maps else network
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits", "maps"] if maps else ["logits"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    assert not model.functions, "the exporter left a local function"
    part = (_halved(model) if precision == "fp16" else model).graph
    # The exporter notes stack traces, and with them the paths of this machine.
    del part.value_info[:]
    for thing in [part, *part.node, *part.initializer]:
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")
    return part


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float16, but for its inputs, its outputs and the nodes that make these."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = model.graph
    outputs = list(graph.output)
    names = {port.name for port in outputs}
    last = [node for node in graph.node if not names.isdisjoint(node.output)]
    constants = {tensor.name for tensor in graph.initializer}
    # Cut off before the conversion and put back after it: within it, what they make would be rounded.
    before = dict.fromkeys(name for node in last for name in node.input if name and name not in constants)
    for node in last:
        graph.node.remove(node)
    del graph.output[:]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in before)
    halved = convert_float_to_float16(model, keep_io_types=True)
    del halved.graph.output[:]
    halved.graph.output.extend(outputs)
    halved.graph.node.extend(last)
    OnnxModel(halved).topological_sort(is_deterministic=True)
    return halved
