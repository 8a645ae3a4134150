"""Package one network or an ensemble as a single ONNX file with its card, once it is shown to equal PyTorch."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from damcli import __version__, files
from damcli.bundle import card, container, graph, mixing, runtime
from damcli.bundle.graph import Member, all_findings, common_contract
from damcli.bundle.mixing import Mixed
from damcli.bundle.schema import MemberInfo, MemberMetadata, ModelInfo, Parity, check_findings, side_by_side
from damcli.data import augment
from damcli.deepauc.network import Classifier
from damcli.errors import DataError, GateError, UsageError
from damcli.metrics import auroc
from damcli.metrics.calibration import Calibration, calibrated

if TYPE_CHECKING:
    import polars as pl

    from damcli.metrics.decisions import Decisions
    from damcli.metrics.drift import Reference

__all__ = ["Member", "Mixed", "all_findings", "common_contract", "compare", "export"]

# Scores are in [0, 1]; what was seen between PyTorch and ONNX Runtime on the CPU is below 1e-5.
TOLERANCE = 1e-4
# Beyond this a single file comes near protobuf's 2 GiB.
MAX_WEIGHTS = 1_800_000_000
BATCH = 16


def export(
    members: Sequence[Member],
    path: Path,
    images: np.ndarray,
    truth: np.ndarray | None = None,
    metadata: pl.DataFrame | None = None,
    decisions: Decisions | None = None,
    reference: Reference | None = None,
) -> Parity:
    """Write the members as one model to `path`, its card beside it, and return how it compares with PyTorch.

    `images` are real scans, uint8 (N, S, S) or (N, S, S, 3) at the size of `common_contract`; `truth` their labels,
    (N, findings) of 0, 1 or NaN in the order of `all_findings`; `metadata` a table with a row per scan, for members
    that take it (without one all of it is missing). The calibration of `decisions` becomes part of the graph; its
    thresholds and the `reference`, which is of calibrated scores, are stored beside it. Raises `GateError` where a
    score differs from PyTorch's by more than 1e-4 (nothing is written then), `UsageError` for members that do not fit
    together or are larger than one ONNX file can be, `DataError` for findings that cannot be columns.
    """
    contract = common_contract([member.contract for member in members])
    findings = all_findings(members)
    for member in members:
        check_findings(member.findings)
    mixing.check([member.metadata for member in members if member.metadata])
    weights = sum(t.numel() * t.element_size() for m in members for t in m.network.state_dict().values())
    if weights > MAX_WEIGHTS:
        raise UsageError(
            f"the weights take {weights / 1e9:.1f} GB, one ONNX file holds {MAX_WEIGHTS / 1e9:.1f}",
            fix="export fewer runs at a time",
        )
    images = images.reshape(len(images), contract.size, contract.size, contract.channels)
    calibration = decisions.calibration if decisions else {}
    model = graph.assemble(members, calibration)
    parity = compare(members, model.SerializeToString(), images, truth, metadata, calibration)
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
                metadata=m.metadata and MemberMetadata(encoding=m.metadata.encoding, weight=m.metadata.weight),
                **m.provenance,
            )
            for m in members
        ),
        parity=parity,
        decisions=decisions,
        reference=reference,
    )
    with files.replacing(path) as draft:
        draft.write_bytes(container.packed(model, info))
        container.read(draft)
    files.write_text(path.with_name(path.name + ".md"), card.text(info, path.name))
    return parity


def compare(
    members: Sequence[Member],
    model: bytes,
    images: np.ndarray,
    truth: np.ndarray | None,
    metadata: pl.DataFrame | None = None,
    calibration: Mapping[str, Calibration] | None = None,
) -> Parity:
    """Score the scans by PyTorch and by ONNX Runtime on the CPU. Raises `GateError` above the tolerance.

    Where a calibration is steep a difference grows with it: what the tolerance becomes there is allowed as well.
    """
    if not len(images):
        raise DataError("there are no scans to compare PyTorch and ONNX Runtime on")
    findings = all_findings(members)
    scored = np.concatenate(list(_by_torch(members, images, metadata)))
    session, _, _ = runtime.start(model, "cpu", None)
    encoding = side_by_side([member.metadata.encoding for member in members if member.metadata])
    rows = None if encoding is None else mixing.rows(encoding, len(images), metadata)
    got = np.concatenate(
        [
            runtime.run(session, images[part], len(findings), None if rows is None else rows[part])
            for part in _batches(len(images))
        ]
    )
    below, expected, above = (
        calibrated(calibration or {}, findings, (scored + shift).clip(0, 1)) for shift in (-TOLERANCE, 0, TOLERANCE)
    )
    allowed = np.maximum(TOLERANCE, np.maximum(above - expected, expected - below))
    difference = np.abs(got - expected)
    worst = difference.max(0)
    # A comparison with NaN is false, so that NaN does not pass.
    if not (difference <= allowed).all():
        beyond = np.where(np.isnan(difference), np.inf, difference - allowed)
        column = int(np.argmax(beyond.max(0)))
        raise GateError(
            f"ONNX Runtime's scores differ from PyTorch's by {worst[column]:.2g}, more than {TOLERANCE:g}:"
            " nothing was written",
            where=f"finding {findings[column]}, {len(images)} scans",
            fix="report this with the backbone's name and the versions that damcli info doctor shows",
        )
    shifts = []
    if truth is not None:
        pairs = [(auroc(t, e), auroc(t, g)) for t, e, g in zip(truth.T, expected.T, got.T, strict=True)]
        shifts = [abs(e - g) for e, g in pairs if not np.isnan(e)]
    return Parity(
        scans=len(images),
        max_difference=float(worst.max()),
        tolerance=TOLERANCE,
        auroc_difference=max(shifts, default=None),
    )


def _batches(scans: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, scans, BATCH)]


def _by_torch(members: Sequence[Member], images: np.ndarray, metadata: pl.DataFrame | None) -> Iterator[np.ndarray]:
    """Yield the ensemble's scores by the path that training takes; resizing by OpenCV, not by our matrices."""
    findings = all_findings(members)
    for part in _batches(len(images)):
        batch = images[part]
        sums, voters = np.zeros((len(batch), len(findings))), np.zeros(len(findings))
        for member in members:
            columns = [findings.index(finding) for finding in member.findings]
            pixels = _resized(batch, member.contract.size)
            with torch.no_grad():
                scores = torch.stack(
                    [member.network(seen).sigmoid().double() for seen in augment.seen(pixels, member.views)]
                )
            mean = scores.mean(0)
            if own := member.metadata:
                rows = torch.from_numpy(mixing.rows(own.encoding, len(images), metadata)[part])
                with torch.no_grad():
                    mean = (1 - own.weight) * mean + own.weight * own.network(rows).sigmoid().double()
            sums[:, columns] += mean.numpy()
            voters[columns] += 1
        yield sums / voters


def _resized(images: np.ndarray, size: int) -> torch.Tensor:
    import cv2

    if images.shape[-1] == 1:
        images = images[..., 0]
    pixels = Classifier.as_input(torch.from_numpy(images))
    if size == images.shape[1]:
        return pixels
    planes = pixels.flatten(0, 1).numpy()
    smaller = np.stack([cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in planes])
    return torch.from_numpy(smaller).reshape(*pixels.shape[:2], size, size)
