"""A model on OpenVINO: often faster on a CPU, in bf16 where the CPU has it. An extra; needs no torch.

Its scores are not those of ONNX Runtime, so export measures how far they are apart (`parity`), and a model runs on it
only where its AUROC stays.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from damcli.bundle.engines import Started, failures
from damcli.bundle.schema import INPUT, METADATA, OUTPUT, OpenVINOParity, Parity
from damcli.errors import MachineError
from damcli.metrics import auroc_shifts

if TYPE_CHECKING:
    import openvino

# Of the AUROC of a finding.
MAX_SHIFT = 1e-3
BATCH = 8


class OpenVINO:
    """An `Engine`: a model compiled for the CPU, in `precision`, that `streams` calls use at once."""

    def __init__(self, model: bytes | Path, precision: str, threads: int | None = None, streams: int = 1) -> None:
        core = _package().Core()
        self.precision = precision
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        settings |= {"NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads * streams
        with failures():
            self.compiled: openvino.CompiledModel = core.compile_model(core.read_model(model), "CPU", settings)
        # A request is used by one call at a time.
        self.free: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        with failures():
            try:
                request = self.free.get_nowait()
            except queue.Empty:
                request = self.compiled.create_infer_request()
            request.infer({name: np.ascontiguousarray(values) for name, values in inputs.items()}, share_inputs=True)
            found = [np.array(request.get_tensor(name).data) for name in outputs]
            self.free.put(request)
            return found


def _package() -> Any:
    """Import openvino without its telemetry, which calls Google Analytics when it is merely imported.

    A module that is None cannot be imported; openvino then takes a stub that does nothing.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def installed() -> bool:
    """Whether the package `openvino` is there (it is not imported)."""
    return importlib.util.find_spec("openvino") is not None


def precision() -> str:
    """Return what OpenVINO computes in on this CPU: bf16 where that is in hardware, else fp32."""
    return "bf16" if "BF16" in _package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"


def refusal(parity: Parity) -> str:
    """Return why a model may not run on OpenVINO, or ""."""
    found = parity.openvino
    if found is None:
        return "its scores were not compared with OpenVINO's at export"
    if found.auroc_difference is None:
        return "no AUROC was defined on the scans it was compared on at export"
    if not found.auroc_difference < MAX_SHIFT:
        return f"on OpenVINO the AUROC of a finding moved by {found.auroc_difference:.2g} at export"
    return ""


def start(model: bytes | Path, parity: Parity, threads: int | None, streams: int) -> Started:
    """Start a model on OpenVINO in the precision that export measured.

    Raises `MachineError` where it is not installed, was not measured, or moves the AUROC by `MAX_SHIFT` or more.
    """
    if not installed():
        raise MachineError("the package openvino is not installed", fix="pip install 'damcli[openvino]'")
    reason = refusal(parity)
    if reason or parity.openvino is None:
        raise MachineError(
            f"this model may not run on OpenVINO: {reason}",
            fix="export it again where openvino is installed, or choose --device cpu",
        )
    engine = OpenVINO(model, parity.openvino.precision, threads, streams)
    shift = parity.openvino.auroc_difference
    note = f"OpenVINO in {engine.precision}, as asked for: no AUROC moved by more than {shift:.2g} at export"
    return Started((engine,), f"OpenVINO {engine.precision}", note, False)


def parity(
    model: bytes | Path,
    images: NDArray[np.uint8],
    truth: NDArray[Any] | None,
    scores: NDArray[np.float32],
    metadata: NDArray[np.float32] | None = None,
) -> OpenVINOParity:
    """Compare OpenVINO's scores with ONNX Runtime's, (N, K), on the same scans, uint8 (N, H, W, C).

    `truth` is (N, K) of 0, 1 or NaN, `metadata` as `Model.run` takes it. Raises `MachineError` if OpenVINO cannot run
    the model, or gives scores that are no numbers.
    """
    engine = OpenVINO(model, precision())
    parts = []
    for first in range(0, len(images), BATCH):
        inputs: dict[str, NDArray[Any]] = {INPUT: images[first : first + BATCH]}
        if metadata is not None:
            inputs[METADATA] = metadata[first : first + BATCH]
        parts += engine.run(inputs, [OUTPUT])
    got = np.concatenate(parts)
    if not np.isfinite(got).all():
        raise MachineError("OpenVINO gives scores that are no numbers", fix="predict with --device cpu")
    shifts = np.empty(0) if truth is None else auroc_shifts(truth, scores, got)
    return OpenVINOParity(
        version=_package().get_version().split("-")[0],
        precision=engine.precision,
        max_difference=float(np.abs(got - scores).max()),
        auroc_difference=max(shifts[~np.isnan(shifts)].tolist(), default=None),
    )
