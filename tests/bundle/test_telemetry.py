"""What runs a model tells nobody that it does."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from damcli.bundle.runtime import Model
Model.open(Path(sys.argv[1]), "cpu").score(__import__("numpy").zeros((1, 64, 64), "uint8"))
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    import numpy as np
    import torch

    from damcli.bundle import build
    from damcli.data.images import Contract
    from damcli.deepauc.network import Classifier

    torch.manual_seed(0)
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "toy") | {"seed": 0}
    member = build.Member(Classifier("test_resnet", 1).eval(), ("Edema",), Contract(size=64, channels=1), origin)
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    build.export([member], path, np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8))
    return path


def test_onnx_runtime_makes_no_id_of_the_machine_and_keeps_no_events(model_file, tmp_path):
    places = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LOCALAPPDATA")
    known = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env = known | {name: str(tmp_path / name) for name in places}
    subprocess.run([sys.executable, "-c", PROGRAM, model_file], env=env, check=True, timeout=120)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
