"""Prepare measured side by side with what there is without it, on the same files in one run; no figure is a pass mark.

- large: 2828 x 2320 grey JPEG to 320, against a Pillow open-resize-save loop in as many processes; 1 and 2 workers.
- kinds: JPEG, PNG and every DICOM syntax of the real files, against the fastest bare decoder of each plus the resize.
- manifest: what `prepare` writes once the images of 224,316 scans are done: seconds and peak memory.
- memory: peak of the main process for few scans and for eight times as many.

Rounds are interleaved and the best of each counts, because other work on the machine can only slow them.

    python tests/benchmarks/prepare.py ../shared/data
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from PIL import Image

from damcli.commands.prepare import prepare, read
from damcli.data.images import Contract, read_scan, resize
from damcli.dicom import greyscale

ROUNDS = 3
SIZE = 320


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


def large_jpegs(source: Path, number: int, folder: Path) -> list[Path]:
    """Write films of CheXpert's full size out of smaller ones, with the grain that enlarging takes away."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    made = []
    for image in sorted(source.rglob("*.jpg"))[:number]:
        with Image.open(image) as opened:
            grey = np.asarray(opened.convert("L").resize((2828, 2320), Image.Resampling.BICUBIC), np.int16)
        film = np.clip(grey + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
        made.append(folder / f"{image.stem}-{len(made)}.jpg")
        Image.fromarray(film).save(made[-1], quality=90)
    return made


def plain(images: list[Path], out: Path) -> None:
    """What a script does without damcli: open, resize, save."""
    for number, image in enumerate(images):
        with Image.open(image) as opened:
            opened.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(
                out / f"{os.getpid()}-{number}.png"
            )


def pillow(images: list[Path], scans: int, processes: int) -> float:
    files = list(islice(cycle(images), scans))
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes) as pool:
        list(pool.map(abs, range(processes)))  # started before the clock is
        start = time.perf_counter()
        list(pool.map(plain, [files[k::processes] for k in range(processes)], [Path(folder)] * processes))
        return scans / (time.perf_counter() - start)


def ours(labels: Path, scans: int, workers: int) -> float:
    """Scans a second once the workers have started: the first shard's worth of start-up is left out on both sides."""
    source = read("table", labels, image_column="path", label_columns=["finding"], patient_column="patient")
    with tempfile.TemporaryDirectory() as folder:
        steps = prepare(source, Path(folder, "dataset"), size=SIZE, workers=workers, allow_leaks=True)
        first = scans // 10
        while next(steps).done < first:
            pass
        start = time.perf_counter()
        for _ in steps:
            pass
        return (scans - first) / (time.perf_counter() - start)


def large(data: Path, folder: Path, scans: int) -> None:
    images = large_jpegs(data / "nih_cxr_512", 24, folder / "films")
    labels = table(images, scans, folder / "large")
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for number in (1, 2):
            rates.setdefault(f"Pillow, {number}", []).append(pillow(images, scans, number))
            rates.setdefault(f"prepare, {number}", []).append(ours(labels, scans, number))
    best = {name: max(found) for name, found in rates.items()}
    print(f"large: {scans} grey JPEG of 2828 x 2320 to {SIZE}, whole pipeline, scans/s")
    for name, rate in best.items():
        print(f"  {name:12} {rate:7.1f}   {rate / best[f'Pillow, {name[-1]}']:5.2f} x Pillow on as many processes")
    print(f"  2 workers / 1 worker: {best['prepare, 2'] / best['prepare, 1']:.2f}")


def seconds(work: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def bare(file: Path) -> tuple[str, Callable[[], object]]:
    """Return the fastest exact way to this file's stored values and a resize of them: no header, no window."""
    import simplejpeg
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    def to_size(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        scale = SIZE / max(height, width)
        wanted = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)

    if file.suffix == ".jpg":
        least = {"min_height": 3 * SIZE, "min_width": 3 * SIZE, "min_factor": 2}
        return "simplejpeg", lambda: to_size(simplejpeg.decode_jpeg(file.read_bytes(), "GRAY", **least)[..., 0])
    if file.suffix == ".png":
        return "OpenCV", lambda: to_size(cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED))
    header = dcmread(file, stop_before_pixels=True)
    syntax = header.file_meta.TransferSyntaxUID

    if syntax.name.startswith("JPEG Baseline"):

        def frame() -> bytes:
            return get_frame(dcmread(file).PixelData, 0, number_of_frames=1)

        return "simplejpeg", lambda: to_size(simplejpeg.decode_jpeg(frame(), "GRAY")[..., 0])
    plugins = {"JPEG Lossless": "gdcm", "JPEG-LS": "pyjpegls", "JPEG 2000": "pylibjpeg", "RLE": "pylibjpeg"}
    plugin = next((name for start, name in plugins.items() if syntax.name.startswith(start)), "")

    def decode() -> object:
        dataset = dcmread(file)
        if plugin:
            dataset.pixel_array_options(decoding_plugin=plugin)
        return to_size(dataset.pixel_array)

    return plugin or "pydicom", decode


