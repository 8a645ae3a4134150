"""The second file of a model that is too large for one: its weights, in ONNX's external data format.

It is called NAME.onnx.<start of its SHA-256>.data. Each weight begins on a page of memory, so that the file can be
mapped, and they follow each other in the order in which the graph names them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from damcli import files
from damcli.bundle.schema import External
from damcli.errors import DataError

if TYPE_CHECKING:
    import onnx

PAGE = 4096
# What is smaller stays in the graph: ONNX Runtime takes shapes from there.
MIN_BYTES = 1024
# Of a weight. The product of a hundred thousand sides is a number that takes minutes.
MAX_SIDES = 8
# Bytes of a number, by ONNX's TensorProto.DataType: float, uint8, int8, int32, int64, bool, float16, double.
WIDTHS = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes, in the file's order."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from graphs(inner)


def movable(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, int]]:
    """Yield the weights that may lie in a second file, and the bytes of each."""
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.HasField("raw_data") and tensor.data_type in WIDTHS and _bytes(tensor) >= MIN_BYTES:
                yield tensor, _bytes(tensor)


def move_out(model: onnx.ModelProto, folder: Path, name: str) -> External:
    """Move the weights of the model `name` into a file in `folder`; the model then refers to it by its final name."""
    from onnx import TensorProto

    draft = folder / f"{name}.data"
    places, end, sha = [], 0, hashlib.sha256()
    with draft.open("wb") as file:
        for tensor, length in movable(model):
            offset = _next(end)
            for part in (bytes(offset - end), tensor.raw_data):
                sha.update(part)
                file.write(part)
            end = offset + length
            assert file.tell() == end, f"{tensor.name} holds other than {length} bytes"
            tensor.ClearField("raw_data")
            places.append((tensor, offset, length))
        file.flush()
        os.fsync(file.fileno())
    digest = sha.hexdigest()
    external = External(file=f"{name}.{digest[:8]}.data", sha256=digest, bytes=end)
    draft.replace(folder / external.file)
    for tensor, offset, length in places:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external.file), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return external


def check_references(model: onnx.ModelProto, external: External | None) -> None:
    """Raise `DataError` unless all data outside the model are weights in the file `external`, one behind the other."""
    from onnx.external_data_helper import uses_external_data

    end = 0
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if not uses_external_data(tensor):
                continue
            if external is None:
                raise DataError("the model refers to data outside its file")
            entries = [(entry.key, entry.value) for entry in tensor.external_data]
            place = dict(entries)
            if len(entries) != 3 or place.keys() != {"location", "offset", "length"}:
                raise DataError("the model refers to data outside its file in a way that damcli never does")
            if place["location"] != external.file:
                raise DataError("the model refers to another file than that of its weights")
            offset, length = _number(place["offset"]), _number(place["length"])
            known = tensor.data_type in WIDTHS and len(tensor.dims) <= MAX_SIDES
            if not known or offset != _next(end) or length != _bytes(tensor):
                raise DataError("the model's weights do not lie in their file as its graph says")
            end = offset + length
        outside = [tensor for tensor in _constants(graph) if uses_external_data(tensor)]
        if outside:
            raise DataError("the model refers to data outside its file in a way that damcli never does")
    if external is not None and end != external.bytes:
        raise DataError("the model's weights do not lie in their file as its graph says")


def find(external: External, folder: Path) -> Path:
    """Return the file of weights in `folder`, once it is seen to be that of the model. Raises `DataError`."""
    name = external.file
    plain = {PurePosixPath(name).name, PureWindowsPath(name).name} == {name} and len(name) < 256
    if not plain or not name.endswith(f".{external.sha256[:8]}.data"):
        raise DataError("the model's weights are said to lie outside its folder, or in a file of a strange name")
    path = folder / name
    try:
        there = path.is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        raise DataError(
            f"half of this model is missing: its weights are in a second file, {name!r}",
            fix="put that file into the folder of the model, under that name",
        )
    if path.resolve().parent != folder:
        raise DataError("the model's weights lie outside its folder, behind a link", fix="put the file itself there")
    try:
        whole = path.stat().st_size == external.bytes and files.sha256(path) == external.sha256
    except OSError as error:
        raise DataError(f"the file of the model's weights, {name!r}, cannot be read: {error.strerror}") from error
    if not whole:
        raise DataError(
            f"the file of the model's weights, {name!r}, is damaged or that of another model",
            fix="copy it again together with the model, or export it again",
        )
    return path


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph that are no plain weights: sparse ones, and those in attributes of its nodes."""
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for pair in sparse:
        yield from (pair.values, pair.indices)


def _next(end: int) -> int:
    """Return where the page after `end` begins, or `end` where it is one's beginning."""
    return end + -end % PAGE


def _bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * WIDTHS[tensor.data_type]


def _number(text: str | bytes) -> int:
    """Return a number as `move_out` writes it; -1 for anything else, also what is no text (protobuf gives bytes)."""
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,18}", text) else -1
