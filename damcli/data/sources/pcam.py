"""PatchCamelyon: the official HDF5 files, plain or as `.gz`, and Kaggle's histopathologic-cancer-detection (.tif).

FORMATS section 7.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from damcli import files
from damcli.data import splits
from damcli.data.labels import Policy
from damcli.data.sources import Source, check_rows, need, parse_labels, read_csv, table_of
from damcli.errors import DataError, UsageError

PREFIX = "camelyonpatch_level_2_split_"
OFFICIAL = re.compile(PREFIX + r"(train|valid|test)_(x|y)\.h5(?:\.gz)?")
SIDE = 96
SLICE = 256  # images read at a time
KAGGLE_LABELS = "train_labels.csv"


def read(path: Path, imratio: float | None = None, seed: int = 0) -> Source:
    """Read PatchCamelyon below `path`; the finding is "tumor" (in the central 32 × 32 pixels).

    `imratio` makes the paper's training set: train and valid become one, and so large a share of it stays positive, at
    random by `seed`; test stays as it is. Patients are slides, where the meta files are there. Raises `UsageError` for
    an `imratio` that cannot be, `DataError` where nothing is recognised, or files that do not fit together.
    """
    if not path.is_dir():
        what = "PatchCamelyon is a folder" if path.exists() else "there is no such folder"
        raise UsageError(what, where=path, fix="pass the folder of the .h5 files, or of train_labels.csv")
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        if any(OFFICIAL.fullmatch(file.name) for file in folder.glob(PREFIX + "*")):
            return _official(folder, imratio, seed)
        if (folder / KAGGLE_LABELS).is_file():
            return _kaggle(folder, imratio, seed)
    raise DataError(
        f"there is no PatchCamelyon: neither {PREFIX}*.h5 nor {KAGGLE_LABELS} here or one level down",
        where=path.resolve(),
        fix="pass the folder of one of them: damcli prepare pcam FOLDER",
    )


def _official(folder: Path, imratio: float | None, seed: int) -> Source:
    found: dict[tuple[str, ...], Path] = {}
    for file in sorted(folder.glob(PREFIX + "*")):
        if named := OFFICIAL.fullmatch(file.name):
            found.setdefault(named.groups(), file)  # x.h5 comes before x.h5.gz, which then need not be unpacked again
    parts = [split for split in ("train", "valid", "test") if (split, "x") in found or (split, "y") in found]
    for split in parts:
        if len({(split, "x"), (split, "y")} & set(found)) < 2:
            raise DataError(f"of {split}, the images (_x) or the labels (_y) are missing", where=folder)
    labels = {split: _labels(found[split, "y"]) for split in parts}
    slides = {split: _slides(folder, split, labels[split]) for split in parts}
    images = {split: found[split, "x"].absolute() for split in parts}
    for split in parts:
        if images[split].suffix != ".gz":  # what is packed is checked once it is unpacked, which takes its time
            with _array(images[split], "x") as array:
                _check(array, len(labels[split]), images[split])
    scans = table_of(
        [f"{split}/{number:06d}" for split in parts for number in range(len(labels[split]))],
        [images[split] for split in parts for _ in labels[split]],
        {"tumor": pl.Series(np.concatenate([labels[split] for split in parts]))},
        patient=[slide for split in parts for slide in slides[split]],
        split=[split for split in parts for _ in labels[split]],
    )
    notes = [f"took {folder}: {', '.join(f'{len(labels[split])} {split}' for split in parts)} patches"]
    if unknown := [split for split in parts if not any(slides[split])]:
        notes.append(f"no meta file gives the slides of {', '.join(unknown)}: a slide may be in two splits")
    scans, kept, told = _imbalanced(scans, imratio, seed)

    def pixels(first: int) -> Iterator[NDArray[np.uint8] | DataError]:
        patches = chain.from_iterable(_patches(images[split], len(labels[split])) for split in parts)
        return islice(compress(patches, kept), first, None)

    return _source(folder, scans, [*notes, *told], pixels=pixels)


def _kaggle(folder: Path, imratio: float | None, seed: int) -> Source:
    file = folder / KAGGLE_LABELS
    table = read_csv(file)
    need(table, ["id", "label"], file)
    check_rows(table["id"].str.contains(r"^[0-9a-f]{40}$"), "an id is not 40 hex digits", file)
    ids = [f"train/{name}.tif" for name in table["id"]]
    scans = table_of(ids, [(folder / name).absolute() for name in ids], {"tumor": parse_labels(table["label"], file)})
    notes = [f"took {file}: {len(scans)} patches; no slide is known, so that no split of them is free of leaks"]
    if (folder / "test").is_dir():
        notes.append("the patches in test/ have no labels, and are left out")
    scans, _, told = _imbalanced(scans, imratio, seed)
    return _source(folder, scans, [*notes, *told])


def _source(folder: Path, scans: pl.DataFrame, notes: list[str], **more: Any) -> Source:
    return Source("pcam", folder, scans, ["tumor"], {"tumor": Policy()}, notes, size=SIDE, channels=3, **more)


def _imbalanced(scans: pl.DataFrame, imratio: float | None, seed: int) -> tuple[pl.DataFrame, list[bool], list[str]]:
    """Return the scans with train and valid as one, without the positives that are taken out; which stay; and notes."""
    if imratio is None:
        return scans, [True] * len(scans), []
    pool = scans["split"].ne_missing("test").to_numpy()
    positive = (scans["label:tumor"] == 1).to_numpy()
    kept = np.ones(len(scans), np.bool_)
    try:
        kept[pool] = splits.imbalanced(positive[pool], imratio, seed)
    except ValueError as error:
        raise UsageError(str(error), where="--imratio", fix="ask for a smaller share, or leave it out") from error
    left, whole = int((positive & kept & pool).sum()), int((kept & pool).sum())
    note = f"left {left} of {int((positive & pool).sum())} positives, {left / whole:.2%} of {whole} scans (seed {seed})"
    if (scans["split"] == "valid").any():
        note += ": train and valid are one, as in the paper; test is untouched"
        scans = scans.with_columns(pl.col("split").replace("valid", "train"))
    return scans.filter(pl.Series(kept)), kept.tolist(), [note]


def _labels(file: Path) -> NDArray[np.uint8]:
    """Read the labels of a part as uint8 (n,)."""
    with _array(file, "y") as array:
        if array.shape[1:] not in ((1, 1, 1), (1,), ()) or not len(array):
            raise DataError(f"these labels have the shape {array.shape}, not (n, 1, 1, 1)", where=file)
        labels = np.asarray(array[()]).reshape(-1)
    if not np.isin(labels, (0, 1)).all():
        raise DataError("a label is neither 0 nor 1", where=file)
    return labels.astype(np.uint8)


def _slides(folder: Path, split: str, labels: NDArray[np.uint8]) -> list[str | None]:
    """Return the slide of each patch from the meta file, which must agree with the labels; None without one."""
    name = f"{PREFIX}{split}_meta.csv"
    file = next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)
    if file is None:
        return [None] * len(labels)
    table = read_csv(file)
    need(table, ["wsi", "center_tumor_patch"], file)
    centre = table["center_tumor_patch"].str.to_lowercase() == "true"
    if not np.array_equal(centre.to_numpy(), labels == 1):
        raise DataError(
            "the labels are not those of this meta file (valid and test were exchanged in some downloads)",
            where=file,
            fix="fetch the files of this part again",
        )
    return [slide or None for slide in table["wsi"]]


def _patches(file: Path, number: int) -> Iterator[NDArray[np.uint8]]:
    with _array(file, "x") as array:
        _check(array, number, file)
        for start in range(0, number, SLICE):
            yield from array[start : start + SLICE]


def _check(array: Any, number: int, file: Path) -> None:
    if array.dtype != np.uint8 or array.shape != (number, SIDE, SIDE, 3):
        expected = f"uint8 ({number}, {SIDE}, {SIDE}, 3), an image for each label"
        raise DataError(f"these images are {array.dtype} {array.shape}, not {expected}", where=file)


@contextmanager
def _array(file: Path, key: str) -> Iterator[Any]:
    """Open an array of an HDF5 file, unpacking a `.gz` into a temporary file that no crash leaves behind."""
    import h5py

    with ExitStack() as stack:
        place: Any = stack.enter_context(_unpacked(file)) if file.suffix == ".gz" else file
        try:
            array = stack.enter_context(h5py.File(place, "r"))[key]
            if not isinstance(array, h5py.Dataset) or not array.shape:
                raise KeyError(key)
        except (OSError, KeyError) as error:
            raise DataError(f"this is no HDF5 file with an array {key!r}, or a damaged one", where=file) from error
        try:
            yield array
        except OSError as error:
            raise DataError("this HDF5 file is cut off or damaged", where=file) from error


@contextmanager
def _unpacked(file: Path) -> Iterator[Any]:
    with files.disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as place:
        try:
            with gzip.open(file) as packed:
                shutil.copyfileobj(packed, place, 2**24)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError("this .gz file is cut off or damaged", where=file) from error
        yield place
