"""Melanoma: ISIC 2020 (Kaggle's SIIM-ISIC, the archive's tables v1 and v2, the resized sets), other years beside it.

FORMATS section 8. Images are found by their ISIC name, as JPEG or DICOM, wherever they lie below the tables' folder.
Other years' images are for training only: they are in no fold, and so in none that is held out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from damcli.data.sources import Source, check_rows, known, read_csv
from damcli.data.sources.tree import Tree
from damcli.errors import DataError

NAME = re.compile(r"(ISIC_\d{7})(?:_downsampled)?", re.IGNORECASE)
# The files of the resized 2020 set, by the fold that the winners of the competition gave them (FORMATS section 8.3).
FOLDS = {0: (2, 4, 5), 1: (1, 10, 13), 2: (0, 9, 12), 3: (3, 8, 11), 4: (6, 7, 14)}
FOLD_OF_FILE = {number: fold for fold, numbers in FOLDS.items() for number in numbers}
# The columns by which a table is known; of other years' the first is the name, the second the label.
NAMED = ("image_name", "target", "patient_id")
OTHER_YEARS = (("image", "MEL", "NV"), ("image_id", "melanoma", "seborrheic_keratosis"))
AGES = ("age_approx", "age_approximate")
SITES = ("anatom_site_general_challenge", "anatom_site_general")


class _Table(NamedTuple):
    """A table as read: `scans` has key, name, target, patient, lesion, age, sex, site, fold and split."""

    file: Path
    scans: pl.DataFrame
    dropped: list[str]  # the keys of duplicates
    main: bool  # ISIC 2020, which is judged on; else another year


def read(path: Path) -> Source:
    """Read ISIC 2020 below `path`, and other years' tables that lie there too; the finding is "melanoma".

    Duplicates are dropped: `tfrecord` -1 where a table has that column, else the second name of the list of pairs. A
    patient is `patient_id`, else the lesion, else not known (-1 and blank are no patient). Images of other years are
    left out where 2020 has the image or its lesion. Age, sex and site are kept for the metadata network. Raises
    `DataError` where there is no table of 2020, or one that is broken.
    """
    tree = Tree(path)
    images = tree.images(_key)
    listed = [file for file in tree.tables if file.suffix.lower() == ".csv"]
    tables = [table for file in listed if (table := _read(file, listed))]
    main = [table for table in tables if table.main]
    if not main:
        raise DataError(
            f"there is no table of ISIC 2020 (columns {', '.join(NAMED)}) in this folder or below",
            where=path.resolve(),
            fix="put train.csv or ISIC_2020_Training_GroundTruth.csv beside the images",
        )
    chosen = max(main, key=_says)
    notes = [f"took {chosen.file}: {len(chosen.scans)} images of ISIC 2020, {len(chosen.dropped)} duplicates dropped"]
    notes += [f"left {table.file} out: another table of ISIC 2020" for table in main if table is not chosen]
    if chosen.scans["fold"].null_count() == 0:
        notes.append("folds are the leak-free ones of the resized set's files; fold 0 is valid")
    rows = [chosen.scans.with_columns(year=pl.lit("2020"))]
    # Whatever 2020 has may be held out: the other years must not train on it under another name.
    taken = {key for table in main for key in (*table.scans["key"], *table.dropped)}
    lesions = [lesion for table in main for lesion in table.scans["lesion"].drop_nulls()]
    for table in (table for table in tables if not table.main):
        if not table.scans["key"].is_in(list(images)).any():
            notes.append(f"left {table.file} out: none of its images is in this download")
            continue
        fresh = table.scans.filter(
            ~pl.col("key").is_in(list(taken)) & ~pl.col("lesion").is_in(lesions).fill_null(False)
        )
        taken.update(fresh["key"])
        rows.append(fresh.with_columns(split=pl.lit("train"), year=pl.lit("other")))
        notes.append(
            f"took {table.file}: {len(fresh)} images of another year, in train only, "
            f"{len(table.scans) - len(fresh)} left out that were taken already, or whose lesion is in ISIC 2020"
        )
    scans = pl.concat(rows)
    return tree.source(
        "melanoma", scans["key"], {"melanoma": scans["target"]}, key=_key, ids=scans["name"].to_list(), notes=notes,
        size=384, channels=3, folds=5, patient=scans["patient"], study=scans["lesion"], split=scans["split"],
        age=scans["age"], sex=scans["sex"], site=scans["site"], year=scans["year"], fold=scans["fold"],
    )  # fmt: skip


def _key(path: Path) -> str | None:
    """Return an image's name without what differs between years: the same image has other names in other ones."""
    named = NAME.fullmatch(path.stem)
    return named and named[1].upper()


