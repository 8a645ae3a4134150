"""The model file: an ONNX graph, a `ModelInfo` as JSON in its metadata, and a seal over both. Needs no torch.

Weights beyond `MAX_INLINE` lie in a second file beside it (`external`), whose SHA-256 the metadata hold. Since the
name of that file is made of its SHA-256, a model is replaced by the renaming of one file.

Both files are untrusted input. What is not ours, not whole, or holds what damcli never writes is refused here, before
anything runs. The seal is the SHA-256 of all bytes before it, as one more metadata entry at the end of the file: it
shows damage and careless edits; it is no signature.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from damcli import files
from damcli.bundle import external
from damcli.bundle.schema import (
    CAMS,
    INPUT,
    METADATA,
    OUTPUT,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    External,
    ModelInfo,
)
from damcli.data.labels import check_findings
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx

INFO_KEY, SEAL_KEY = "damcli", "damcli.sha256"
# Protobuf, and with it a single ONNX file, ends at 2 GiB.
MAX_BYTES = 2**31 - 1
# With more bytes of weights than this a model becomes two files.
MAX_INLINE = 1_800_000_000


class Opened(NamedTuple):
    """A verified model: its file's bytes, what it says of itself, and the second file, if its weights lie there."""

    data: bytes
    info: ModelInfo
    external: Path | None


@dataclass(frozen=True)
class Draft:
    """A model on its way to `path`. A large one's weights lie in `folder` already, `external` describes them."""

    path: Path
    model: onnx.ModelProto
    folder: Path | None
    external: External | None

    @property
    def source(self) -> bytes | Path:
        """What a session of ONNX Runtime can be started on: the model's bytes, or of a large one a file."""
        return self.model.SerializeToString() if self.folder is None else self.folder / self.path.name

    def publish(self, info: ModelInfo) -> ModelInfo:
        """Write the model, in place of one that was there, and return `info` with `external` filled in.

        Killed at any moment, the old model or the new one is whole.
        """
        info = info.model_copy(update={"external": self.external})
        data = packed(self.model, info)
        with _without_old_weights(self.path, self.external):
            if self.folder is None or self.external is None:
                with files.replacing(self.path) as draft:
                    draft.write_bytes(data)
                    read(draft)
            else:
                draft = self.folder / self.path.name
                _write_synced(draft, data)
                read(draft)
                (self.folder / self.external.file).replace(self.path.parent / self.external.file)
                draft.replace(self.path)
        return info


def write(path: Path, model: onnx.ModelProto, info: ModelInfo) -> ModelInfo:
    """Write a model to `path` whole or not at all, and return `info` with `external` filled in.

    `model` is changed: it gets the metadata, and large weights are moved out of it. Raises what `files.replacing`
    does, `UsageError` also where another damcli writes this model.
    """
    with drafted(path, model) as draft:
        return draft.publish(info)


