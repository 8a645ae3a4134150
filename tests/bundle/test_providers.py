"""What a model runs on is what its session says, and why is always said."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from damcli.bundle import providers
from damcli.bundle.engines import OutOfMemory, failures
from damcli.bundle.runtime import CPU, CUDA, TENSORRT, Model
from damcli.errors import MachineError

without_gpu = pytest.mark.skipif(providers.gpus() > 0, reason="this machine has a GPU")


@without_gpu
@pytest.mark.parametrize(
    ("device", "fell_back", "note"),
    [
        ("cpu", False, "as asked for"),
        ("auto", False, "no NVIDIA GPU"),
        ("cuda", True, "CUDA does not run (no NVIDIA GPU was found: does nvidia-smi"),
        ("tensorrt", True, "; CUDA does not run (no NVIDIA GPU was found"),
    ],
)
def test_without_a_gpu_the_cpu_is_taken_and_said(model_file, capfd, device, fell_back, note):
    model = Model.open(model_file, device)
    assert (model.provider, model.devices, model.fell_back) == (CPU, 1, fell_back)
    assert model.provider_note.startswith("the CPU, ")
    assert note in model.provider_note
    assert capfd.readouterr().out == ""


@without_gpu
@pytest.mark.parametrize("device", ["auto", "cuda", "openvino"])
def test_a_gpu_that_is_required_and_not_there_is_exit_5(model_file, device):
    with pytest.raises(MachineError) as caught:
        Model.open(model_file, device, require_gpu=True)
    assert caught.value.exit_code == 5


@without_gpu
@pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
def test_a_silent_fall_back_of_onnx_runtime_is_seen_in_the_session(model_file, draw, monkeypatch, capfd, device):
    expected = Model.open(model_file, "cpu").score(draw(2))
    monkeypatch.setattr(providers, "gpus", lambda: 2)
    model = Model.open(model_file, device)
    assert (model.provider, model.fell_back) == (CPU, True)
    assert "ONNX Runtime fell back" in model.provider_note
    np.testing.assert_array_equal(model.score(draw(2)), expected)
    assert capfd.readouterr().out == ""
    with pytest.raises(MachineError, match="a GPU is required.*fell back"):
        Model.open(model_file, device, require_gpu=True)


def test_an_onnxruntime_without_cuda_is_said_with_what_to_install(model_file, monkeypatch):
    monkeypatch.setattr(providers, "gpus", lambda: 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    model = Model.open(model_file, "auto")
    assert (model.provider, model.fell_back) == (CPU, True)
    assert "pip install onnxruntime-gpu" in model.provider_note


# As seen in issues of these libraries, and in their sources.
@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running FusedConv node."
        " Failed to allocate memory for requested buffer of size 1073741824",
        "bfc_arena.cc:376 AllocateRawInternal Available memory of 1048576 is smaller than requested bytes of 4194304",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 5003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during run: std::bad_alloc",
        "bad allocation",
        "TensorRT EP: Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
    ],
)
def test_memory_that_is_not_there_is_recognised(text):
    with pytest.raises(OutOfMemory), failures():
        raise RuntimeError(text)


def test_what_else_fails_is_no_lack_of_memory():
    for error in (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), ValueError()):
        with pytest.raises(MachineError, match="illegal memory access|ValueError") as caught, failures():
            raise error
        assert not isinstance(caught.value, OutOfMemory)
    with pytest.raises(OutOfMemory), failures():
        raise MemoryError


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_batch_beyond_the_memory_fails_as_that_and_a_smaller_one_is_scored(model_file):
    code = f"""
import resource, numpy as np
from pathlib import Path
from damcli.bundle.engines import OutOfMemory
from damcli.bundle.runtime import Model
model = Model.open(Path({os.fspath(model_file)!r}), "cpu", threads=1)
images = np.random.default_rng(0).integers(0, 256, (20000, 48, 48, 1), dtype=np.uint8)
expected = model.score(images[:4])
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, size + 2**27))
try:
    model.score(images)
except OutOfMemory as error:
    print(error.exit_code, np.array_equal(model.score(images[:4]), expected))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "5 True\n", done.stderr


def test_what_tensorrt_builds_is_kept_by_the_model_where_only_the_user_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "cache_folder", lambda: tmp_path)
    places = [providers._tensorrt_options(model, True)["trt_engine_cache_path"] for model in (b"a", b"b", b"a")]
    assert places[0] == places[2] != places[1]
    assert all(stat.S_IMODE(Path(place).stat().st_mode) == 0o700 for place in places)


@without_gpu
def test_tensorrt_computes_in_fp32_as_cuda_does(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(providers, "gpus", lambda: 1)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    Model.open(model_file, "tensorrt")
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="a convention of Linux")
def test_the_cache_lies_where_the_platform_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert providers.cache_folder() == tmp_path / "damcli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert os.fspath(providers.cache_folder()) == "/home/somebody/.cache/damcli"


@without_gpu
def test_the_doctor_tries_a_session():
    assert providers.tried() == "the CPU, since there is no NVIDIA GPU"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("device", "provider", "tolerance"), [("auto", CUDA, 1e-4), ("cuda", CUDA, 1e-4), ("tensorrt", TENSORRT, 1e-3)]
)
def test_on_a_gpu_the_scores_are_those_of_the_cpu(model_file, draw, device, provider, tolerance, tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "cache_folder", lambda: tmp_path)
    if device == "tensorrt":
        pytest.importorskip("tensorrt")
    model = Model.open(model_file, device, require_gpu=True)
    assert (model.provider, model.fell_back, model.devices) == (provider, False, providers.gpus())
    expected = Model.open(model_file, "cpu").score(draw(9))
    for number in range(model.devices):
        np.testing.assert_allclose(model.run(draw(9), device=number).scores, expected, atol=tolerance)


@pytest.mark.gpu
def test_a_batch_beyond_the_gpu_fails_as_that_and_a_smaller_one_is_scored(model_file, draw):
    model = Model.open(model_file, "cuda", require_gpu=True)
    with pytest.raises(OutOfMemory):
        model.score(np.zeros((2_000_000, 48, 48, 1), np.uint8))
    assert model.score(draw(2)).shape == (2, 2)
