"""Tiny members of an ensemble, and one exported model to damage."""

import numpy as np
import pytest
import torch

from damcli.bundle import build
from damcli.data.images import Contract
from damcli.deepauc.network import Classifier


@pytest.fixture(scope="session")
def make_member():
    def make(findings, backbone="test_resnet", size=48, channels=1, seed=0, **options):
        torch.manual_seed(seed)
        network = Classifier(backbone, len(findings), **options).eval()
        # Running statistics as after training: at their initial values much would not be tested.
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        origin = {"run": f"run-{seed}", "recipe": "toy", "loss": "aucm", "seed": seed}
        hashes = {"dataset": "d" * 64, "weights_sha256": "a" * 64}
        return build.Member(network, findings, Contract(size=size, channels=channels), origin | hashes)

    return make


@pytest.fixture(scope="session")
def draw():
    def images(number, size=48, channels=1, seed=0):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (number, 6, 6, channels), dtype=np.uint8)
        fine = coarse.repeat(size // 6, axis=1).repeat(size // 6, axis=2)
        return np.clip(fine + rng.integers(-20, 21, fine.shape), 0, 255).astype(np.uint8)

    return images


@pytest.fixture(scope="session")
def model_file(make_member, draw, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    build.export([make_member(["Edema", "Fracture"])], path, draw(5))
    return path
