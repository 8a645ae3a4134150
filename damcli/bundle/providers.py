"""Which device ONNX Runtime runs a model on: the CPU, GPUs by CUDA, or by TensorRT. Needs no torch.

ONNX Runtime falls back to the CPU without an error, and says so partly on stdout: what a session runs on is asked of
the session, one scan is scored with it, and stdout is kept clean.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from damcli.bundle.engines import Engine, OnnxRuntime, Started, first_line
from damcli.bundle.schema import INPUT, OUTPUT
from damcli.errors import DataError, MachineError

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_NAMES = {CUDA: "CUDA", TENSORRT: "TensorRT"}
_GPU_PACKAGE = "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
_CUDA_OPTIONS = {
    # By default all algorithms are measured for every new size of a batch, which takes seconds each time.
    "cudnn_conv_algo_search": "HEURISTIC",
    # TF32 keeps 10 bits of a number, as fp16 does: the scores of an fp32 model would not be those of its parity.
    "use_tf32": "0",
    # By default the arena doubles, and takes twice the memory at the edge of what fits.
    "arena_extend_strategy": "kSameAsRequested",
}


def start(
    model: bytes,
    device: str = "auto",
    threads: int | None = None,
    where: object = None,
    folder: Path | None = None,
    fp16: bool = False,
) -> Started:
    """Start a verified graph on `auto`, `cpu`, `cuda` or `tensorrt`; where that does not run, on the next best.

    `threads` is what one call uses on the CPU (default: all cores), `folder` where the file with the graph's weights
    lies, `fp16` whether its networks compute in that. Raises `DataError` if ONNX Runtime refuses the graph.
    """
    with _stdout_kept_clean():
        reasons = []
        for provider in {"cpu": (), "tensorrt": (TENSORRT, CUDA)}.get(device, (CUDA,)):
            try:
                found, lost = _on_gpus(provider, model, folder, fp16)
            except Exception as error:
                # The bindings raise a dozen unrelated classes. If the graph is at fault, the CPU refuses it too.
                reasons.append(f"{_NAMES[provider]} does not run ({first_line(error)})")
            else:
                used = f"{len(found)} GPU{'s' if len(found) > 1 else ''} by {_NAMES[provider]}"
                reasons += lost
                return Started(tuple(found), provider, "; ".join([used, *reasons]), bool(reasons))
        try:
            engine = OnnxRuntime(_session(model, [CPU], threads, folder))
        except Exception as error:
            raise DataError(f"ONNX Runtime refuses this model: {first_line(error)}", where=where) from error
    if device == "cpu":
        return Started((engine,), CPU, "the CPU, as asked for", False)
    if device == "auto" and not gpus():
        return Started((engine,), CPU, "the CPU, since there is no NVIDIA GPU", False)
    return Started((engine,), CPU, "the CPU, since " + "; ".join(reasons), True)


def _on_gpus(provider: str, model: bytes, folder: Path | None, fp16: bool) -> tuple[list[Engine], list[str]]:
    """Start a session on every GPU; return those that run, and why others do not. Raises if none does."""
    import onnxruntime as ort

    if not gpus():
        raise MachineError("no NVIDIA GPU was found: does nvidia-smi show one?")
    if provider not in ort.get_available_providers():
        raise MachineError(f"this onnxruntime lacks it: {_GPU_PACKAGE}")
    # Finds the CUDA libraries that came with torch's wheels, without importing torch.
    ort.preload_dlls()
    chain: list[tuple[str, dict[str, str]]] = [(CUDA, _CUDA_OPTIONS)]
    if provider == TENSORRT:
        # It would take TF32 too, and there is no option against it.
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        with suppress(ImportError):
            import tensorrt  # noqa: F401 - loads the libraries of NVIDIA's wheel
        chain.insert(0, (TENSORRT, _tensorrt_options(model, fp16)))
    engines: list[Engine] = []
    lost = []
    for number in range(gpus()):
        own = [(name, {**options, "device_id": str(number)}) for name, options in chain]
        try:
            engines.append(_on_gpu(provider, _session(model, [*own, CPU], None, folder)))
        except Exception as error:
            # One of several may be too old, or full.
            lost.append(f"GPU {number} does not run ({first_line(error)})")
    if not engines:
        raise MachineError("; ".join(lost))
    return engines, lost


def _on_gpu(provider: str, session: onnxruntime.InferenceSession) -> Engine:
    """Score one scan. Raises `MachineError` if the session runs elsewhere, or fails."""
    if session.get_providers()[0] != provider:
        raise MachineError(f"ONNX Runtime fell back, its libraries did not load: {_GPU_PACKAGE}")
    engine = OnnxRuntime(session)
    engine.run({port.name: _blank(port) for port in session.get_inputs()}, [OUTPUT])
    return engine


def _tensorrt_options(model: bytes, fp16: bool) -> dict[str, str]:
    """Return options under which what TensorRT builds is kept, since that takes it minutes."""
    folder = cache_folder() / "tensorrt" / hashlib.sha256(model).hexdigest()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(int(fp16)),
    }


def _session(
    model: bytes, providers: Sequence[Any], threads: int | None, folder: Path | None
) -> onnxruntime.InferenceSession:
    """Start a session. Of all settings for the CPU only two others matter, and both are the default.

    DenseNet121 at 320, one thread, batch 8, core-seconds beside the default: without the arena 1.1 to 1.2, without
    layouts in blocks of channels (ENABLE_EXTENDED) 1.3, denormals as zero, no memory pattern, another order of
    execution, huge pages 1.0.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that wait by spinning would take the cores from the processes that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model, options, providers=list(providers))


def _blank(port: Any) -> np.ndarray:
    """Return one black scan, or one row of zeros, for an input."""
    return np.zeros((1, *port.shape[1:]), np.uint8 if port.name == INPUT else np.float32)


def tried() -> str:
    """Say what ONNX Runtime really runs on here, by starting it on a graph of one node."""
    from onnx import TensorProto, helper

    ports = [
        helper.make_tensor_value_info(name, kind, ["N", 1])
        for name, kind in ((INPUT, TensorProto.UINT8), (OUTPUT, TensorProto.FLOAT))
    ]
    node = helper.make_node("Cast", [INPUT], [OUTPUT], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "one", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 20)]
    return start(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()).note


def cache_folder() -> Path:
    """Return the folder for what damcli can make again, by the platform's convention."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "damcli")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "damcli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "damcli")


def gpus() -> int:
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
