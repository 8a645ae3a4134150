"""The loader alone against DenseNet121's rate, and what a training step costs beside forward, backward, optimizer.

Bare steps (one fixed batch, already float) are timed before and after the run, in the run's precision; the median of
each counts. The run's own steps are timed from event to event: loading, augmentation, loss and records included.

    python tests/benchmarks/train.py --batches 24 --batch-size 16
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from damcli.data import loader
from damcli.data.images import Contract
from damcli.data.labels import Policy
from damcli.data.sources import Source
from damcli.data.store import Dataset
from damcli.data.workers import Decoded
from damcli.data.writer import write
from damcli.deepauc import losses
from damcli.deepauc.network import Classifier
from damcli.deepauc.pesg import PESG
from damcli.recipes import Recipe, Stage
from damcli.training import launch
from damcli.training.events import Step
from damcli.training.loop import train

SIZE = 224
FINDINGS = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]


def noise(folder: Path, scans: int) -> Dataset:
    import polars as pl

    generator = np.random.default_rng(0)
    labels = generator.random((scans, len(FINDINGS))) < 0.3
    table = pl.DataFrame(
        {
            "id": [f"{n}.png" for n in range(scans)],
            "path": [f"/absent/{n}.png" for n in range(scans)],
            "patient": [f"p{n}" for n in range(scans)],
            "study": [f"s{n}" for n in range(scans)],
            "view": ["frontal"] * scans,
            "split": ["train"] * scans,
        }
    ).with_columns(pl.Series(f"label:{name}", labels[:, k].astype(float)) for k, name in enumerate(FINDINGS))
    policies = {name: Policy(uncertain="ignore", blank="missing") for name in FINDINGS}

    def drawn(paths: Iterable[Path]) -> Iterator[Decoded]:
        for number, _ in enumerate(paths):
            yield Decoded(number, generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8), "ok", "")

    source = Source("noise", folder, table, FINDINGS, policies, [])
    for _ in write(folder, source, Contract(size=SIZE, channels=1), drawn):
        pass
    return Dataset.open(folder)


def load_alone(dataset: Dataset, batch_size: int, rounds: int = 20) -> float:
    """Return images/s of the loader with nobody to wait for, read at random from the page cache."""
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.permutation(dataset.rows("train")) for _ in range(rounds)])
    start = time.perf_counter()
    for _ in loader.batches(dataset, np.array_split(rows, len(rows) // batch_size)):
        pass
    return len(rows) / (time.perf_counter() - start)


def bare_steps(backbone: str, precision: str, batch_size: int, count: int) -> list[float]:
    """Return the seconds of `count` steps of nothing but forward, loss, backward and optimizer."""
    fabric = launch.start("cpu", precision)
    network = Classifier(backbone, len(FINDINGS))
    model = launch.setup(fabric, network).train()
    loss = losses.AUCMarginLoss(len(FINDINGS))
    optimizer = PESG(network.parameters(), loss, lr=0.01)
    images = torch.rand(batch_size, 1, SIZE, SIZE)
    targets = (torch.rand(batch_size, len(FINDINGS)) < 0.5).float()
    seconds = []
    for _ in range(count + 1):
        start = time.perf_counter()
        value = loss(model(images), targets)
        optimizer.zero_grad()
        fabric.backward(value)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def run_steps(dataset: Dataset, recipe: Recipe, folder: Path) -> list[float]:
    """Return the seconds from step to step of a real run."""
    seconds, before = [], None
    for event in train(recipe, dataset, folder, origins={}, device="cpu"):
        now = time.perf_counter()
        if isinstance(event, Step) and before is not None:
            seconds.append(now - before)
        before = now if isinstance(event, Step) else None
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="bf16", choices=["32", "bf16"])
    arguments = parser.parse_args()
    size = arguments.batch_size
    stage = Stage(loss="aucm", optimizer="pesg", lr=0.01, epochs=1)
    recipe = Recipe(
        backbone=arguments.backbone, batch_size=size, precision=arguments.precision, stage2=stage, tune_fraction=0.1
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = noise(Path(folder, "noise"), round(arguments.batches * size / 0.9))
        alone = load_alone(dataset, size)
        bare = bare_steps(arguments.backbone, arguments.precision, size, arguments.batches // 2)
        run = run_steps(dataset, recipe, Path(folder, "run"))
        bare += bare_steps(arguments.backbone, arguments.precision, size, arguments.batches // 2)
    step, whole = statistics.median(bare), statistics.median(run)
    print(f"{arguments.backbone}, {SIZE} px, batch {size}, {arguments.precision}, {os.cpu_count()} cores")
    print(f"loader alone   {alone:9.0f} images/s = {alone * step / size:.0f} x the network's rate")
    print(f"bare step      {step * 1e3:9.0f} ms = {size / step:.1f} images/s ({len(bare)} steps)")
    print(f"step of a run  {whole * 1e3:9.0f} ms = {size / whole:.1f} images/s ({len(run)} steps)")
    print(f"overhead       {1 - step / whole:9.1%} of a step")


if __name__ == "__main__":
    main()
