"""An opened model: where it runs and why, what it takes; that it needs no torch."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from damcli.bundle import container, providers, runtime
from damcli.bundle.runtime import Model
from damcli.errors import DataError, MachineError


def test_a_graph_that_cannot_run_is_refused(model_file, tmp_path):
    model = onnx.load(model_file)
    del model.metadata_props[1:]
    model.graph.node[0].input[0] = "nowhere"
    body = model.SerializeToString()
    path = tmp_path / "broken.onnx"
    path.write_bytes(body + container.seal(body))
    with pytest.raises(DataError, match="ONNX Runtime refuses this model") as caught:
        Model.open(path, "cpu")
    assert caught.value.where == path


def test_images_of_another_shape_or_type_are_our_mistake(model_file):
    model = Model.open(model_file, "cpu")
    for images in (np.zeros((1, 47, 48, 1), np.uint8), np.zeros((1, 48, 48), np.float32), np.zeros((48, 48), np.uint8)):
        with pytest.raises(ValueError, match="images must be uint8"):
            model.score(images)
    assert model.score(np.zeros((0, 48, 48, 1), np.uint8)).shape == (0, 2)


@pytest.mark.skipif(providers.gpus() > 0, reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_taken_and_said(model_file, capfd):
    asked = Model.open(model_file, "cuda")
    assert asked.provider == runtime.CPU
    assert asked.fell_back
    assert asked.provider_note
    assert not Model.open(model_file, "auto").fell_back
    with pytest.raises(MachineError, match="GPU is required"):
        Model.open(model_file, "auto", require_gpu=True)
    assert capfd.readouterr().out == ""


@pytest.mark.skipif(providers.gpus() > 0, reason="this machine has a GPU")
def test_a_silent_fall_back_of_onnx_runtime_is_seen_in_the_session(model_file, monkeypatch, capfd):
    monkeypatch.setattr(providers, "gpus", lambda: 1)
    model = Model.open(model_file, "auto")
    assert model.provider == runtime.CPU
    assert model.fell_back
    assert "fell back" in model.provider_note
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_on_a_gpu_the_scores_are_those_of_the_cpu(model_file, draw):
    model = Model.open(model_file, "auto", require_gpu=True)
    assert model.provider == runtime.CUDA
    np.testing.assert_allclose(model.score(draw(9)), Model.open(model_file, "cpu").score(draw(9)), atol=1e-3)


def test_scoring_needs_no_torch(model_file):
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom damcli.bundle.runtime import Model\n"
        f"Model.open(Path({os.fspath(model_file)!r}), 'cpu').score(np.zeros((1, 48, 48, 1), np.uint8))\n"
        "print({'torch', 'timm', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
