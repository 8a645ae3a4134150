"""Predict measured in one run beside what the cores can give and beside what there is without it; no pass marks.

The files are the real radiographs of `../shared/data/dicom` that can be read, as they are and once more uncompressed;
they are named with what each costs. The network is DenseNet121 at 320 pixels, with weights that were drawn.

- whole: `damcli predict` on 2,000 files, its start included, against cores / (decoding + scoring core-seconds a scan),
  each measured alone on one core before and after it; the smaller figure counts, which is the harder one to reach.
- torch: PyTorch eager in fp32 on all cores in batches of 8: of the scoring alone, and with damcli's decoding before it.
- loop: one file at a time as torchxrayvision documents it (read_xray_dcm, XRayCenterCrop, XRayResizer), the same
  network in PyTorch.
- openvino: `--device openvino` against `--device cpu`, both the whole and the scoring alone.
- start: `damcli predict` on one file.
- memory: largest sum over all processes (shared pages once) for 200 and for 20,000 drawn scans, by a tiny network.

Needs the extra `bench`. Other work on the machine distorts all of it: rounds are interleaved, the best of each counts.

    python tests/benchmarks/predict.py ../shared/data/dicom
    python tests/benchmarks/predict.py ../shared/data/dicom --parts start memory
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
import pydicom
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from damcli.bundle import build
from damcli.bundle.runtime import Model
from damcli.data.images import Contract, read_scan
from damcli.data.workers import cores
from damcli.deepauc.network import Classifier
from damcli.errors import DataError

PARTS = ("whole", "torch", "loop", "openvino", "start", "memory")
FINDINGS = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
CONTRACT = Contract(size=320, channels=1)
BATCH = 8


def radiographs(source: Path, folder: Path) -> list[Path]:
    """Return the files of `source` that can be read, as they are and uncompressed (in `folder`)."""
    folder.mkdir()
    made = []
    for file in sorted(file for file in source.resolve().iterdir() if file.is_file()):
        try:
            read_scan(file, CONTRACT)
        except DataError:
            continue
        made.append(file)
        dataset = pydicom.dcmread(file)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress()
            dataset.save_as(folder / f"{file.stem}_uncompressed.dcm")
            made.append(folder / f"{file.stem}_uncompressed.dcm")
    return made


def folder_of(files: list[Path], number: int, folder: Path) -> Path:
    """Make a folder of `number` links to the files, each as often as the others."""
    folder.mkdir()
    for n, file in enumerate(islice(cycle(files), number)):
        (folder / f"{n:06}.dcm").symlink_to(file)
    return folder


def drawn(number: int, folder: Path) -> list[Path]:
    """Draw DICOM files of 512 × 512 pixels and 12 bits."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for n in range(number):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
        dataset.Rows = dataset.Columns = 512
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = rng.integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
        files.append(folder / f"{n}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def spread(network: Classifier, images: np.ndarray) -> np.ndarray:
    """Scale the last layer so that scores differ as trained ones do; return labels of the clear ones, NaN of others.

    Without labels OpenVINO would not be offered; what it does to an AUROC is to be asked of a trained model.
    """
    head = network.backbone.get_classifier()
    with torch.no_grad():
        logits = network(Classifier.as_input(torch.from_numpy(images)))
        mean, deviation = logits.mean(0), logits.std(0)
        head.weight /= deviation[:, None]
        head.bias.copy_((head.bias - mean) / deviation)
    differing = ((logits - mean) / deviation).double().numpy()
    return np.where(np.abs(differing) > 0.7, differing > 0, np.nan)


def export(backbone: str, images: np.ndarray, path: Path) -> Classifier:
    torch.manual_seed(0)
    network = Classifier(backbone, len(FINDINGS)).eval()
    truth = spread(network, images)
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "benchmark") | {"seed": 0}
    build.export([build.Member(network, FINDINGS, CONTRACT, origin)], path, images, truth)
    return network


