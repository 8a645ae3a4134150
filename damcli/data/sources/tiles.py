"""Kaggle's "DDSM Mammography", which the paper calls DDSM+: tiles of 299 × 299 as TFRecords and arrays.

FORMATS section 6. A tile is raw bytes, neither JPEG nor PNG. No patient is known, and tiles of one lesion lie on both
sides: leakage is certain, and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from damcli.data.labels import Policy, choose
from damcli.data.sources import Source, arrays, table_of, tfrecord
from damcli.errors import DataError

SIDE = 299
TRAINING_FILES = 5
# The five classes of `label`, and what they count as.
CLASSES = ("negative", "benign calcification", "benign mass", "malignant calcification", "malignant mass")
FINDINGS = {"abnormal": 1, "malignant": 3}  # positive from this class on


class _Part(NamedTuple):
    """One file of tiles: its split, and its classes in order."""

    file: Path
    split: str
    classes: list[int]


def there(path: Path) -> bool:
    """Whether the files of this set lie in a folder or one level down."""
    return any(True for _ in _records(path)) or bool(_arrays(path))


def read(path: Path, findings: Sequence[str] | None = None) -> Source:
    """Read the tiles below `path`: the TFRecords train, both arrays (`cv10`, `test10`) test.

    Of the two, one holds masses only among its positives and the other mostly calcifications: only together do they
    compare with train. Raises `DataError` for files that are cut off or hold something else.
    """
    chosen = choose(findings or ["abnormal"], list(FINDINGS), "finding", "--findings")
    parts = [_tfrecord(file) for file in _records(path)] + [_npy(file) for file in _arrays(path)]
    ids = [f"{part.file.stem}/{number:05d}" for part in parts for number in range(len(part.classes))]
    classes = np.array([code for part in parts for code in part.classes], np.int64)
    scans = table_of(
        ids,
        [part.file.absolute() for part in parts for _ in part.classes],
        {finding: (classes >= FINDINGS[finding]).astype(np.float64).tolist() for finding in chosen},
        split=[part.split for part in parts for _ in part.classes],
        **{"class": [CLASSES[code] for code in classes]},
    )
    kinds = {part.split for part in parts}
    notes = [f"took {len(parts)} files of DDSM+ tiles below {path}: {len(ids)} tiles"]
    if len([part for part in parts if part.split == "test"]) == 1:
        notes.append("only one of test10 and cv10 is there: one has masses only among its positives")
    if "test" not in kinds:
        notes.append("test10 and cv10 are not there: a part is split off at random")
        scans = scans.with_columns(split=pl.lit(None, pl.String))
    here = sum(part.split == "train" for part in parts)
    if 0 < here < TRAINING_FILES:
        notes.append(f"only {here} of the {TRAINING_FILES} training files are there")
    if "train" not in kinds:
        notes.append("training10_0 to training10_4 are not there: these tiles only test")
    notes.append(
        "no patient is known and every lesion was cropped several times: tiles of one patient lie on both sides, so "
        "that figures are too good for certain"
    )
    notes.append("the paper's DDSM+ test set of 13,900 images is in no public download")

    def pixels(first: int) -> Iterator[NDArray[np.uint8] | DataError]:
        return islice(chain.from_iterable(_images(part) for part in parts), first, None)

    policies = {finding: Policy() for finding in chosen}
    return Source("ddsm:tiles", path, scans, chosen, policies, notes, size=224, pixels=pixels)


def _records(path: Path) -> Iterator[Path]:
    yield from sorted([*path.glob("training10_*.tfrecords"), *path.glob("training10_*/*.tfrecords")])


def _arrays(path: Path) -> list[Path]:
    found = [*path.glob("*10_data.npy"), *path.glob("*10_data/*10_data.npy")]
    return sorted(file for file in found if file.name in ("test10_data.npy", "cv10_data.npy"))


def _tfrecord(file: Path) -> _Part:
    classes = []
    for number, record in enumerate(tfrecord.records(file)):
        found = tfrecord.features(record, file)
        label, image = found.get("label"), found.get("image")
        if not isinstance(label, list) or len(label) != 1 or not 0 <= label[0] < len(CLASSES):
            raise DataError(f"record {number} has no label from 0 to 4", where=file)
        if not isinstance(image, bytes) or len(image) != SIDE**2:
            raise DataError(f"record {number} has no image of {SIDE} x {SIDE} bytes", where=file)
        classes.append(int(label[0]))
    if not classes:
        raise DataError("this TFRecord file is empty", where=file)
    return _Part(file, "train", classes)


def _npy(file: Path) -> _Part:
    name = file.name.replace("_data", "_labels")
    labels_file = next((f for f in (file.with_name(name), file.parent.parent / name) if f.is_file()), None)
    if labels_file is None:
        raise DataError(f"{name} is missing", where=file, fix=f"put {name} beside it, or one level up")
    labels, images = arrays.npy(labels_file), arrays.npy(file)
    if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 1) or images.dtype != np.uint8:
        raise DataError(f"this array is {images.dtype} {images.shape}, not uint8 (n, {SIDE}, {SIDE}, 1)", where=file)
    if labels.shape != images.shape[:1] or not np.isin(labels, range(len(CLASSES))).all():
        raise DataError(f"{len(images)} tiles need as many labels from 0 to 4", where=labels_file)
    return _Part(file, "test", labels.astype(int).tolist())


def _images(part: _Part) -> Iterator[NDArray[np.uint8]]:
    if part.file.suffix == ".npy":
        for image in arrays.npy(part.file):
            yield np.ascontiguousarray(image[..., 0])
        return
    for record in tfrecord.records(part.file):
        image = tfrecord.features(record, part.file)["image"]
        assert isinstance(image, bytes)
        yield np.frombuffer(image, np.uint8).reshape(SIDE, SIDE)
