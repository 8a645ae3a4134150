"""Training beside LibAUC 2.0.1's CheXpert recipe, on the same JPEG files with the same DenseNet121, on the CPU.

LibAUC's side is its own Dataset and DataLoader, the loop of its notebook, its multi-label AUC-M loss and its PESG;
damcli's is `damcli train` as it is, with whatever precision it finds faster. Each side is a process of its own, in
turn, so that peak memory is each one's. Beside that: both loaders alone, and what a step of a run costs beside forward,
backward and optimizer. LibAUC is no dependency:

    pip install --no-deps libauc==2.0.1 && pip install pandas psutil
    python tests/benchmarks/train.py --steps 6 --batch-size 16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 224
FINDINGS = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]


def draw(tree: Path, scans: int) -> None:
    """Write `scans` smooth random images as JPEG of CheXpert-small's size, and its train.csv."""
    import cv2
    import polars as pl

    generator = np.random.default_rng(0)
    paths = []
    for number in range(scans):
        path = Path("train", f"patient{number:05}", "study1", "view1_frontal.jpg")
        coarse = generator.integers(0, 256, (24, 24)).astype(np.uint8)
        image = cv2.resize(coarse, (390, 320), interpolation=cv2.INTER_CUBIC)
        (tree / path).parent.mkdir(parents=True)
        cv2.imwrite(str(tree / path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(f"CheXpert-v1.0-small/{path.as_posix()}")
    known = {"Path": paths, "Sex": "Female", "Age": 60, "Frontal/Lateral": "Frontal", "AP/PA": "AP"}
    table = pl.DataFrame(known).with_columns(
        pl.Series(name, (generator.random(scans) < 0.3).astype(float)) for name in FINDINGS
    )
    table.write_csv(tree / "train.csv")


def prepare(tree: Path, dataset: Path) -> None:
    arguments = ["prepare", "chexpert", str(tree), "-o", str(dataset), "--size", str(SIZE), "-q"]
    arguments += ["--findings", ",".join(FINDINGS), "--valid-fraction", "0.1"]
    subprocess.run([sys.executable, "-m", "damcli", *arguments], check=True, stdout=subprocess.DEVNULL)


def libauc_loader(tree: Path, batch_size: int) -> Any:
    import torch

    package = importlib.util.find_spec("libauc")
    if package is None or not package.submodule_search_locations:
        sys.exit("LibAUC is not installed: pip install --no-deps libauc==2.0.1 && pip install pandas")
    # By its file: the package's __init__ wants libraries of all its other datasets.
    file = Path(package.submodule_search_locations[0], "datasets", "chexpert.py")
    spec = importlib.util.spec_from_file_location("libauc_chexpert", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset = module.CheXpert(
        csv_path=str(tree / "train.csv"),
        image_root_path=str(tree),
        use_upsampling=False,
        use_frontal=True,
        image_size=SIZE,
        mode="train",
        class_index=-1,
    )
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, num_workers=2, drop_last=True, shuffle=True)


def libauc_steps(folder: Path, batch_size: int, steps: int) -> list[float]:
    """Return the seconds from step to step of the notebook's loop."""
    import timm
    import torch
    from libauc.losses import MultiLabelAUCMLoss
    from libauc.optimizers import PESG

    network = timm.create_model("densenet121", num_classes=len(FINDINGS))
    loss_fn = MultiLabelAUCMLoss(num_labels=len(FINDINGS))
    optimizer = PESG(network.parameters(), loss_fn=loss_fn, lr=0.1, epoch_decay=2e-3, weight_decay=1e-5, verbose=False)
    seconds, before = [], None
    for images, targets in libauc_loader(folder / "tree", batch_size):
        loss = loss_fn(torch.sigmoid(network(images)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        now = time.perf_counter()
        if before is not None:
            seconds.append(now - before)
        if len(seconds) == steps:
            break
        before = now
    return seconds


def damcli_steps(folder: Path, batch_size: int, steps: int, precision: str = "auto") -> tuple[list[float], str]:
    """Return the seconds from step to step of a run, and its precision."""
    from damcli.data.store import Dataset
    from damcli.recipes import Recipe, Stage
    from damcli.training import loop
    from damcli.training.events import Started, Step

    stage = Stage(loss="aucm", optimizer="pesg", lr=0.1, weight_decay=1e-5, epochs=9)
    recipe = Recipe(backbone="densenet121", batch_size=batch_size, precision=precision, stage2=stage)
    seconds, before = [], None
    with tempfile.TemporaryDirectory() as run:
        for event in loop.train(recipe, Dataset.open(folder / "dataset"), Path(run, "run"), device="cpu"):
            now = time.perf_counter()
            if isinstance(event, Started):
                precision = event.precision
            if isinstance(event, Step) and before is not None:
                seconds.append(now - before)
            if len(seconds) == steps:
                break
            before = now if isinstance(event, Step) else None
    return seconds, precision


def bare_steps(batch_size: int, steps: int, precision: str) -> list[float]:
    """Return the seconds of steps of nothing but forward, loss, backward and optimizer, on one batch of floats."""
    import torch

    from damcli.deepauc import PESG, AUCMarginLoss
    from damcli.deepauc.network import Classifier
    from damcli.training import launch

    machine = launch.start("cpu", precision)
    network = Classifier("densenet121", len(FINDINGS))
    model = machine.setup(network).train()
    loss = AUCMarginLoss(len(FINDINGS))
    optimizer = PESG(network.parameters(), loss, lr=0.1, weight_decay=1e-5)
    images = torch.rand(batch_size, 1, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    targets = (torch.rand(batch_size, len(FINDINGS)) < 0.5).float()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        value = loss(model(images), targets)
        optimizer.zero_grad()
        machine.backward(value)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def loaders(folder: Path, batch_size: int) -> dict[str, float]:
    """Return the images/s of both loaders with nobody to wait for, in the page cache."""
    from damcli.data import loader
    from damcli.data.store import Dataset

    dataset, generator = Dataset.open(folder / "dataset"), np.random.default_rng(0)
    rows = np.concatenate([generator.permutation(dataset.rows("train")) for _ in range(40)])
    start = time.perf_counter()
    for _ in loader.batches(dataset, np.array_split(rows, len(rows) // batch_size)):
        pass
    ours = len(rows) / (time.perf_counter() - start)
    theirs, before = [], None
    for _ in range(3):  # the workers' start is left out
        for images, _ in libauc_loader(folder / "tree", batch_size):
            now = time.perf_counter()
            if before is not None:
                theirs.append((now - before) / len(images))
            before = now
        before = None
    return {"damcli": ours, "libauc": 1 / statistics.mean(theirs)}


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Measure the largest resident memory of this process and its children meanwhile, in GB, into the list yielded."""
    import psutil

    found, done, me = [0.0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.1):
            sizes = []
            for process in (me, *me.children(recursive=True)):
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            found[0] = max(found[0], sum(sizes) / 1e9)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def side(name: str, folder: Path, batch_size: int, steps: int) -> dict[str, Any]:
    with peak_memory() as memory:
        if name == "libauc":
            return {"seconds": libauc_steps(folder, batch_size, steps), "precision": "32", "memory": memory}
        seconds, precision = damcli_steps(folder, batch_size, steps)
    return {"seconds": seconds, "precision": precision, "memory": memory}


def started(arguments: list[str]) -> Any:
    """Run this file again, as a side of its own; damcli's with what `damcli train` sets before torch is loaded."""
    from damcli.commands.train import BEFORE_TORCH

    environment = {**os.environ, **(BEFORE_TORCH if "libauc" not in arguments else {})}
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size, steps = given.batch_size, given.steps
    if given.side:
        name, folder, precision = given.side
        work = {
            "bare": lambda: bare_steps(size, steps, precision),
            "loaders": lambda: loaders(Path(folder), size),
        }.get(name, lambda: side(name, Path(folder), size, steps))
        print(json.dumps(work()))
        return
    common = ["--batch-size", str(size), "--steps", str(steps), "--side"]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, "tree"), max(256, (steps + 2) * size * 3 // 2))
        prepare(Path(folder, "tree"), Path(folder, "dataset"))
        speeds = started([*common, "loaders", folder, "32"])
        found: dict[str, list[Any]] = {"libauc": [], "damcli": []}
        bare: list[float] = []
        for _ in range(given.rounds):
            for name, results in found.items():
                results.append(started([*common, name, folder, "32"]))
            bare += started([*common, "bare", folder, found["damcli"][-1]["precision"]])
    step = {name: statistics.median(s for r in results for s in r["seconds"]) for name, results in found.items()}
    memory = {name: max(r["memory"][0] for r in results) for name, results in found.items()}
    precisions = sorted({r["precision"] for r in found["damcli"]})
    lean = statistics.median(bare)
    print(f"DenseNet121, {SIZE} px, batch {size}, {os.cpu_count()} cores; damcli takes {' and '.join(precisions)}")
    print(f"{'':16}{'LibAUC':>10}{'damcli':>10}{'ratio':>10}")
    for title, theirs, ours in (
        ("images/s", size / step["libauc"], size / step["damcli"]),
        ("loader alone", speeds["libauc"], speeds["damcli"]),
        ("peak memory, GB", memory["libauc"], memory["damcli"]),
    ):
        print(f"{title:16}{theirs:10.3g}{ours:10.3g}{ours / theirs:10.2f}")
    print(f"bare step of damcli's {lean * 1e3:.0f} ms, a run's {step['damcli'] * 1e3:.0f} ms:", end=" ")
    print(f"{1 - lean / step['damcli']:.1%} of a step lie outside forward, backward and optimizer")


if __name__ == "__main__":
    main()
