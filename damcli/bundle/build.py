"""Package one network or an ensemble as a single ONNX file with its card, once it is shown to equal PyTorch."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from damcli import __version__, files
from damcli.bundle import card, container, graph, mixing
from damcli.bundle.graph import Member, all_findings, common_contract
from damcli.bundle.mixing import Mixed
from damcli.bundle.parity import compare
from damcli.bundle.schema import CAMS, Cams, MemberInfo, MemberMetadata, ModelInfo, Precision
from damcli.data.labels import check_findings

if TYPE_CHECKING:
    import polars as pl

    from damcli.metrics.decisions import Decisions
    from damcli.metrics.drift import Reference

__all__ = ["Member", "Mixed", "all_findings", "check", "common_contract", "compare", "export"]


def export(
    members: Sequence[Member],
    path: Path,
    images: np.ndarray,
    truth: np.ndarray | None = None,
    metadata: pl.DataFrame | None = None,
    decisions: Decisions | None = None,
    reference: Reference | None = None,
    precision: Precision = "fp32",
    maps: bool = False,
    force: bool = False,
    licence: str = "",
    intended_use: str = "",
) -> ModelInfo:
    """Write the members as one model to `path`, its card beside it, and return what it says of itself.

    `images` are real scans, uint8 (N, S, S) or (N, S, S, 3) at the size of `common_contract`; `truth` their labels,
    (N, findings) of 0, 1 or NaN in the order of `all_findings`; `metadata` a table with a row per scan, for members
    that take it (without one all of it is missing). The calibration of `decisions` becomes part of the graph; its
    thresholds and the `reference`, which is of calibrated scores, are stored beside it. `maps` adds class activation
    maps (`cams`). Raises `GateError` where the graph does not agree with PyTorch (`parity.compare`, also for `force`;
    nothing is written then), `UsageError` for members that do not fit together, weights that make no mean, or maps
    that a backbone does not have, `DataError` for findings that cannot be columns.
    """
    check(members, maps)
    contract, findings = common_contract([member.contract for member in members]), all_findings(members)
    images = images.reshape(len(images), contract.size, contract.size, contract.channels)
    calibration = decisions.calibration if decisions else {}
    model = graph.assemble(members, calibration, precision, maps)
    with container.drafted(path, model) as draft:
        source = draft.source
        onnx.checker.check_model(source if isinstance(source, bytes) else str(source))
        parity = compare(members, source, images, truth, metadata, calibration, precision, maps, force)
        info = ModelInfo(
            damcli=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            findings=tuple(findings),
            contract=contract,
            members=tuple(
                MemberInfo(
                    backbone=m.network.backbone_name,
                    findings=tuple(m.findings),
                    size=m.contract.size,
                    views=1 if m.views is None else 1 + len(m.views),
                    weights=dict(m.weights),
                    metadata=m.metadata and MemberMetadata(encoding=m.metadata.encoding, weight=m.metadata.weight),
                    **m.provenance,
                )
                for m in members
            ),
            parity=parity,
            precision=precision,
            licence=licence,
            intended_use=intended_use,
            cams=_grid(model) if maps else None,
            decisions=decisions,
            reference=reference,
        )
        info = draft.publish(info)
    files.write_text(path.with_name(path.name + ".md"), card.text(info, path.name))
    return info


def check(members: Sequence[Member], maps: bool = False) -> None:
    """Raise what `export` does of members that make no model together."""
    common_contract([member.contract for member in members])
    graph.votes(members)
    for member in members:
        check_findings(member.findings)
        if maps:
            graph.grid(member)
    mixing.check([member.metadata for member in members if member.metadata])


def _grid(model: onnx.ModelProto) -> Cams:
    """Return the size of the maps that a graph gives."""
    [shape] = [port.type.tensor_type.shape for port in model.graph.output if port.name == CAMS]
    height, width = (side.dim_value for side in shape.dim[2:])
    return Cams(height=height, width=width)
