"""Calibration in the graph: scores become probabilities column by column, as `Calibration.apply` makes them.

In double, so that no scores become equal but those that the output's float32 cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from damcli.metrics.calibration import OWN, SUREST, Calibration


def nodes(
    calibration: Mapping[str, Calibration], findings: Sequence[str], scores: str, output: str, prefix: str
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return nodes from `scores` to `output`, both float (N, K), and their constants; other names are under `prefix`.

    Columns are in the order of `findings`; those of findings without a calibration come out as they are.
    """
    assert set(calibration) <= set(findings), "a calibration of a finding that the model does not have"
    columns: dict[str, list[int]] = {}
    for k, finding in enumerate(findings):
        found = calibration.get(finding)
        kind = "plain" if found is None else "knots" if found.method == "isotonic" else "sigmoid"
        columns.setdefault(kind, []).append(k)
    part, parts = _Part(prefix), []
    for kind, places in columns.items():
        own = part.node("Gather", [scores, part.constant(f"{kind}.columns", places, np.int64)], f"{kind}.own", axis=1)
        if kind != "plain":
            own = part.node("Cast", [own], f"{kind}.double", to=TensorProto.DOUBLE)
            chosen = [calibration[findings[k]] for k in places]
            own = _sigmoids(part, own, chosen) if kind == "sigmoid" else _knots(part, own, chosen)
            own = part.node("Cast", [own], f"{kind}.float", to=TensorProto.FLOAT)
        parts.append(own)
    beside = part.node("Concat", parts, "beside", axis=1)
    back = part.constant("back", np.argsort(np.concatenate(list(columns.values()))), np.int64)
    part.nodes.append(helper.make_node("Gather", [beside, back], [output], axis=1))
    return part.nodes, part.constants


class _Part:
    """Nodes and constants whose names are under a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, value: Any, kind: type = np.float64) -> str:
        self.constants[self.prefix + name] = np.asarray(value, kind)
        return self.prefix + name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [self.prefix + output], **attributes))
        return self.prefix + output


def _sigmoids(part: _Part, p: str, chosen: Sequence[Calibration]) -> str:
    """Temperature and Platt scaling of `p`, double (N, K)."""
    one = part.constant("one", 1)
    near = part.node("Clip", [p, *(part.constant(f"surest.{end}", value) for end, value in enumerate(SUREST))], "near")
    rest = part.node("Log", [part.node("Sub", [one, near], "rest")], "rest.log")
    logits = part.node("Sub", [part.node("Log", [near], "log"), rest], "logits")
    steep = part.node("Mul", [logits, part.constant("slopes", [each.slope for each in chosen])], "steep")
    moved = part.node("Add", [steep, part.constant("intercepts", [each.intercept for each in chosen])], "moved")
    # Not the operator Sigmoid, whose rounding differs between devices and versions.
    odds = part.node("Exp", [part.node("Neg", [moved], "against")], "odds")
    q = part.node("Div", [one, part.node("Add", [one, odds], "all")], "q")
    gap = part.node("Mul", [part.node("Sub", [p, q], "gap"), part.constant("share", OWN)], "own.gap")
    return part.node("Add", [q, gap], "sigmoid")


def _knots(part: _Part, p: str, chosen: Sequence[Calibration]) -> str:
    """Isotonic regression of `p`, double (N, K): the first knot, and of each stretch what it has risen up to there."""
    stretches = max(len(each.knots_x) for each in chosen) - 1
    starts, widths, rises = (np.full((len(chosen), stretches), filling) for filling in (2.0, 1.0, 0.0))
    for row, each in enumerate(chosen):
        own = slice(len(each.knots_x) - 1)  # the others begin beyond all scores, and do not rise
        starts[row, own], widths[row, own] = each.knots_x[:-1], np.diff(each.knots_x)
        rises[row, own] = np.diff(each.knots_y)
    last = part.constant("last", [2], np.int64)
    from_start = part.node("Sub", [part.node("Unsqueeze", [p, last], "deep"), part.constant("starts", starts)], "from")
    way = part.node("Div", [from_start, part.constant("widths", widths)], "way")
    inside = part.node("Clip", [way, part.constant("nothing", 0), part.constant("whole", 1)], "inside")
    risen = part.node("Mul", [inside, part.constant("rises", rises)], "risen")
    total = part.node("ReduceSum", [risen, last], "total", keepdims=0)
    return part.node("Add", [total, part.constant("firsts", [each.knots_y[0] for each in chosen])], "knotted")