def per_scan(clock: Callable[[], float], work: Callable[[], int]) -> float:
    """Return what `work` takes for each of the scans that it says it did, by a clock."""
    start = clock()
    done = work()
    return (clock() - start) / done


def decoding(files: list[Path]) -> int:
    return sum(len(read_scan(file, CONTRACT)) > 0 for file in files)


def scoring(score: Callable[[np.ndarray], object], images: np.ndarray) -> int:
    for first in range(0, len(images), BATCH):
        score(images[first : first + BATCH])
    return len(images)


def eager(network: Classifier) -> Callable[[np.ndarray], object]:
    @torch.inference_mode()
    def score(images: np.ndarray) -> object:
        return network(Classifier.as_input(torch.from_numpy(images))).sigmoid().numpy()

    return score


def by_xrv(network: Classifier, files: list[Path]) -> int:
    """Score files one at a time, as torchxrayvision's documentation shows it; return how many it could read."""
    import torchxrayvision as xrv
    from torchvision.transforms import Compose

    transform = Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(CONTRACT.size)])
    done = 0
    for file in files:
        try:
            pixels = transform(xrv.utils.read_xray_dcm(file)[None])
        except (NotImplementedError, ValueError):
            continue
        with torch.inference_mode():
            network(torch.from_numpy(pixels)[None] / 2048 + 0.5).sigmoid()
        done += 1
    return done


