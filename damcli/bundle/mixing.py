"""The metadata network of a member in the graph: its part of the input `metadata`, three layers, and the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from damcli.bundle.schema import METADATA
from damcli.data.metadata import Encoding
from damcli.deepauc.metadata import MetadataNetwork
from damcli.errors import UsageError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Mixed:
    """A member's metadata network, whose outputs are the member's findings; `weight` is that of its score."""

    network: MetadataNetwork
    encoding: Encoding
    weight: float


def check(parts: Sequence[Mixed]) -> None:
    """Raise `UsageError` where a column is one of numbers to one member and of categories to another.

    The members' encodings lie side by side, each with its own means and categories: those of other folds differ.
    """
    kinds: dict[str, str] = {}
    for column in (column for part in parts for column in part.encoding.columns):
        if kinds.setdefault(column.column, column.kind) != column.kind:
            raise UsageError(
                f"these runs are no one model: the column {column.column!r} is of numbers to one, of text to another",
                fix="export them one by one",
            )


def rows(encoding: Encoding, scans: int, table: pl.DataFrame | None) -> np.ndarray:
    """Return the encoded metadata (N, width) of `scans` scans, all of it missing where there is no table."""
    return np.repeat(encoding.nothing[None], scans, axis=0) if table is None else encoding.encode(table)


def nodes(part: Mixed, images: str, start: int, prefix: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """Return nodes that mix `images`, scores (N, K), with those of the metadata, their constants, and their output.

    The member's values begin at `start` in the input. Names are under `prefix`.
    """
    constants = {"start": np.array([start]), "end": np.array([start + part.encoding.width]), "axis": np.array([1])}
    made = [helper.make_node("Slice", [METADATA, *(prefix + name for name in constants)], [prefix + "rows"])]

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        made.append(helper.make_node(kind, list(inputs), [prefix + output], **attributes))
        return prefix + output

    at = prefix + "rows"
    for number, layer in enumerate(part.network.layers):
        weight, bias = f"weight{number}", f"bias{number}"
        constants |= {name: value.detach().numpy() for name, value in ((weight, layer.weight), (bias, layer.bias))}
        at = node("Gemm", [at, prefix + weight, prefix + bias], f"linear{number}", transB=1)
        last = number == len(part.network.layers) - 1
        at = node("Sigmoid" if last else "Relu", [at], f"out{number}")
    constants |= {"share": np.float32([part.weight]), "rest": np.float32([1 - part.weight])}
    terms = [node("Mul", [at, prefix + "share"], "own"), node("Mul", [images, prefix + "rest"], "images")]
    output = node("Add", terms, "mixed")
    return made, {prefix + name: value for name, value in constants.items()}, output
