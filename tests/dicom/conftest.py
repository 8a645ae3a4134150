"""Small DICOM images made on the spot, with any header."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from damcli.dicom import pixels


def make(stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """An image of these stored values; a keyword sets a DICOM element, None removes it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = "Doe^Jane"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.HighBit = elements.get("HighBit", dataset.BitsStored - 1)
    if "PixelData" not in elements:
        dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def written(dataset: Dataset) -> bytes:
    """The file of a dataset."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="session")
def dicom() -> Callable[..., Dataset]:
    """Make a dataset, write it and read it back, as a file of a scanner would be."""

    def build(stored: np.ndarray, **elements: Any) -> Dataset:
        return pixels.read(io.BytesIO(written(make(stored, **elements))))

    return build


@pytest.fixture(scope="session")
def dicom_file() -> Callable[..., bytes]:
    """Make the bytes of a DICOM file."""
    return lambda stored, **elements: written(make(stored, **elements))