def kinds(data: Path, folder: Path) -> None:
    contract = Contract(size=SIZE, channels=1)
    png8, png16 = folder / "eight.png", folder / "sixteen.png"
    film = large_jpegs(data / "nih_cxr_512", 1, folder / "one")[0]
    with Image.open(film) as opened:
        grey = np.asarray(opened)
    cv2.imwrite(str(png8), grey)
    cv2.imwrite(str(png16), grey.astype(np.uint16) * 16)
    real = ("chest_NIH_implicitVR.dcm", "chest_RSNA_jpegbaseline.dcm", "leg_RG3_RLE", "leg_RG3_JPLL", "leg_RG3_JLSL",
            "leg_RG3_JLSN", "leg_RG3_J2KR.dcm", "leg_RG3_J2KI.dcm", "mammo_MG1_J2KI")  # fmt: skip
    print(
        f"kinds: one file decoded, shown and resized to {SIZE}, in one process, against the bare decoder and a resize"
    )
    for file in [film, png8, png16, *(data / "dicom" / name for name in real)]:
        name, work = bare(file)
        once = seconds(work, 1)
        rounds = max(3, int(1.5 / max(once, 1e-3)))
        theirs, mine = (seconds(job, rounds) for job in (work, lambda file=file: read_scan(file, contract)))
        print(f"  {file.name:28} {name:10} {1e3 * theirs:7.1f} ms   damcli {1e3 * mine:7.1f} ms   {theirs / mine:5.2f}")
    stored = np.random.default_rng(0).integers(0, 4096, (4000, 3000)).astype(np.uint16)
    shown = seconds(lambda: resize(greyscale.spread(stored), contract), 5)
    print(f"  the percentile window and resize alone, 12 megapixels of 16 bits: {1e3 * shown:.0f} ms")


MANIFEST = """
import sys, time
from pathlib import Path
import numpy as np
import polars as pl
from damcli.data.audit import Print
from damcli.data.images import Contract
from damcli.data.journal import Journal, Part
from damcli.data.labels import CHEXPERT_FINDINGS, chexpert_policy
from damcli.data.sources import Source, table_of
from damcli.data.store import Shard
from damcli.data import writer
rows, out = 224_316, Path(sys.argv[1])
rng = np.random.default_rng(0)
ids = [f"train/patient{n // 3:05}/study{n % 3}/view1_frontal.jpg" for n in range(rows)]
labels = {f: rng.choice([1.0, 0.0, -1.0, np.nan], rows) for f in CHEXPERT_FINDINGS}
scans = table_of(ids, ["/absent/" + i for i in ids], {f: pl.Series(c).fill_nan(None) for f, c in labels.items()},
                 patient=[i[6:18] for i in ids], study=[i[6:25] for i in ids], split=["train"] * rows,
                 age=rng.integers(18, 90, rows), sex=rng.choice(["Male", "Female"], rows))
source = Source("chexpert", out, scans, list(CHEXPERT_FINDINGS), {f: chexpert_policy(f) for f in CHEXPERT_FINDINGS}, [])
sizes = [8192] * (rows // 8192) + [rows % 8192]
parts = tuple(Part(shard=Shard(file=str(n), scans=s, sha256=""), consumed=0, stamps="") for n, s in enumerate(sizes))
prints = [Print(n.to_bytes(16, "big"), n.to_bytes(8, "big")) for n in range(rows)]
def peak():  # getrusage would tell that of the process which started this one, where that was larger
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
start = time.perf_counter()
writer._finish(out, source, Contract(size=320, channels=1), 0, Journal(inputs="", parts=parts), prints, False)
print(f"{time.perf_counter() - start:.1f} s, peak {peak():.0f} MiB"
      f" (before it {before:.0f} MiB)")
"""


def manifest(folder: Path) -> None:
    (folder / "manifest").mkdir()
    done = subprocess.run([sys.executable, "-c", MANIFEST, str(folder / "manifest")], capture_output=True, text=True)
    print("manifest of 224,316 scans with 14 findings, audit included:", done.stdout.strip() or done.stderr)
    print(f"  {pl.read_parquet(folder / 'manifest' / 'manifest.parquet').height} rows")


def peak(labels: Path, out: Path) -> float:
    """Return the peak memory in MiB of the main process of `damcli prepare`."""
    from whole import watched  # which measures what this file writes

    command = [
        "-m",
        "damcli",
        "prepare",
        "table",
        str(labels),
        "-o",
        str(out),
        "--size",
        str(SIZE),
        "-q",
        "--allow-leaks",
    ]
    columns = ["--image-column", "path", "--label-columns", "finding", "--patient-column", "patient"]
    _, _, memory = watched(*command, *columns)
    return memory / 2**20


def memory(data: Path, folder: Path, scans: int) -> None:
    images = sorted((data / "nih_cxr_512").rglob("*.jpg"))
    for number in (scans, 8 * scans):
        found = peak(table(images, number, folder / f"many{number}"), folder / f"out{number}")
        print(f"memory, {number} scans: {found:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of real scans")
    parser.add_argument(
        "--scans", type=int, default=400, help="large films; memory is measured with 4 and 32 times as many"
    )
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        kinds(arguments.data, Path(folder))
        large(arguments.data, Path(folder), arguments.scans)
        manifest(Path(folder))
        memory(arguments.data, Path(folder), 4 * arguments.scans)


if __name__ == "__main__":
    main()
