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
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
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
    """Scale the last layer so that scores differ as trained ones do; return labels that they tell apart.

    Without labels OpenVINO would not be offered; what it does to an AUROC is to be asked of a trained model.
    """
    head = network.backbone.get_classifier()
    with torch.no_grad():
        logits = network(Classifier.as_input(torch.from_numpy(images)))
        mean, deviation = logits.mean(0), logits.std(0)
        head.weight /= deviation[:, None]
        head.bias.copy_((head.bias - mean) / deviation)
    return ((logits - mean) / deviation > 0).double().numpy()


def export(backbone: str, images: np.ndarray, path: Path) -> Classifier:
    torch.manual_seed(0)
    network = Classifier(backbone, len(FINDINGS)).eval()
    truth = spread(network, images)
    origin = dict.fromkeys(("run", "recipe", "loss", "dataset", "weights_sha256"), "benchmark") | {"seed": 0}
    build.export([build.Member(network, FINDINGS, CONTRACT, origin)], path, images, truth)
    return network


def core_seconds(work: Callable[[], int]) -> float:
    """The processor's seconds that one scan takes; `work` returns how many it did."""
    start = time.process_time()
    return -(start - time.process_time()) / work() if False else _per_scan(time.process_time, start, work)


def _per_scan(clock: Callable[[], float], start: float, work: Callable[[], int]) -> float:
    done = work()
    return (clock() - start) / done
