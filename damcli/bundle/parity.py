"""Parity: a finished graph's scores on real scans beside PyTorch's, and what is not let through."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from damcli.bundle import mixing, openvino, providers
from damcli.bundle.cams import Mapped
from damcli.bundle.graph import Member, all_findings, votes
from damcli.bundle.schema import CAMS, INPUT, METADATA, OUTPUT, OpenVINOParity, Parity, Precision, side_by_side
from damcli.data import augment
from damcli.deepauc.network import Classifier
from damcli.errors import DataError, GateError, MachineError
from damcli.metrics import auroc_shifts
from damcli.metrics.calibration import Calibration, calibrated

if TYPE_CHECKING:
    import polars as pl

# Scores are in [0, 1]; what was seen between PyTorch and ONNX Runtime on the CPU is below 1e-5.
TOLERANCE = 1e-4
# Of an AUROC, in half precision: its scores differ more than that, their order hardly.
SHIFT = 1e-3
# Of the largest value of a class activation map; half precision has 11 bits, and rounds at every layer.
MAPS_TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}
BATCH = 16
REPORT = "report this with the backbone's name and the versions that damcli info doctor shows"


def compare(
    members: Sequence[Member],
    model: bytes | Path,
    images: np.ndarray,
    truth: np.ndarray | None,
    metadata: pl.DataFrame | None = None,
    calibration: Mapping[str, Calibration] | None = None,
    precision: Precision = "fp32",
    maps: bool = False,
    force: bool = False,
) -> Parity:
    """Score the scans by PyTorch in fp32 and by ONNX Runtime on the CPU; arguments as of `build.export`.

    Raises `GateError` in fp32 for scores (and class activation maps) that differ beyond the tolerance: where a
    calibration is steep a difference grows with it, and what the tolerance becomes there is allowed as well. In fp16
    for an AUROC that moves by more than `SHIFT`, there or as a GPU computes it, and where no finding has both classes,
    so that nothing can be told, unless forced. For scores that are no numbers always. OpenVINO's scores are measured
    too, where it can run.
    """
    if not len(images):
        raise DataError("there are no scans to compare PyTorch and ONNX Runtime on")
    findings = all_findings(members)
    source, folder = (model, None) if isinstance(model, bytes) else (model.read_bytes(), model.parent)
    engine = providers.start(source, "cpu", folder=folder).engines[0]
    encoding = side_by_side([member.metadata.encoding for member in members if member.metadata])
    rows = None if encoding is None else mixing.rows(encoding, len(images), metadata)
    scored, got = [], []
    for part, values in zip(_batches(len(images)), _by_torch(members, images, metadata), strict=True):
        inputs = {INPUT: images[part]} | ({} if rows is None else {METADATA: rows[part]})
        results = engine.run(inputs, [OUTPUT, CAMS] if maps else [OUTPUT])
        scored.append(values)
        got.append(results[0])
        if maps:
            _check_maps(results[1], _maps_by_torch(members, images[part]), precision)
    pytorch, ours = np.concatenate(scored), np.concatenate(got)
    below, expected, above = (
        calibrated(calibration or {}, findings, (pytorch + shift).clip(0, 1)) for shift in (-TOLERANCE, 0, TOLERANCE)
    )
    difference = np.abs(ours - expected)
    shifts, forced = _shifts(findings, truth, expected, ours), ""
    if precision == "fp32":
        _check_scores(findings, difference, np.maximum(TOLERANCE, np.maximum(above - expected, expected - below)))
    else:
        halved = np.concatenate(list(_by_torch([_halved(member) for member in members], images, metadata)))
        for differing in (difference, np.abs(halved - pytorch)):
            _check_scores(findings, differing, np.full_like(differing, np.inf))
        halved = calibrated(calibration or {}, findings, halved)
        difference = np.maximum(difference, np.abs(halved - expected))
        beside = _shifts(findings, truth, expected, halved)
        shifts = {finding: max(shift, beside[finding]) for finding, shift in shifts.items()}
        forced = _judge(shifts, len(images), force)
    openvinos, why = _by_openvino(model, images, truth, ours, rows)
    return Parity(
        scans=len(images),
        max_difference=float(difference.max()),
        tolerance=TOLERANCE if precision == "fp32" else None,
        auroc_difference=max(shifts.values(), default=None),
        forced=forced,
        openvino=openvinos,
        openvino_note=why,
    )


def _by_openvino(
    model: bytes | Path,
    images: np.ndarray,
    truth: np.ndarray | None,
    scores: np.ndarray,
    rows: np.ndarray | None,
) -> tuple[OpenVINOParity | None, str]:
    """Return how far OpenVINO's scores are from ONNX Runtime's, or why that is not known."""
    if not openvino.installed():
        return None, "it was not installed"
    try:
        return openvino.parity(model, images, truth, scores, rows), ""
    except MachineError:
        # Of test-time augmentation for one: it has no operator Scan with constant inputs.
        return None, "it could not run this model"


def _check_scores(findings: Sequence[str], difference: np.ndarray, allowed: np.ndarray) -> None:
    # A comparison with NaN is false, so that NaN does not pass.
    if (difference <= allowed).all():
        return
    beyond = np.where(np.isnan(difference), np.inf, difference - allowed)
    column = int(np.argmax(beyond.max(0)))
    raise GateError(
        f"ONNX Runtime's scores differ from PyTorch's by {difference.max(0)[column]:.2g}, more than {TOLERANCE:g}:"
        " nothing was written",
        where=f"finding {findings[column]}, {len(difference)} scans",
        fix=REPORT,
    )


def _shifts(
    findings: Sequence[str], truth: np.ndarray | None, expected: np.ndarray, got: np.ndarray
) -> dict[str, float]:
    """Return how far the AUROC of each finding moved, of those that have both classes."""
    if truth is None or np.isnan(got).any():
        return {}
    moved = zip(findings, auroc_shifts(truth, expected, got).tolist(), strict=True)
    return {finding: shift for finding, shift in moved if not np.isnan(shift)}


def _judge(shifts: Mapping[str, float], scans: int, force: bool) -> str:
    """Return what was forced, in words; "" where half precision keeps the AUROCs. Raises `GateError` if not forced."""
    moved = {finding: shift for finding, shift in shifts.items() if not shift <= SHIFT}
    if moved:
        worst = max(moved, key=lambda finding: moved[finding])
        what = f"in fp16 the AUROC of {worst} moves by {moved[worst]:.2g} on {scans} scans, more than {SHIFT:g}"
    elif not shifts:
        what = f"what fp16 does to an AUROC cannot be told: no finding has both classes among {scans} scans"
    else:
        return ""
    if not force:
        raise GateError(
            f"{what}: nothing was written",
            where="--precision fp16",
            fix="export in fp32, compare on more labelled scans (--dataset), or --force",
        )
    return what


def _batches(scans: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, scans, BATCH)]


def _by_torch(members: Sequence[Member], images: np.ndarray, metadata: pl.DataFrame | None) -> Iterator[np.ndarray]:
    """Yield the ensemble's scores by the path that training takes; resizing by OpenCV, not by our matrices."""
    weights = votes(members)
    for part in _batches(len(images)):
        scores = []
        for member in members:
            pixels = _resized(images[part], member.contract.size)
            with torch.no_grad():
                seen = [member.network(view).sigmoid().double() for view in augment.seen(pixels, member.views)]
            mean = torch.stack(seen).mean(0)
            if own := member.metadata:
                rows = torch.from_numpy(mixing.rows(own.encoding, len(images), metadata)[part])
                with torch.no_grad():
                    mean = (1 - own.weight) * mean + own.weight * own.network(rows).sigmoid().double()
            scores.append(mean.numpy())
        yield np.concatenate(scores, 1) @ weights / weights.sum(0)