@contextmanager
def drafted(path: Path, model: onnx.ModelProto) -> Iterator[Draft]:
    """Yield a draft of the model that `path` is to hold, to run it before it is published; see `write`.

    Without `Draft.publish` nothing of it stays. Memory is that of `model` (protobuf gives nothing back before the
    whole of it is gone) and of its largest tensor.
    """
    if sum(length for _, length in external.movable(model)) <= MAX_INLINE:
        yield Draft(path, model, None, None)
        return
    with files.disk_errors(path), _new_folder(path) as folder:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        weights = external.move_out(model, folder, path.name)
        _write_synced(folder / path.name, model.SerializeToString())
        yield Draft(path, model, folder, weights)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`, for one writer at a time; what a killed one left there is removed."""
    folder = path.parent / f".{path.name}.new"
    with files.only_writer(path.parent, path.name):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _without_old_weights(path: Path, new: External | None) -> Iterator[None]:
    """Remove afterwards the second file of the model that `path` holds now, unless another model refers to it."""

    def named(file: Path, model: Path) -> bool:
        return model.is_file() and os.fsencode(file.name) in model.read_bytes()

    pattern = glob.escape(path.name) + "." + "[0-9a-f]" * 8 + ".data"
    others = [model for model in path.parent.glob("*.onnx") if model.name != path.name]
    old = [
        file
        for file in path.parent.glob(pattern)
        if named(file, path) and not any(named(file, model) for model in others)
    ]
    yield
    for file in old:
        if new is None or file.name != new.file:
            file.unlink()


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


def read(path: Path) -> Opened:
    """Read a model and verify it, with its second file, without running anything; see `Model.open` for what is raised.

    The second file lies beside the model itself, also where `path` is a link to it; it is hashed, not loaded.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UsageError("there is no such model", where=path, fix="make one: damcli export")
    if path.stat().st_size > MAX_BYTES:
        raise DataError("this is no model of damcli: it is larger than 2 GiB", where=path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"this model cannot be read: {error.strerror}", where=path) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        model = onnx.ModelProto()
    if not model.HasField("graph"):
        raise DataError("this is no ONNX file, or it is damaged", where=path, fix="export it again: damcli export")
    # Where a text is none, protobuf gives bytes: here, and as any name below.
    properties = [(entry.key, entry.value) for entry in model.metadata_props]
    if INFO_KEY not in dict(properties):
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
        info = _info(dict(properties)[INFO_KEY])
        if [key for key, _ in properties] != [INFO_KEY, SEAL_KEY]:
            raise DataError("the model's metadata hold what damcli never writes")
        _verify(model, info)
        weights = None if info.external is None else external.find(info.external, path.resolve().parent)
    except DataError as error:
        raise DataError(error.what, where=path, fix=error.fix) from error
    return Opened(data, info, weights)


def _info(text: str | bytes) -> ModelInfo:
    try:
        values = json.loads(text)
        if isinstance(values, dict) and values.get("schema_version") not in READABLE_VERSIONS:
            raise DataError(
                f"the model's schema version {values.get('schema_version')!r} is unknown, this damcli reads"
                f" {SCHEMA_VERSION}",
                fix="update damcli, or export it again",
            )
        info = ModelInfo.model_validate(values)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and lists in lists in lists
        raise DataError("the model's metadata are damaged", fix="export it again: damcli export") from error
    check_findings(info.findings)
    return info


def _verify(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Refuse what damcli never writes into a model."""
    import onnx

    if model.functions:
        raise DataError("the model holds local functions, which damcli never writes")
    if model.training_info:
        raise DataError("the model holds steps of training, which damcli never writes")
    domains = [(opset.domain, "") for opset in model.opset_import]
    domains += [(node.domain, f".{node.op_type}") for graph in external.graphs(model.graph) for node in graph.node]
    for domain, operator in domains:
        if domain not in ("", "ai.onnx"):
            raise DataError(f"the model uses a custom operator: {ascii(f'{domain}{operator}')[1:-1][:80]}")
    external.check_references(model, info.external)
    contract = info.contract
    inputs = [(INPUT, onnx.TensorProto.UINT8, [None, contract.size, contract.size, contract.channels])]
    if info.encoding:
        inputs.append((METADATA, onnx.TensorProto.FLOAT, [None, info.encoding.width]))
    outputs = [(OUTPUT, onnx.TensorProto.FLOAT, [None, len(info.findings)])]
    if info.cams:
        outputs.append((CAMS, onnx.TensorProto.FLOAT, [None, len(info.findings), info.cams.height, info.cams.width]))
    if [_port(p) for p in model.graph.input] != inputs or [_port(p) for p in model.graph.output] != outputs:
        raise DataError("the model's inputs or outputs are not what its metadata say")


def _port(port: onnx.ValueInfoProto) -> tuple[str, int, list[int | None]]:
    """Return an input's or output's name, type and shape, None for a side that may be of any length."""
    tensor = port.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
    return port.name, tensor.elem_type, sides