def predict(scans: Path, model: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `damcli predict` as a user does."""
    out = model.with_suffix(".csv")
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "damcli", "predict", scans, "--model", model, "-o", out, "-q", *options]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)


def seconds(scans: Path, model: Path, *options: str) -> float:
    start = time.perf_counter()
    if predict(scans, model, *options).wait():
        raise SystemExit("damcli predict failed")
    return time.perf_counter() - start


def peak(scans: Path, model: Path) -> float:
    """Return the largest memory of predict and its processes together, MiB: shared pages count once."""
    running = predict(scans, model)
    most, tree = 0, psutil.Process(running.pid)
    while running.poll() is None:
        try:
            most = max(most, sum(one.memory_full_info().pss for one in [tree, *tree.children(recursive=True)]))
        except psutil.Error:
            continue  # one of them has ended meanwhile
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit("damcli predict failed")
    return most / 2**20


class Benchmark:
    """What the parts share: files, images, a model and the network in it, and how many rounds there are."""

    def __init__(self, source: Path, place: Path, scans: int, rounds: int) -> None:
        self.place, self.rounds = place, rounds
        self.files = radiographs(source, place / "uncompressed")
        self.images = np.stack([read_scan(file, CONTRACT) for file in self.files])
        self.model = place / "densenet121.onnx"
        self.network = export("densenet121", self.images, self.model)
        self.scans, self.number = folder_of(self.files, scans, place / "scans"), scans
        print(f"{cores()} cores, PyTorch {torch.__version__}, {torch.get_num_threads()} threads; {scans} files are:")
        for file in self.files:
            cost = min(per_scan(time.process_time, lambda file=file: decoding([file])) for _ in range(rounds))
            print(f"  {file.name:46} {file.stat().st_size / 1e6:6.2f} MB {1000 * cost:7.1f} ms to decode")

    def best(self, *works: Callable[[], float]) -> list[float]:
        """Return the smallest of what each gives in `rounds` interleaved rounds."""
        return [min(each) for each in zip(*([work() for work in works] for _ in range(self.rounds)), strict=True)]

    def scored(self, score: Callable[[np.ndarray], object], clock: Callable[[], float]) -> float:
        score(self.images[:BATCH])
        return per_scan(clock, lambda: scoring(score, self.images))

    def run_whole(self) -> float:
        """Print the part `whole` and return the seconds that predict takes for a scan."""
        single = Model.open(self.model, "cpu", threads=1)
        decode, score, whole = self.best(
            lambda: per_scan(time.process_time, lambda: decoding(self.files)),
            lambda: self.scored(single.score, time.process_time),
            lambda: seconds(self.scans, self.model, "--device", "cpu") / self.number,
        )
        can = cores() / (decode + score)
        print(f"whole: decoding {1000 * decode:.0f} ms, scoring {1000 * score:.0f} ms of a core for a scan")
        print(
            f"  the cores can give {can:.2f} scans/s, predict gives {1 / whole:.2f}: {1 / whole / can:.0%}", flush=True
        )
        return whole

    def run_torch(self, whole: float) -> None:
        both = Model.open(self.model, "cpu")
        ours, theirs, decode = self.best(
            lambda: self.scored(both.score, time.perf_counter),
            lambda: self.scored(eager(self.network), time.perf_counter),
            lambda: per_scan(time.perf_counter, lambda: decoding(self.files)),
        )
        print(f"torch: eager fp32 in batches of {BATCH} scores {1 / theirs:.2f} scans/s, all cores")
        print(f"  one ONNX Runtime session on all cores scores {1 / ours:.2f}: {theirs / ours:.2f} times that")
        print(f"  predict on files {1 / whole:.2f}: {theirs / whole:.2f} times eager's scoring without any decoding")
        print(f"  and {(theirs + decode) / whole:.2f} times eager with damcli's decoding in the same process")

    def run_loop(self, whole: float) -> None:
        warnings.filterwarnings("ignore", module="torchxrayvision|pydicom")
        (loop,) = self.best(lambda: per_scan(time.perf_counter, lambda: by_xrv(self.network, self.files)))
        print(f"loop: torchxrayvision's reader and PyTorch, one at a time: {1 / loop:.2f} scans/s")
        print(f"  predict gives {1 / whole:.2f}: {loop / whole:.2f} times that")

    def run_openvino(self, whole: float) -> None:
        from damcli.bundle.runtime import read_info

        print(f"openvino: {read_info(self.model).parity.openvino}")
        plain, other = (Model.open(self.model, device) for device in ("cpu", "openvino"))
        ours, theirs, seen = self.best(
            lambda: self.scored(plain.score, time.perf_counter),
            lambda: self.scored(other.score, time.perf_counter),
            lambda: seconds(self.scans, self.model, "--device", "openvino") / self.number,
        )
        print(f"  scoring alone {1 / ours:.2f} and {1 / theirs:.2f} scans/s: {ours / theirs:.2f} times ONNX Runtime")
        print(f"  the whole of predict {1 / whole:.2f} and {1 / seen:.2f} scans/s: {whole / seen:.2f} times")

    def run_start(self) -> None:
        one = folder_of(self.files[:1], 1, self.place / "one")
        took = min(seconds(one, self.model, "--device", "cpu") for _ in range(2 + self.rounds))
        print(f"start: predict on one file, from the shell and back: {took:.2f} s")

    def run_memory(self) -> None:
        files, model = drawn(20, self.place / "drawn"), self.place / "tiny.onnx"
        export("test_resnet", np.stack([read_scan(file, CONTRACT) for file in files]), model)
        few, many = (peak(folder_of(files, number, self.place / str(number)), model) for number in (200, 20_000))
        print(f"memory: {few:.0f} MiB for 200 scans, {many:.0f} MiB for 20,000: {many / few - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of DICOM files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as place:
        benchmark = Benchmark(asked.folder, Path(place), asked.scans, asked.rounds)
        # The others are compared with the whole of the same run.
        if compared := [part for part in asked.parts if part in ("torch", "loop", "openvino", "whole")]:
            whole = benchmark.run_whole()
            for part in compared:
                if part != "whole":
                    getattr(benchmark, f"run_{part}")(whole)
        for part in asked.parts:
            if part in ("start", "memory"):
                getattr(benchmark, f"run_{part}")()


if __name__ == "__main__":
    main()