def _says(table: _Table) -> tuple[bool, bool]:
    """What one table of 2020 says more than another: folds, then lesions."""
    return table.scans["fold"].null_count() == 0, table.scans["lesion"].null_count() == 0


def _read(file: Path, listed: Sequence[Path]) -> _Table | None:
    """Read a table if its columns are those of one of these sets."""
    header = _header(file)
    if header.issuperset(NAMED):
        return _named(file, listed)
    for name, target, other in OTHER_YEARS:
        if header.issuperset((name, target, other)):
            table = _with_metadata(read_csv(file), name, listed)
            return _Table(file, _scans(file, table, table[name], table[target]), [], main=False)
    return None


def _named(file: Path, listed: Sequence[Path]) -> _Table:
    """Read a table of 2020, or one of the resized sets, also of other years (where no patient is known)."""
    table = read_csv(file)
    scans = _scans(file, table, table["image_name"], table["target"])
    main = not _known(table, ("patient_id",)).is_null().all()
    if "tfrecord" in table.columns:
        number = table["tfrecord"].cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
        gone = (number < 0).fill_null(False)
        if main:
            check_rows(gone | number.is_in(list(FOLD_OF_FILE)), "a tfrecord is none of -1 to 14", file)
            fold = number.replace_strict(FOLD_OF_FILE, default=None, return_dtype=pl.Int32)
            # Every image has a fold: the first of them is what `evaluate` sees.
            held = pl.when(pl.col("fold") == 0).then(pl.lit("valid")).otherwise(pl.lit("train"))
            scans = scans.with_columns(fold.alias("fold")).with_columns(split=held)
    else:
        gone = table["image_name"].is_in(_duplicates(listed) if main else [])
    return _Table(file, scans.filter(~gone), scans.filter(gone)["key"].to_list(), main)


def _scans(file: Path, table: pl.DataFrame, name: pl.Series, target: pl.Series) -> pl.DataFrame:
    label = target.cast(pl.Float64, strict=False)
    check_rows(label.is_in([0.0, 1.0]), "a target is neither 0 nor 1", file, target.name)
    lesion = _known(table, ("lesion_id",))
    scans = pl.DataFrame([
        name.str.to_uppercase().str.strip_suffix("_DOWNSAMPLED").alias("key"),
        name.alias("name"),
        label.alias("target"),
        _known(table, ("patient_id",)).alias("patient"),
        lesion.alias("lesion"),
        _known(table, AGES).cast(pl.Float64, strict=False).alias("age"),
        _known(table, ("sex",)).str.to_lowercase().alias("sex"),
        _known(table, SITES).str.to_lowercase().alias("site"),
        pl.Series("fold", [None] * len(table), pl.Int32),
        pl.Series("split", [None] * len(table), pl.String),
    ])  # fmt: skip
    joined = scans.filter(pl.col("lesion").is_not_null() & pl.col("patient").is_not_null()).unique(
        ["lesion", "patient"]
    )
    if joined["lesion"].is_duplicated().any():
        raise DataError("a lesion belongs to two patients", where=file, fix="mend lesion_id or patient_id")
    owner = lesion.replace_strict(joined["lesion"], joined["patient"], default=None, return_dtype=pl.String)
    return scans.with_columns(patient=pl.coalesce("patient", owner, "lesion"))


def _known(table: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Return the first of `columns` that the table has, as text that is null where it is not known."""
    cells = next((table[column] for column in columns if column in table.columns), None)
    if cells is None:
        return pl.Series([None] * len(table), dtype=pl.String)
    return known(cells)


def _with_metadata(table: pl.DataFrame, name: str, listed: Sequence[Path]) -> pl.DataFrame:
    """Join what another table says of the images (age, sex, lesion): of several, the one that knows most of them."""
    others = [
        read_csv(file) for file in listed if {name, "sex"} <= (header := _header(file)) and "target" not in header
    ]
    about = max(others, key=lambda other: other[name].is_in(table[name].to_list()).sum(), default=None)
    if about is None:
        return table
    return table.join(about.unique(name, keep="first"), on=name, how="left", maintain_order="left")


def _duplicates(listed: Sequence[Path]) -> list[str]:
    """Return the images to drop: the second of each pair."""
    columns = [(file, column) for file in listed for column in ("image_name_2", "ISIC_id_paired")]
    return [name for file, column in columns if column in _header(file) for name in read_csv(file)[column]]


def _header(file: Path) -> set[str]:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as table:
            return {name.strip().strip('"') for name in table.readline(4096).split(",")}
    except FileNotFoundError:  # a link that leads nowhere
        return set()