@torch.no_grad()
def _maps_by_torch(members: Sequence[Member], images: np.ndarray) -> np.ndarray:
    """Return the ensemble's class activation maps (N, K, h, w), enlarged by PyTorch, not by our matrices."""
    maps = [Mapped(member.network)(_resized(images, member.contract.size))[1] for member in members]
    size = [max(sides) for sides in zip(*(one.shape[2:] for one in maps), strict=True)]
    beside = chain.from_iterable(_enlarged(one, size).unbind(1) for one in maps)
    weights = votes(members)
    mean: np.ndarray = np.einsum("mnhw,mk->nkhw", np.stack(list(beside)), weights / weights.sum(0))
    return mean


def _enlarged(maps: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _halved(member: Member) -> Member:
    """Return a member whose network computes as a GPU does in half precision.

    ONNX Runtime's CPU will not do: it has few operators for float16, and computes the others in float32. A GPU adds up
    in float32 and rounds what an operator returns, so here weights and what each layer returns are rounded; the last
    layer, as in the graph, is not.
    """
    network = copy.deepcopy(member.network)
    last = network.backbone.get_classifier()

    def rounded(_: Any, __: Any, output: Any) -> Any:
        return output.half().float() if isinstance(output, Tensor) else output

    for module in network.modules():
        if module is not last:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.half().float() if tensor.is_floating_point() else tensor.data
            if not list(module.children()):
                module.register_forward_hook(rounded)
    return replace(member, network=network)


def _check_maps(got: np.ndarray, expected: np.ndarray, precision: Precision) -> None:
    difference = np.abs(got - expected).max()
    # A comparison with NaN is false, so that NaN does not pass.
    if got.shape != expected.shape or not difference <= MAPS_TOLERANCE[precision] * max(1, np.abs(expected).max()):
        raise GateError(
            f"ONNX Runtime's class activation maps differ from PyTorch's by {difference:.2g}: nothing was written",
            where="--cam",
            fix=REPORT,
        )


def _resized(images: np.ndarray, size: int) -> Tensor:
    import cv2

    if images.shape[-1] == 1:
        images = images[..., 0]
    pixels = Classifier.as_input(torch.from_numpy(images))
    if size == images.shape[1]:
        return pixels
    planes = pixels.flatten(0, 1).numpy()
    smaller = np.stack([cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in planes])
    return torch.from_numpy(smaller).reshape(*pixels.shape[:2], size, size)
