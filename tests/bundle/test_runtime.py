"""An opened model: where it runs and why, what it takes; that it needs no torch."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from damcli import files
from damcli.bundle.runtime import Model
from damcli.errors import DataError


def test_a_graph_that_cannot_run_is_refused(model_file, edited, tmp_path):
    def cut(model):
        model.graph.node[0].input[0] = "nowhere"

    path = edited(model_file, tmp_path / "broken.onnx", cut)
    with pytest.raises(DataError, match="ONNX Runtime refuses this model") as caught:
        Model.open(path, "cpu")
    assert caught.value.where == path


def test_a_model_is_known_by_what_was_opened_whatever_takes_its_place(model_file, tmp_path):
    path = shutil.copy(model_file, tmp_path / "m.onnx")
    model = Model.open(path, "cpu")
    path.write_bytes(b"another")
    assert model.sha256 == files.sha256(model_file)


def test_images_of_another_shape_or_type_are_our_mistake(model_file):
    model = Model.open(model_file, "cpu")
    for images in (np.zeros((1, 47, 48, 1), np.uint8), np.zeros((1, 48, 48), np.float32), np.zeros((48, 48), np.uint8)):
        with pytest.raises(ValueError, match="images must be uint8"):
            model.score(images)
    assert model.score(np.zeros((0, 48, 48, 1), np.uint8)).shape == (0, 2)


def test_scoring_needs_no_torch(model_file):
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom damcli.bundle.runtime import Model\n"
        f"Model.open(Path({os.fspath(model_file)!r}), 'cpu').score(np.zeros((1, 48, 48, 1), np.uint8))\n"
        "print({'torch', 'timm', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
