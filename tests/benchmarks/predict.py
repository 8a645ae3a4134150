"""Predict end to end against what the cores can give: cores / (decode + scoring core-seconds per scan).

Both parts are measured alone, on one core, in the same run and interleaved with the whole; the best of each counts,
because other work on the machine can only slow them. The whole is the command in a process of its own, start included.

    python tests/benchmarks/predict.py ../shared/data/nih_cxr_512/valid --copies 20
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from damcli.bundle.pipeline import BATCH
from damcli.bundle.runtime import Model
from damcli.data.images import Contract, read_scan

FINDINGS = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")


def make_model(path: Path, backbone: str, contract: Contract, images: np.ndarray) -> None:
    from damcli.bundle import build
    from damcli.deepauc.network import Classifier

    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "benchmark") | {"seed": 0}
    build.export([build.Member(Classifier(backbone, len(FINDINGS)).eval(), FINDINGS, contract, origin)], path, images)


def decode_alone(files: list[Path], contract: Contract) -> tuple[float, np.ndarray]:
    start = time.process_time()
    images = np.stack([read_scan(file, contract) for file in files])
    return (time.process_time() - start) / len(files), images


def score_alone(model: Model, images: np.ndarray) -> float:
    model.score(images[:BATCH])
    start = time.process_time()
    for first in range(0, len(images), BATCH):
        model.score(images[first : first + BATCH])
    return (time.process_time() - start) / len(images)


def whole(folder: Path, model: Path, out: Path, options: list[str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "damcli", "predict", str(folder), "--model", str(model), "-o", str(out), "-q"]
    start, before = time.perf_counter(), os.times()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--copies", type=int, default=4, help="how often each file is scored")
    parser.add_argument("--rounds", type=int, default=3)
    arguments, options = parser.parse_known_args()
    contract = Contract(size=arguments.size, channels=1)
    files = []
    for file in sorted(file for file in arguments.folder.resolve().rglob("*") if file.is_file()):
        try:
            read_scan(file, contract)
            files.append(file)
        except ValueError:
            continue
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        scans, path = Path(place, "scans"), Path(place, "model.onnx")
        for copy in range(arguments.copies):
            for number, file in enumerate(files):
                link = scans / str(copy) / f"{number:05}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        _, images = decode_alone(files[:64], contract)
        make_model(path, arguments.backbone, contract, images)
        model = Model.open(path, "cpu", threads=1)
        total = arguments.copies * len(files)
        rows = []
        for _ in range(arguments.rounds):
            decode, images = decode_alone(files[:256], contract)
            score = score_alone(model, images[:64])
            wall, used = whole(scans, path, Path(place, "scores.csv"), options)
            rows.append((decode, score, wall / total, used / total))
            print(*(f"{1000 * value:.2f}" for value in rows[-1]), "ms: decode, score, whole, its cores", flush=True)
    decode, score, wall, used = np.array(rows).min(0)
    can, does = cores / (decode + score), 1 / wall
    print(f"{total} scans, {arguments.backbone} at {arguments.size}, {cores} cores {' '.join(options)}")
    print(f"decode {1 / decode:.1f} scans/s a core, scoring {1 / score:.1f} scans/s a core")
    print(f"core-seconds of the whole: {used / (decode + score):.2f} times those of decoding and scoring alone")
    print(f"the cores can give {can:.1f} scans/s, predict gives {does:.1f}: {does / can:.0%}")


if __name__ == "__main__":
    main()
