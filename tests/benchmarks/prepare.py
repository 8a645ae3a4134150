"""Prepare against a plain Pillow loop on the same files; 1 and 2 workers; peak memory at two sizes.

The three are interleaved and the best round of each counts, because other work on the machine can only slow them.

    python tests/benchmarks/prepare.py ../shared/data/nih_cxr_512/train --scans 1500 --size 224
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from damcli.commands.prepare import prepare, read

ROUNDS = 3


def table(images: list[Path], scans: int, folder: Path) -> Path:
    """Write a table of `scans` rows over links to the images, each with a patient of its own."""
    (folder / "scans").mkdir(parents=True)
    rows = ["path,patient,finding"]
    for number, image in enumerate(islice(cycle(images), scans)):
        name = f"{number:06}{image.suffix}"
        (folder / "scans" / name).symlink_to(image.resolve())
        rows.append(f"scans/{name},p{number},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def pillow(images: list[Path], scans: int, size: int) -> float:
    start = time.perf_counter()
    for image in islice(cycle(images), scans):
        with Image.open(image) as opened:
            np.asarray(opened.convert("L").resize((size, size), Image.Resampling.BILINEAR))
    return scans / (time.perf_counter() - start)


def ours(labels: Path, scans: int, size: int, workers: int) -> float:
    source = read("table", labels, image_column="path", label_columns=["finding"], patient_column="patient")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for _ in prepare(source, Path(folder, "dataset"), size=size, workers=workers):
            pass
        return scans / (time.perf_counter() - start)


def peak(labels: Path, size: int, out: Path) -> float:
    """Return the peak memory in MiB of the largest process of `damcli prepare`."""
    command = [sys.executable, "-m", "damcli", "prepare", "table", str(labels), "-o", str(out), "--size", str(size)]
    columns = ["--image-column", "path", "--label-columns", "finding", "--patient-column", "patient", "-q"]
    child = os.posix_spawn(sys.executable, [*command, *columns], os.environ,
                           file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])  # fmt: skip
    _, status, usage = os.wait4(child, 0)
    assert status == 0, f"prepare ended with {status}"
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images (searched below)")
    parser.add_argument("--scans", type=int, default=1500)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    images = sorted(p for p in arguments.folder.rglob("*") if p.suffix in (".jpg", ".png"))
    with tempfile.TemporaryDirectory() as folder:
        labels = table(images, arguments.scans, Path(folder, "small"))
        rates: dict[str, list[float]] = {"Pillow loop": [], "prepare, 1 worker": [], "prepare, 2 workers": []}
        for _ in range(ROUNDS):
            rates["Pillow loop"].append(pillow(images, arguments.scans, arguments.size))
            rates["prepare, 1 worker"].append(ours(labels, arguments.scans, arguments.size, 1))
            rates["prepare, 2 workers"].append(ours(labels, arguments.scans, arguments.size, 2))
        base = max(rates["Pillow loop"])
        print(f"{len(images)} files, {arguments.scans} scans to {arguments.size} px, {os.cpu_count()} cores")
        for name, found in rates.items():
            print(f"{name:20} {max(found):8.0f} scans/s   {max(found) / base:5.2f} x Pillow")
        print(f"2 workers / 1 worker: {max(rates['prepare, 2 workers']) / max(rates['prepare, 1 worker']):.2f}")
        many = table(images, 8 * arguments.scans, Path(folder, "large"))
        for scans, csv in ((arguments.scans, labels), (8 * arguments.scans, many)):
            print(f"peak memory, {scans} scans: {peak(csv, arguments.size, Path(folder, f'out{scans}')):.0f} MiB")


if __name__ == "__main__":
    main()
