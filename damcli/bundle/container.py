"""The model file: an ONNX graph, a `ModelInfo` as JSON in its metadata, and a seal over both. Needs no torch.

The file is untrusted input. What is not ours, not whole, or holds what damcli never writes is refused here, before
anything runs. The seal is the SHA-256 of all bytes before it, as one more metadata entry at the end of the file: it
shows damage and careless edits; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from damcli.bundle.schema import INPUT, METADATA, OUTPUT, READABLE_VERSIONS, SCHEMA_VERSION, ModelInfo, check_findings
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx

INFO_KEY, SEAL_KEY = "damcli", "damcli.sha256"
# Protobuf, and with it a single ONNX file, ends at 2 GiB.
MAX_BYTES = 2**31 - 1


def packed(model: onnx.ModelProto, info: ModelInfo) -> bytes:
    """Return the bytes of a model file: the graph, `info`, the seal."""
    del model.metadata_props[:]
    model.metadata_props.add(key=INFO_KEY, value=info.model_dump_json())
    body = model.SerializeToString()
    return body + seal(body)


def seal(body: bytes) -> bytes:
    """Return the bytes that, put behind a serialised model, hold its SHA-256 (as one more metadata entry)."""
    return _seal(hashlib.sha256(body).hexdigest())


def _seal(digest: str) -> bytes:
    import onnx

    return onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=SEAL_KEY, value=digest)]).SerializeToString()


def read(path: Path) -> tuple[bytes, ModelInfo]:
    """Read a model's bytes and verify them without running anything; see `Model.open` for what is raised."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UsageError("there is no such model", where=path, fix="make one: damcli export")
    if path.stat().st_size > MAX_BYTES:
        raise DataError("this is no model of damcli: it is larger than 2 GiB", where=path)
    data = path.read_bytes()
    try:
        graph = onnx.ModelProto.FromString(data)
    except DecodeError:
        graph = onnx.ModelProto()
    if not graph.HasField("graph"):
        raise DataError("this is no ONNX file, or it is damaged", where=path, fix="export it again: damcli export")
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    if INFO_KEY not in properties:
        raise DataError(
            "this ONNX file was not made by damcli: it does not say what its findings are",
            where=path,
            fix="give a model that damcli export wrote",
        )
    end = len(data) - len(_seal("0" * 64))
    if data[end:] != _seal(hashlib.sha256(memoryview(data)[:end]).hexdigest()):
        raise DataError(
            "this model was damaged or changed since its export", where=path, fix="export it again: damcli export"
        )
    try:
        info = _info(properties[INFO_KEY])
        _verify(graph, info)
    except DataError as error:
        raise DataError(error.what, where=path, fix=error.fix) from error
    return data, info


def _info(text: str) -> ModelInfo:
    try:
        values = json.loads(text)
        if isinstance(values, dict) and values.get("schema_version") not in READABLE_VERSIONS:
            raise DataError(
                f"the model's schema version {values.get('schema_version')!r} is unknown, this damcli reads"
                f" {SCHEMA_VERSION}",
                fix="update damcli, or export it again",
            )
        info = ModelInfo.model_validate(values)
    except (json.JSONDecodeError, ValidationError) as error:
        raise DataError("the model's metadata are damaged", fix="export it again: damcli export") from error
    check_findings(info.findings)
    return info


def _verify(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Refuse what damcli never writes into a model."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    if model.functions:
        raise DataError("the model holds local functions, which damcli never writes")
    for graph in _graphs(model.graph):
        tensors, sparse = list(graph.initializer), list(graph.sparse_initializer)
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                raise DataError(f"the model uses a custom operator: {node.domain}.{node.op_type}")
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        tensors += [tensor for pair in sparse for tensor in (pair.values, pair.indices)]
        if any(uses_external_data(tensor) for tensor in tensors):
            raise DataError("the model refers to data outside its file")
    contract = info.contract
    inputs = [(INPUT, onnx.TensorProto.UINT8, [contract.size, contract.size, contract.channels])]
    if info.encoding:
        inputs.append((METADATA, onnx.TensorProto.FLOAT, [info.encoding.width]))
    scores = (OUTPUT, onnx.TensorProto.FLOAT, [len(info.findings)])
    if [_port(p) for p in model.graph.input] != inputs or [_port(p) for p in model.graph.output] != [scores]:
        raise DataError("the model's inputs or outputs are not what its metadata say")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _graphs(inner)


def _port(port: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
    tensor = port.type.tensor_type
    return port.name, tensor.elem_type, [dimension.dim_value for dimension in tensor.shape.dim[1:]]
