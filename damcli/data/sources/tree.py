"""The files of a download, looked at once: tables are found by their names, images by the name that tables give them.

A reader says what the columns of its tables mean and how a file's path is turned into the name that they use; which
image belongs to which row, and what is said of those that are missing, double or left over, is the same for all.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from damcli.data.labels import Policy
from damcli.data.sources import (
    UNKNOWN,
    Source,
    as_text,
    blank_to_null,
    check_rows,
    files_below,
    refuse_twice,
    table_of,
)
from damcli.errors import DataError, UsageError

KINDS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".dcm": "DICOM", ".dicom": "DICOM", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
IMAGES = tuple(KINDS)  # of several files of one image the first of these counts
# DICOM comes before what was made of it, whose window nobody knows, and which has no header.
DICOM_FIRST = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
MISSING = 0.05  # the share of a set's images without which a part of the download seems to be missing
NO_COMMA = re.compile(r"(?<=\w)'\s*'(?=\w)")  # between two texts of a list, as NumPy writes it

Key = Callable[[Path], str | None]


def stem(path: Path) -> str | None:
    """Return what a file is called without its suffix: the name that most tables use."""
    return path.stem


class Tree:
    """The files of a download: its tables, and its images. Hidden files are passed over.

    `suffixes` are those of `IMAGES` that images of this set have, in any case, by the order in which they count. Raises
    `UsageError` where `root` is no folder, or one below it cannot be read.
    """

    def __init__(self, root: Path, suffixes: Sequence[str] = IMAGES) -> None:
        if not root.is_dir():
            what = "this download is a folder" if root.exists() else "there is no such folder"
            raise UsageError(what, where=root, fix="pass the folder that holds the tables and the images")
        self.root = root
        self.tables: list[Path] = []  # whatever is no image, folder by folder
        self._images: list[Path] = []  # below the root
        self._suffixes = list(suffixes)
        for file in files_below(root):
            below = file.relative_to(root)
            if any(part.startswith(".") for part in below.parts):
                continue
            if file.suffix.lower() in suffixes:
                self._images.append(below)
            else:
                self.tables.append(file)

    def table(self, *names: str) -> Path | None:
        """Return the table called like the first of `names` that is there, in any case, also with .gz behind it.

        Of several the one nearest to the root counts. Raises `UsageError` where two are equally near.
        """
        for name in names:
            spellings = (name.casefold(), f"{name}.gz".casefold())
            found = [file for file in self.tables if file.name.casefold() in spellings]
            least = min((len(file.parts) for file in found), default=0)
            nearest = [file for file in found if len(file.parts) == least]
            # One that was unpacked beside its archive is the same table.
            nearest = [file for file in nearest if file.suffix.lower() != ".gz" or file.with_suffix("") not in nearest]
            if len(nearest) > 1:
                where = ", ".join(str(file.relative_to(self.root)) for file in nearest)
                raise UsageError(
                    f"which {name}? there are {len(nearest)}: {where}",
                    where=self.root.resolve(),
                    fix="pass the folder of one download",
                )
            if nearest:
                return nearest[0]
        return None

    def need(self, *names: str) -> Path:
        """Return the table called like the first of `names` that is there. Raises `DataError` where none is."""
        found = self.table(*names)
        if found is None:
            raise DataError(
                f"there is no {' or '.join(names)} in this folder or below",
                where=self.root.resolve(),
                fix="pass the folder that holds this table, or put it beside the images",
            )
        return found

    def images(self, key: Key = stem) -> dict[str, list[Path]]:
        """Return the images' paths below the root by what `key` makes of them; None is no image of this set.

        The images of a key are in the order in which they count: by the order of the suffixes, then by folder.
        """
        found: dict[str, list[Path]] = defaultdict(list)
        for file in self._images:
            if (name := key(file)) is not None:
                found[as_text(name)].append(file)
        for files in found.values():
            files.sort(key=lambda file: self._suffixes.index(file.suffix.lower()))
        return dict(found)

    def source(
        self,
        name: str,
        keys: pl.Series,
        labels: Mapping[str, pl.Series],
        *,
        key: Key = stem,
        ids: Sequence[str] | None = None,
        patient: pl.Series | None = None,
        study: pl.Series | None = None,
        view: pl.Series | None = None,
        split: pl.Series | None = None,
        parts: pl.Series | None = None,
        policies: Mapping[str, Policy] | None = None,
        notes: Sequence[str] = (),
        size: int = 224,
        channels: Literal[1, 3] = 1,
        folds: int | None = None,
        **metadata: pl.Series | None,
    ) -> Source:
        """Return the scans of a table whose image is there; a row without one is refused, and leftovers are counted.

        `keys` names the image of each row as `key` names files; all other columns have the same length, and those that
        are None are left out. A scan's id is its path below the root unless `ids` gives it; of several files of an
        image, one that is called like its id comes first. `parts` says in which part of the set (folder, archive) each
        row's image is given out: rows of a part that was not downloaded at all are left out, not refused. Raises
        `DataError` where there is no row, two rows name one image, or none of the images is there.
        """
        if not len(keys):
            fix = "ask for other views or labels, or take the tables as they were given out"
            raise DataError("no scan of the tables is left to take", where=self.root.resolve(), fix=fix)
        keys = blank_to_null(keys)
        refuse_twice(pl.DataFrame({"id": keys.drop_nulls()}))
        images = self.images(key)
        there = keys.is_in(list(images)).fill_null(False)
        if not there.any():
            raise DataError(
                "there are tables, but none of their images below this folder",
                where=self.root.resolve(),
                fix="unpack the images below this folder, or pass the one that holds both",
            )
        top = self.root.absolute()
        names = keys if ids is None else pl.Series(ids, dtype=pl.String)
        absent, told = _absent(parts, there)
        gone = ~(there | absent)
        refused = [
            (name or "", "the row names no file" if key is None else "the image is not in this download")
            for key, name in zip(keys.filter(gone), names.filter(gone), strict=True)
        ]
        found = [images[key] for key in keys.filter(there)]
        named = names.filter(there).to_list()
        files = [_called(several, name) for several, name in zip(found, named, strict=True)]
        texts = {"patient": patient, "study": study, "view": view, "split": split}
        scans = table_of(
            [as_text(file.as_posix()) for file in files] if ids is None else named,
            [as_text(str(top / file)) for file in files],
            {finding: cells.filter(there) for finding, cells in labels.items()},
            **{column: cells.filter(there) for column, cells in (texts | metadata).items() if cells is not None},
        )
        if len(refused) > MISSING * (len(found) + len(refused)):
            told.append(
                f"{len(refused)} of {len(found) + len(refused)} images are not there: is a part of the download "
                "missing? fetch it, or go on without it: --max-rejected"
            )
        if made := sum(KINDS[file.suffix.lower()] != "DICOM" for file in files) if self._suffixes[0] == ".dcm" else 0:
            told.append(
                f"{made} images are pictures that were made of the DICOM files: how their greys were windowed and "
                "MONOCHROME1 inverted cannot be known"
            )
        told += self._twice([several for several in found if len(several) > 1])
        if spare := len(images) - len(found):
            told.append(f"{spare} images without a label, or of rows left out, are not taken")
        rules = {finding: (policies or {}).get(finding, Policy()) for finding in labels}
        return Source(
            name, self.root, scans, list(labels), rules, [*notes, *told], refused,
            size=size, channels=channels, folds=folds,
        )  # fmt: skip

    def _twice(self, found: Sequence[Sequence[Path]]) -> list[str]:
        """Say how many images are there more than once, and which of their files counts."""
        suffixes = {file.suffix.lower() for several in found for file in several}
        kinds = dict.fromkeys(KINDS[suffix] for suffix in self._suffixes if suffix in suffixes)
        order = f"{' comes before '.join(kinds)}, and then the first folder" if len(kinds) > 1 else "the first folder"
        return [f"{len(found)} images are there more than once: {order} counts"] if found else []


def _absent(parts: pl.Series | None, there: pl.Series) -> tuple[pl.Series, list[str]]:
    """Return which rows belong to parts of which no image is there, and what is said of them."""
    if parts is None:
        return pl.Series([False] * len(there)), []
    absent = ~parts.is_in(parts.filter(there).unique().to_list()).fill_null(True)
    lacking = parts.filter(absent).unique(maintain_order=True).to_list()
    listing = ", ".join(lacking[:10]) + (", …" if len(lacking) > 10 else "")
    said = f"left out {absent.sum()} scans of parts that are not in this download: {listing}"
    return absent, [said] if lacking else []


def _called(files: Sequence[Path], name: str) -> Path:
    """Return the first file that is called `name`, else the first."""
    return min(files, key=lambda file: file.stem.casefold() != name.casefold())


def listed(cells: pl.Series, findings: Sequence[str], separator: str = "|") -> dict[str, pl.Series]:
    """Return 1 or 0 by finding, for cells that list the findings of a scan; a null cell is null for all of them.

    Cells are text with a separator, or lists as `python_lists` returns them.

    >>> listed(pl.Series(["Mass|Edema", "No Finding"]), ["Edema"])["Edema"].to_list()
    [1.0, 0.0]
    """
    text = cells.dtype != pl.List
    lists = cells.str.split(separator).list.eval(pl.element().str.strip_chars()) if text else cells
    return {finding: lists.list.contains(finding).cast(pl.Float64).alias(finding) for finding in findings}


def python_lists(cells: pl.Series, path: Path) -> pl.Series:
    """Return cells that hold the text of a Python list of texts as lists, null where they say that nothing is known.

    Nothing of them is run. Lists may be broken over lines, also within a text, and those that NumPy has written lack
    their commas. Raises `DataError` naming the first row that is none.

    >>> python_lists(pl.Series(["['Mass', 'Edema']", "['Mass' 'Edema']", "nan"]), Path("a.csv")).to_list()
    [['Mass', 'Edema'], ['Mass', 'Edema'], None]
    """
    read = {text: _python_list(" ".join(text.split())) for text in cells.unique()}  # most rows say what others do
    lists = pl.Series(cells.name, [read[text] for text in cells], pl.List(pl.String))
    blank = cells.str.to_lowercase().is_in(UNKNOWN)
    check_rows(blank | lists.is_not_null(), "this is no list of texts, such as ['Mass']", path, cells.name)
    return lists


def _python_list(text: str) -> list[str] | None:
    try:
        value = ast.literal_eval(NO_COMMA.sub("', '", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    good = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return [part.strip() for part in value] if good else None
