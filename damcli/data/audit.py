"""What can make a dataset's figures better than they are: leaks between splits, copies, columns that tell the label.

Patients, studies and images that lie in two splits are leaks, and stop `prepare`; the rest is reported only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from damcli.config import Strict
from damcli.data import labels, splits
from damcli.errors import DataError
from damcli.metrics import auroc

# A column that alone ranks the scans of a finding so well is named: a network may learn it instead of the finding.
TELLING = 0.8
# With more values than this, text tells scans apart and not groups of them.
MOST_VALUES = 50
FEWEST = 10  # scans of either class, below which a column may tell the label by chance


class Concern(Strict):
    """Something that a user should know before trusting figures; `leak` is what may not pass without being allowed."""

    kind: Literal["patients", "studies", "folds", "images", "copies", "similar", "column", "unknown", "remark"]
    text: str
    scans: tuple[str, ...] = ()
    leak: bool = False


class Print(NamedTuple):
    """What an image is recognised by: a digest of its pixels, and of how it roughly looks; b"" where it is blank."""

    exact: bytes
    rough: bytes


def image_print(pixels: NDArray[np.uint8]) -> Print:
    """Return the print of a prepared image, uint8 (H, W) or (H, W, 3).

    `rough` is the difference hash: whether each of 8 × 8 areas is brighter than its right neighbour.

    >>> one, other = np.eye(64, dtype=np.uint8) * 50, np.eye(64, dtype=np.uint8) * 150
    >>> image_print(one).rough == image_print(other).rough, image_print(one) == image_print(other)
    (True, False)
    """
    grey = pixels if pixels.ndim == 2 else pixels[..., 1]
    # A grid of at most 128 x 128 of the pixels is enough for 9 x 8 means, and a tenth of the work.
    step = -(-max(grey.shape) // 128)
    grid = np.ascontiguousarray(grey[::step, ::step])
    small = cv2.resize(grid, (9, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    darker = small[:, 1:] < small[:, :-1]
    if not darker.any() and pixels.min() == pixels.max():
        return Print(b"", b"")
    return Print(hashlib.blake2b(pixels.data, digest_size=16).digest(), np.packbits(darker).tobytes())


def of_table(scans: pl.DataFrame, findings: Sequence[str]) -> list[Concern]:
    """Return what the table alone shows. `scans` as in `Source`, every scan with its split."""
    ids, parts = scans["id"].to_list(), scans["split"].to_list()
    found = []
    kinds: dict[Literal["patients", "studies"], str] = {"patients": "patient", "studies": "study"}
    # Where two patients have a study of one name, studies are numbered per patient, and patients alone are looked at.
    numbered = scans.group_by("study").agg(pl.col("patient").drop_nulls().n_unique()).filter(pl.col("patient") > 1)
    own = scans.with_columns(study=pl.when(~pl.col("study").is_in(numbered["study"].to_list())).then("study"))
    for kind, column in kinds.items():
        pairs = splits.crossing(own[column].to_list(), parts)
        if pairs:
            some = tuple(ids[row] for row in pairs[0])
            found.append(
                Concern(kind=kind, text=f"{len(pairs)} {kind} have scans in two splits", scans=some, leak=True)
            )
    if "fold" in scans.columns:
        folded = scans.filter(pl.col("fold").is_not_null())
        pairs = splits.crossing(folded["patient"].to_list(), folded["fold"].cast(pl.String).to_list())
        if pairs:
            some = tuple(folded["id"][row] for row in pairs[0])
            found.append(
                Concern(kind="folds", text=f"{len(pairs)} patients have scans in two folds", scans=some, leak=True)
            )
    unknown = scans["patient"].null_count()
    if unknown:
        many = "no scan's patient is known" if unknown == len(scans) else f"{unknown} scans have no patient id"
        found.append(Concern(kind="unknown", text=f"{many}: leakage cannot be excluded"))
    return [*found, *_telling_columns(scans, findings)]


def of_images(
    prints: Sequence[Print], ids: Sequence[str], parts: Sequence[str], paths: Sequence[str] | None = None
) -> list[Concern]:
    """Return what the prepared images show: copies across splits (a leak) and within one, and images that look alike.

    `paths` are the scans' files, where each has its own: they tell whether copies are copies of a file.
    """
    exact = _groups((p.exact for p in prints), parts)
    found = []
    if exact.crossing:
        one, other = exact.crossing[0]
        same = "" if paths is None else f", {_same_files(exact.crossing, paths)} of them the same file"
        text = f"{len(exact.crossing)} images are in two splits, pixel for pixel{same}"
        found.append(Concern(kind="images", text=text, scans=(ids[one], ids[other]), leak=True))
    if exact.within:
        one, other = exact.within[0]
        text = f"{len(exact.within)} scans are copies of another one in their split, pixel for pixel"
        found.append(Concern(kind="copies", text=text, scans=(ids[one], ids[other])))
    known = set(exact.crossing)
    similar = [pair for pair in _groups((p.rough for p in prints), parts).crossing if pair not in known]
    if similar:
        one, other = similar[0]
        text = f"{len(similar)} images look like one of another split (a coarse comparison, in which films may collide)"
        found.append(Concern(kind="similar", text=text, scans=(ids[one], ids[other])))
    return found


def of_remarks(remarks: Iterable[str]) -> list[Concern]:
    """Count what was remarkable of single scans."""
    counted = Counter(chain.from_iterable(text.split("; ") for text in remarks))
    return [Concern(kind="remark", text=f"{number} scans: {text}") for text, number in counted.most_common()]


def stop(concerns: Iterable[Concern], allow_leaks: bool) -> None:
    """Raise `DataError` for the first leak, unless leaks are allowed."""
    leak = next((concern for concern in concerns if concern.leak), None)
    if leak and not allow_leaks:
        raise DataError(
            leak.text,
            where=" and ".join(leak.scans),
            fix="put each patient and image into one split, or accept figures that are too good: --allow-leaks",
        )


class _Groups(NamedTuple):
    """Pairs of rows with one key: (the first row, one of another split), (the first of a split, another of it)."""

    crossing: list[tuple[int, int]]
    within: list[tuple[int, int]]


def _groups(keys: Iterable[bytes], parts: Sequence[str]) -> _Groups:
    first: dict[bytes, dict[str, int]] = {}
    found = _Groups([], [])
    for row, (key, part) in enumerate(zip(keys, parts, strict=True)):
        if not key:
            continue
        seen = first.setdefault(key, {})
        if part in seen:
            found.within.append((seen[part], row))
            continue
        if seen:
            found.crossing.append((next(iter(seen.values())), row))
        seen[part] = row
    return found


def _same_files(pairs: Sequence[tuple[int, int]], paths: Sequence[str]) -> int:
    def content(path: str) -> bytes:
        try:
            with Path(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return path.encode("utf-8", "surrogateescape")

    return sum(content(paths[one]) == content(paths[other]) for one, other in pairs)


def _telling_columns(scans: pl.DataFrame, findings: Sequence[str]) -> list[Concern]:
    """Name the metadata columns that alone rank a finding's scans in train at an AUROC of `TELLING` or more."""
    # "class" is what the label of benchmark sets and tiles was made of.
    known = {"id", "path", "patient", "study", "split", "fold", "class", *(f"label:{finding}" for finding in findings)}
    train = scans.filter(pl.col("split") == "train")
    found = []
    for finding in findings:
        label = labels.certain(train[f"label:{finding}"].to_numpy())
        judged = ~np.isnan(label)
        truth = label[judged]
        if min((truth == 1).sum(), (truth == 0).sum()) < FEWEST:
            continue
        for column in train.columns:
            if column in known:
                continue
            value = _tells(train[column].filter(pl.Series(judged)), truth)
            if value >= TELLING:
                text = f"the column {column} alone tells {finding} with AUROC {value:.2f} in train"
                found.append(Concern(kind="column", text=text))
    return found


def _tells(cells: pl.Series, truth: NDArray[np.float64]) -> float:
    if cells.dtype.is_numeric():
        values = np.nan_to_num(cells.cast(pl.Float64).fill_null(-np.inf).to_numpy())  # what is blank comes first
        value = float(auroc(truth, values))
        return max(value, 1 - value)
    cells = cells.cast(pl.String).fill_null("")
    if not 1 < cells.n_unique() <= MOST_VALUES:
        return 0.0
    share: Mapping[str, float] = dict(
        pl.DataFrame({"cell": cells, "truth": truth}).group_by("cell").agg(pl.col("truth").mean()).iter_rows()
    )
    return float(auroc(truth, np.array([share[cell] for cell in cells])))
