"""A benchmark in small: drawn images in MedMNIST's form, prepared as a user would."""

import numpy as np
import pytest

from damcli.commands.prepare import prepare, read
from damcli.commands.train import resolve
from damcli.data.store import Dataset

SMALL = ["backbone=test_resnet", "batch_size=16", "stage2.epochs=1", "stage1.decay_epochs=[]", "stage2.decay_epochs=[]"]


@pytest.fixture(scope="package")
def benchmark(tmp_path_factory):
    """A dataset of one finding: 120 training scans, half of them positive, and 60 for the test, 16 × 16 pixels."""
    folder = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    arrays = {}
    for name, number in (("train", 120), ("val", 20), ("test", 60)):
        labels = np.arange(number) % 2
        images = rng.integers(0, 140, (number, 16, 16))
        images[labels == 1, 4:12, 4:12] += 12
        arrays |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": labels[:, None].astype(np.uint8)}
    np.savez(folder / "pneumoniamnist.npz", **arrays)
    for _ in prepare(read("benchmark", folder / "pneumoniamnist.npz"), folder / "dataset", workers=0):
        pass
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="package")
def small():
    """Returns `small(loss)`: the benchmark recipe for a loss, made small enough for a test."""
    return lambda loss: resolve("benchmark", loss, None, SMALL)
