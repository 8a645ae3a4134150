"""The benchmark sets of the paper and their like, known by how they lie on disk, made imbalanced as the paper does.

CIFAR-10 and -100, STL-10, cats and dogs (as photographs, or LibAUC's arrays), MedMNIST. FORMATS section 9; ALGORITHM
section 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, compress, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli.data import splits
from damcli.data.labels import Policy
from damcli.data.sources import Source, arrays
from damcli.data.sources.arrays import Block, Image
from damcli.errors import DataError, UsageError

SETS = "CIFAR-10, CIFAR-100, STL-10, cats and dogs, or a MedMNIST .npz"
# What the columns of MedMNIST's sets mean; the files do not say (MedMNIST, info.py).
NAMES = {
    "pneumoniamnist": ("pneumonia",),
    "breastmnist": ("normal or benign",),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
}  # fmt: skip
PHOTOGRAPH_SIDE = 50  # cats and dogs come in all sizes; LibAUC's arrays of them have this one
TEST_SHARE = 0.2  # of the photographs, which have no test set with labels


class Layout(NamedTuple):
    """A way in which a set lies in a folder: its name, what tells it, and what reads it."""

    name: str
    there: Callable[[Path], bool]
    read: Callable[[Path], list[Block]] | None  # None: photographs, a file each


LAYOUTS = (
    Layout("cifar10", lambda f: any((f / f"data_batch_1{s}").is_file() for s in ("", ".bin")), arrays.cifar),
    Layout("cifar100", lambda f: (f / "train.bin").is_file(), arrays.cifar),
    Layout("cifar100", lambda f: (f / "train").is_file() and (f / "meta").is_file(), arrays.cifar),
    Layout("stl10", lambda f: (f / "train_X.bin").is_file(), arrays.stl10),
    Layout("cats-vs-dogs", lambda f: (f / "cat_vs_dog_data.npy").is_file(), arrays.cats_and_dogs),
    Layout("cats-vs-dogs", lambda f: bool(_photographs(f)), None),
)


def read(path: Path, imratio: float | None = None, seed: int = 0) -> Source:
    """Read a benchmark set; `imratio` leaves so large a share of positives in `train`, at random by `seed`.

    Where there are more than two classes, those of the second half of the ids are the positives; MedMNIST's sets of
    two classes, and of several labels, keep their own. The test set stays as it is, and so does an official validation
    set. Raises `UsageError` for an `imratio` that cannot be, `DataError` where no set is recognised, or a broken one.
    """
    name, folder, layout = find(path)
    if layout is None:
        return _of_arrays(name, folder.parent, arrays.medmnist(folder), imratio, seed)
    if layout.read is None:
        return _of_photographs(folder, imratio, seed)
    return _of_arrays(name, folder, layout.read(folder), imratio, seed)


def find(path: Path) -> tuple[str, Path, Layout | None]:
    """Return a set's name, its folder (or `.npz`) and layout: at `path`, or the only one directly below it.

    Raises `UsageError` for a path that is not there, or two sets; `DataError` where nothing is recognised.
    """
    if not path.exists():
        raise UsageError("there is no such folder or file", where=path, fix=f"pass {SETS}")
    if path.is_file():
        if path.suffix == ".npz":
            return path.stem, path, None
        if path.suffix in (".gz", ".tar", ".zip", ".tgz"):
            raise UsageError("this is an archive", where=path, fix="unpack it, and pass the folder")
        path = path.parent
    found = list(_sets(path))
    for folder in sorted(path.iterdir()) if not found else ():
        found += _sets(folder) if folder.is_dir() else ()
    if len(found) == 1:
        return found[0]
    names = sorted(entry.name for entry in path.iterdir())
    if found:
        listed = ", ".join(str(place.relative_to(path)) for _, place, _ in found)
        raise UsageError(f"{len(found)} sets are equally good: {listed}", where=path.resolve(), fix="name one")
    archives = [entry for entry in names if entry.endswith((".gz", ".tar", ".zip", ".tgz"))]
    raise DataError(
        f"no benchmark set is recognised among {', '.join(names[:8]) or 'nothing'}",
        where=path.resolve(),
        fix=f"unpack {archives[0]}" if archives else f"pass the folder of {SETS}",
    )


def _sets(folder: Path) -> Iterator[tuple[str, Path, Layout | None]]:
    layout = next((layout for layout in LAYOUTS if layout.there(folder)), None)
    if layout:
        yield layout.name, folder, layout
    for file in sorted(folder.glob("*.npz")):
        yield file.stem, file, None


def _of_arrays(name: str, root: Path, blocks: list[Block], imratio: float | None, seed: int) -> Source:
    labels = np.concatenate([block.labels for block in blocks])
    split = np.concatenate([np.full(len(block.labels), block.split) for block in blocks])
    columns, notes = _columns(name, labels)
    kept = np.ones(len(labels), np.bool_)
    if imratio is not None:
        kept, note = _thinned(columns, split == "train", imratio, seed)
        notes.append(note)
    counted: Counter[str] = Counter()
    ids: list[str] = []
    for block in blocks:
        start = counted[block.split]
        counted[block.split] += len(block.labels)
        ids += [f"{block.split}/{number:06d}" for number in range(start, counted[block.split])]
    files = [str(block.file.resolve()) for block in blocks for _ in range(len(block.labels))]
    scans = _scans(ids, files, split, columns, labels if labels.ndim == 1 else None).filter(pl.Series(kept))

    def pixels(first: int) -> Iterator[Image]:
        images = chain.from_iterable(block.images() for block in blocks)
        return islice(compress(images, kept.tolist()), first, None)

    if (root / "unlabeled_X.bin").is_file():
        notes.append("the images without labels are left out")
    taken = ", ".join(f"{number} {part}" for part, number in counted.items())
    return Source(
        f"benchmark:{name}", root, scans, list(columns), {finding: Policy() for finding in columns},
        [f"took {root}: {name}, {taken} scans", *notes, NO_PATIENTS],
        size=blocks[0].side, channels=3 if blocks[0].colour else 1, pixels=pixels,
    )  # fmt: skip


NO_PATIENTS = "no patient is known: each scan counts as a patient of its own, so leakage cannot be excluded"


def _of_photographs(folder: Path, imratio: float | None, seed: int) -> Source:
    files = _photographs(folder)
    labels = np.array([label for _, label in files], np.int64)
    split = np.full(len(files), "train", object)
    generator = np.random.default_rng(0)  # the test set is one and the same whatever the seed
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        split[generator.permutation(members)[: round(TEST_SHARE * len(members))]] = "test"
    columns, notes = _columns("cats-vs-dogs", labels)
    kept = np.ones(len(labels), np.bool_)
    if imratio is not None:
        kept, note = _thinned(columns, split == "train", imratio, seed)
        notes.append(note)
    paths = [str(path.resolve()) for path, _ in files]
    ids = [path.relative_to(folder).as_posix() for path, _ in files]
    scans = _scans(ids, paths, split, columns, labels).filter(pl.Series(kept))
    drawn = f"{int((split == 'test').sum())} of them, drawn once and for all, are the test set"
    if (folder / "test").is_dir() or (folder / "test1").is_dir():
        notes.append("the photographs without labels are left out")
    return Source(
        "benchmark:cats-vs-dogs", folder, scans, list(columns), {finding: Policy() for finding in columns},
        [f"took {folder}: {len(files)} photographs; {drawn}", *notes, NO_PATIENTS],
        size=PHOTOGRAPH_SIDE, channels=3,
    )  # fmt: skip


def _photographs(folder: Path) -> list[tuple[Path, int]]:
    """Return the photographs in a folder with their class, 0 for cats and 1 for dogs, in a fixed order.

    Kaggle's names say it (`cat.0.jpg`, in `train/` or here), Microsoft's folders do (`Cat/0.jpg`).
    """
    found: list[tuple[Path, int]] = []
    for label, animal in enumerate(("cat", "dog")):
        below = [*folder.glob(f"{animal.capitalize()}/*.jpg"), *folder.glob(f"train/{animal}.*.jpg")]
        found += [(path, label) for path in sorted(below or folder.glob(f"{animal}.*.jpg"))]
    return found if {label for _, label in found} == {0, 1} else []


def _columns(name: str, labels: npt.NDArray[np.int64]) -> tuple[dict[str, npt.NDArray[np.float64]], list[str]]:
    """Return the findings with their labels (1 or 0), and what was made of the classes."""
    names = NAMES.get(name.split("_")[0])
    if labels.ndim == 2:
        names = (
            names if names and len(names) == labels.shape[1] else tuple(f"label {k}" for k in range(labels.shape[1]))
        )
        return {finding: labels[:, k].astype(np.float64) for k, finding in enumerate(names)}, []
    classes = int(labels.max()) + 1
    if classes < 2:
        raise DataError("all scans are of one class", where=name)
    half = (classes + 1) // 2
    positive = (labels >= half).astype(np.float64)
    if classes == 2:
        finding = names[0] if names else "dog" if name == "cats-vs-dogs" else "class 1"
        return {finding: positive}, [f"class 1 is positive: {finding}"]
    return {"positive": positive}, [f"classes 0 to {half - 1} are negative, {half} to {classes - 1} positive"]


def _thinned(
    columns: dict[str, npt.NDArray[np.float64]], train: npt.NDArray[np.bool_], imratio: float, seed: int
) -> tuple[npt.NDArray[np.bool_], str]:
    if len(columns) > 1:
        raise UsageError(f"a set of {len(columns)} findings has no one share of positives", where="--imratio")
    [labels] = columns.values()
    kept = np.ones(len(labels), np.bool_)
    try:
        kept[train] = splits.imbalanced(labels[train] == 1, imratio, seed)
    except ValueError as error:
        raise UsageError(str(error), where="--imratio", fix="ask for a smaller share, or leave it out") from error
    positives, all_of_it = int((labels[kept & train] == 1).sum()), int((kept & train).sum())
    return kept, (
        f"left {positives} of {int((labels[train] == 1).sum())} positives in train, {positives / all_of_it:.2%} of its "
        f"{all_of_it} scans (seed {seed}); the test set is untouched"
    )


def _scans(
    ids: list[str],
    paths: list[str],
    split: npt.NDArray,
    columns: dict[str, npt.NDArray[np.float64]],
    classes: npt.NDArray[np.int64] | None,
) -> pl.DataFrame:
    nothing = [pl.Series(name, [None] * len(ids), pl.String) for name in ("patient", "study", "view")]
    return pl.DataFrame([
        pl.Series("id", ids), pl.Series("path", paths), *nothing, pl.Series("split", split.tolist()),
        *(pl.Series(f"label:{finding}", values) for finding, values in columns.items()),
        *([] if classes is None else [pl.Series("class", classes)]),
    ])  # fmt: skip
