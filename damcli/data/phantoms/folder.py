"""Writes phantoms to disk: a CheXpert-v1.0-small tree of JPEG and DICOM, and a folder of scans to predict."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from damcli import files
from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION
from damcli.data.phantoms.drawing import Field, frontal, lateral
from damcli.data.phantoms.population import Patient, patients

TREE = "CheXpert-v1.0-small"
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
# CheXpert numbers its patients so; the scans to predict come from its test patients.
FIRST = {"train": 1, "valid": 64541, "test": 64741}
SHARES = {"train": 0.6, "valid": 0.3, "test": 0.1}
DICOM_EVERY = 8  # one patient of so many in the tree has DICOM files, the others JPEG


def write_chexpert(folder: Path, count: int, seed: int) -> Iterator[int]:
    """Draw `count` patients (60 % train, 30 % valid, 10 % test) and yield the number of scans after each.

    Writes `CheXpert-v1.0-small/` (`train/`, `valid/`, and last `train.csv`, `valid.csv` with the 19 official columns;
    uncertain and blank labels in train only), `scans/` (DICOM, some JPEG, the test patients) and `scans.csv` (`path`
    relative to `scans/`, then the five competition findings as 0 or 1). The DICOM files hold made-up identifiers, all
    of which contain `PHANTOM`, so that tests can see whether they leak. `folder` must hold none of these. Raises
    `ValueError` for fewer than 10 patients.
    """
    if count < 10:
        raise ValueError(f"count must be at least 10 patients, got {count}")
    sizes = {split: round(count * share) for split, share in SHARES.items()}
    sizes["train"] = count - sizes["valid"] - sizes["test"]
    with files.disk_errors(folder):
        for split in ("train", "valid"):
            rows: list[list[str]] = []
            for patient in patients(FIRST[split], sizes[split], seed, most_studies=3 if split == "train" else 1):
                drawn = list(_chexpert_rows(folder, split, patient, seed))
                rows += drawn
                yield len(drawn)
            # Last, so that a tree that was cut short has no table and is not taken for a whole one.
            files.write_text(folder / TREE / f"{split}.csv", _csv(COLUMNS, rows))
        rows = []
        for patient in patients(FIRST["test"], sizes["test"], seed, most_studies=1):
            rows.append(_test_row(folder, patient, seed))
            yield 1
        files.write_text(folder / "scans.csv", _csv(("path", *COMPETITION), rows))


def _chexpert_rows(folder: Path, split: str, patient: Patient, seed: int) -> Iterator[list[str]]:
    rng = patient.rng
    suffix = ".dcm" if patient.number % DICOM_EVERY == 0 else ".jpg"
    for number, study in enumerate(patient.studies, 1):
        labels = study.reported(rng) if split == "train" else study.truth()
        more = rng.random()
        views = ["frontal", *(["lateral"] if more < 0.12 else ["frontal"] if more > 0.9 and split == "train" else [])]
        projection = "AP" if rng.random() < 0.8 else "PA"
        for view, side in enumerate(views, 1):
            path = f"{TREE}/{split}/patient{patient.number:05d}/study{number}/view{view}_{side}{suffix}"
            if side == "frontal":
                grey = frontal(patient.anatomy, study.severity, study.device, rng)
            else:
                grey = lateral(patient.anatomy, study.severity, rng)
            position = "LL" if side == "lateral" else projection
            _write_scan(folder / path, grey, patient, f"{seed}/{number}", view, position)
            about = [path, patient.sex, str(patient.age), side.capitalize(), projection if side == "frontal" else ""]
            yield about + [_cell(labels[name]) for name in CHEXPERT_FINDINGS]


def _test_row(folder: Path, patient: Patient, seed: int) -> list[str]:
    study, number = patient.studies[0], patient.number - FIRST["test"] + 1
    name = f"IM{number:05d}" + (".jpg" if number % 4 == 0 else ".dcm")
    grey = frontal(patient.anatomy, study.severity, study.device, patient.rng)
    _write_scan(folder / "scans" / name, grey, patient, f"{seed}/1", 1, "AP")
    return [name] + [str(int(study.truth()[finding])) for finding in COMPETITION]


def _write_scan(path: Path, grey: Field, patient: Patient, study: str, view: int, position: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Image.fromarray((grey * 255).round().astype(np.uint8)).save(path, quality=90)
    else:
        _write_dicom(path, grey, patient, study, view, position)


def _write_dicom(path: Path, grey: Field, patient: Patient, study: str, view: int, position: str) -> None:
    """Write 12 of 16 bits, explicit VR little endian: DX with a window, or CR in MONOCHROME1 for odd patients.

    DICOM PS3.3 A.2 (CR), A.26 (DX); C.11.2.1.2 (window, LINEAR); C.7.6.3.1.2 (MONOCHROME1: the lowest value is white).
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
        generate_uid,
    )

    inverted = patient.number % 2 == 1 or patient.number % (2 * DICOM_EVERY) == 0
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = (
        ComputedRadiographyImageStorage if inverted else DigitalXRayImageStorageForPresentation
    )
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{patient.number}/{study}/{view}"])
    scan = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.StudyInstanceUID = generate_uid(entropy_srcs=[f"{patient.number}/{study}"])
    scan.SeriesInstanceUID = generate_uid(entropy_srcs=[f"{patient.number}/{study}/series"])
    scan.Modality = "CR" if inverted else "DX"
    scan.PatientName = f"PHANTOM^DRAWN{patient.number:05d}"
    scan.PatientID = f"PHANTOM-{patient.number:05d}"
    scan.AccessionNumber = f"PHANTOM{patient.number:05d}"
    scan.InstitutionName = "PHANTOM HOSPITAL"
    scan.ReferringPhysicianName = "PHANTOM^REFERRER"
    scan.PatientBirthDate = f"{2020 - patient.age}0704"
    scan.StudyDate, scan.StudyTime, scan.StudyID = "20200817", "120000", "1"
    scan.PatientSex = patient.sex[0]
    scan.SeriesNumber, scan.InstanceNumber = 1, view
    scan.BodyPartExamined, scan.ViewPosition, scan.PatientOrientation = "CHEST", position, ["L", "F"]
    scan.ImagerPixelSpacing = [1.0, 1.0]
    stored = np.round(300 + 3000 * grey).astype(np.uint16)
    scan.WindowCenter, scan.WindowWidth = 1800, 3000
    if inverted:
        stored, scan.WindowCenter = 4095 - stored, 4095 - 1800
    scan.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    scan.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    scan.SamplesPerPixel, scan.PixelRepresentation = 1, 0
    scan.Rows, scan.Columns = grey.shape
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 12, 11
    scan.PixelData = stored.astype("<u2").tobytes()
    scan.save_as(path, enforce_file_format=True)


def _cell(label: float) -> str:
    return "" if math.isnan(label) else f"{label:.1f}"


def _csv(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
