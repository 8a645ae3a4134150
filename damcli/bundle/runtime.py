"""A packaged model: open it, choose the device, score scans. Needs no torch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from damcli.bundle import container
from damcli.bundle.schema import INPUT, METADATA, OUTPUT, MemberInfo, ModelInfo, Parity
from damcli.errors import DataError, MachineError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CPU", "CUDA", "MemberInfo", "Model", "ModelInfo", "Parity", "read_info", "run", "start"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Model:
    """An opened model. `provider` is what ONNX Runtime really runs on; `provider_note` says why, where it is the CPU.

    `fell_back` is true where a GPU was asked for or is there, and the CPU is used all the same.
    """

    info: ModelInfo
    provider: str
    provider_note: str
    fell_back: bool
    session: onnxruntime.InferenceSession

    @classmethod
    def open(cls, path: Path, device: str = "auto", require_gpu: bool = False, threads: int | None = None) -> Model:
        """Open and verify a model; `threads` is the number of CPU threads one call of `score` uses (default: all).

        Raises `UsageError` if there is no such file, `DataError` if it is no ONNX file, not damcli's, changed since
        its export, from an unknown schema, or holds what damcli never writes (external data, custom operators, local
        functions, other inputs or outputs), `MachineError` if `require_gpu` and the session does not run on a GPU.
        """
        data, info = container.read(path)
        session, note, fell_back = start(data, device, threads, where=path)
        provider = session.get_providers()[0]
        if require_gpu and provider == CPU:
            raise MachineError(f"a GPU is required: {note}", fix="see damcli info doctor, or leave out --require-gpu")
        return cls(info, provider, note, fell_back, session)

    def score(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
        """Score scans: uint8 (N, size, size, channels), or (N, size, size) where channels is 1, to float32 (N, K).

        `metadata` are the scans' rows by `info.encoding`, float32 (N, width), for a model that takes them; without
        them all is missing. Scores are in [0, 1], columns in the order of `info.findings`. Safe to call from several
        threads at once.
        """
        contract = self.info.contract
        shape = (contract.size, contract.size, contract.channels)
        shapes = (shape, shape[:2]) if contract.channels == 1 else (shape,)
        if images.dtype != np.uint8 or images.shape[1:] not in shapes:
            raise ValueError(f"images must be uint8 (N, {shape}), got {images.dtype} {images.shape}")
        return run(
            self.session,
            images.reshape(len(images), *shape),
            len(self.info.findings),
            self._rows(len(images), metadata),
        )

    def _rows(self, scans: int, metadata: np.ndarray | None) -> np.ndarray | None:
        encoding = self.info.encoding
        if encoding is None:
            if metadata is not None:
                raise ValueError("this model takes no metadata")
            return None
        if metadata is None:
            return np.repeat(encoding.nothing[None], scans, axis=0)
        if metadata.dtype != np.float32 or metadata.shape != (scans, encoding.width):
            raise ValueError(
                f"metadata must be float32 {(scans, encoding.width)}, got {metadata.dtype} {metadata.shape}"
            )
        return metadata


def read_info(path: Path) -> ModelInfo:
    """Verify a model file and return what it says of itself; raises what `Model.open` does, short of running it."""
    return container.read(path)[1]


def run(
    session: onnxruntime.InferenceSession, images: np.ndarray, findings: int, metadata: np.ndarray | None = None
) -> np.ndarray:
    """Run a session on uint8 (N, H, W, C), and float32 (N, D) where it takes metadata, to float32 (N, findings).

    Inputs and outputs are bound to the device.
    """
    if not len(images):
        return np.empty((0, findings), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT, np.ascontiguousarray(images))
    if metadata is not None:
        binding.bind_cpu_input(METADATA, np.ascontiguousarray(metadata))
    binding.bind_output(OUTPUT, "cpu")
    session.run_with_iobinding(binding)
    return np.asarray(binding.copy_outputs_to_cpu()[0])


def start(
    data: bytes, device: str, threads: int | None, where: object = None
) -> tuple[onnxruntime.InferenceSession, str, bool]:
    """Start a session on a verified graph; returns it, why it runs on the CPU (or ""), and whether it fell back.

    ONNX Runtime falls back to the CPU without an error: only the session's providers tell.
    """
    with _stdout_kept_clean():
        import onnxruntime as ort

        wanted, note = _provider(device, ort.get_available_providers())
        if wanted == CUDA:
            # Finds the CUDA libraries that came with torch's wheels, without importing torch.
            ort.preload_dlls()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Threads that wait by spinning would take the cores from the processes that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(data, options, providers=list(dict.fromkeys([wanted, CPU])))
        except Exception as error:
            # The bindings raise a dozen unrelated classes, one per status code.
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"ONNX Runtime refuses this model: {reason}", where=where) from error
    if wanted == CUDA and session.get_providers()[0] != CUDA:
        note = "ONNX Runtime fell back to the CPU: its CUDA libraries did not load"
    return session, note, bool(note) and (device == "cuda" or wanted == CUDA or _gpus() > 0)


def _provider(device: str, available: list[str]) -> tuple[str, str]:
    if device == "cpu":
        return CPU, ""
    if CUDA not in available:
        return CPU, "this onnxruntime has no CUDA (it needs the package onnxruntime-gpu alone)"
    if not _gpus():
        return CPU, "no NVIDIA GPU was found"
    return CUDA, ""


def _gpus() -> int:
    """Return how many NVIDIA GPUs the driver offers; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return 0 if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send to stderr what is written to stdout meanwhile: ONNX Runtime logs there, from native code and from Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
