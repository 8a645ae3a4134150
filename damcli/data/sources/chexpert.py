"""CheXpert as it lies on disk: small, full, Kaggle's and AIMI's trees, the later test set, other label files.

FORMATS section 1; CheXpert Plus is read by `chexpert_plus`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION, chexpert_policy, choose
from damcli.data.sources import Source, assemble, chexpert_plus, need, parse_labels, read_csv
from damcli.data.sources.chexpert_trees import SPLIT_SUFFIX, place
from damcli.errors import DataError, UsageError

# The tables of a split: the first that is there counts. The test set came later, with names of its own.
TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test_labels.csv", "test.csv"),
}
# Other labels of train, which are read only where they are asked for.
OTHER_LABELS = ("train_cheXbert.csv", "train_visualCheXbert.csv")
# AIMI's download: the tables in the first of several folders of images.
BATCH = re.compile(r".*\bbatch \d+\b.*")
# Also in names that users have flattened: patient00001_study1_view1_frontal.jpg.
PATIENT_STUDY = r"(?:^|/)(?<patient>patient[^/_]+)[/_](?:(?<study>study[^/_]+)[/_])?"


def find(folder: Path) -> Path:
    """Return the CheXpert tree (a folder with train.csv or valid.csv): `folder`, or the only one directly below it.

    Raises `UsageError` if `folder` is none or holds two equally good trees, `DataError` if it holds no tree.
    """
    if not folder.is_dir():
        what = "a CheXpert tree is a folder" if folder.exists() else "there is no such folder"
        raise UsageError(what, where=folder, fix="pass the folder that holds train.csv, or its parent")
    if _is_tree(folder):
        return folder
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    trees = [path for path in below if _is_tree(path)]
    if not trees and any((folder / name).is_file() for name in ("train.csv", "valid.csv")):
        return folder  # whose table lacks its first column, as reading it will say
    if not trees:
        looked = ", ".join(path.name for path in below[:10]) or "it has no folders"
        raise DataError(
            f"there is no CheXpert tree: neither train.csv nor valid.csv here or one level down ({looked})",
            where=folder.resolve(),
            fix="pass the folder that holds train.csv: damcli prepare chexpert FOLDER",
        )
    if len(trees) > 1:
        raise UsageError(
            f"{len(trees)} CheXpert trees are equally good: {', '.join(path.name for path in trees)}",
            where=folder.resolve(),
            fix=f"name one: damcli prepare chexpert {trees[0]}",
        )
    return trees[0]


def read(
    path: Path,
    findings: Sequence[str] | None = None,
    views: Literal["frontal", "all"] = "frontal",
    labels: Path | None = None,
) -> Source:
    """Read a CheXpert tree: the tables of train, valid and test that are there, whose official split is kept.

    `findings` defaults to the five of the competition; lateral views are left out unless `views` is "all". `labels` is
    another file of labels (for train: CheXbert's, visualCheXbert's; for CheXpert Plus), joined by path. Without a
    valid.csv the split of train is left open. Age 0 and Sex "Unknown" become null. Raises `DataError` for a table
    without a needed column, a label that is none (with its row), or a scan that is named twice.
    """
    tree = find(path)
    # Only the folder that holds the tables is known by them; images may lie in the folders beside it.
    root = tree.parent if BATCH.fullmatch(tree.absolute().name) else tree
    wanted = choose(findings or COMPETITION, CHEXPERT_FINDINGS, "finding", "CheXpert")
    if labels is not None and not labels.exists():
        labels = next((folder / labels for folder in (tree, root) if (folder / labels).exists()), labels)
    plus = chexpert_plus.table(tree)
    table, notes = _plus(tree, plus, wanted, labels) if plus else _splits(tree, root, wanted, labels)
    if views == "frontal":
        kept = table.filter(pl.col("view").ne_missing("lateral"))
        if len(kept) < len(table):
            notes.append(f"left out {len(table) - len(kept)} lateral scans (--views all keeps them)")
        table = kept
    if blank := int(table["patient"].null_count()):
        notes.append(
            f"{blank} scans have no patient in their Path: each counts as one of its own, so patients may leak"
        )
    scans, refused = assemble(table["name"].to_list(), tree, table.drop("name"))
    scans = scans.with_columns(path=pl.coalesce("place", "path")).drop("place")
    policies = {f: chexpert_policy(f) for f in wanted}
    return Source("chexpert", tree, scans, wanted, policies, notes, refused, size=320)


def _plus(tree: Path, file: Path, wanted: list[str], labels: Path | None) -> tuple[pl.DataFrame, list[str]]:
    scans = chexpert_plus.scans(file)
    labels = labels or chexpert_plus.labels_file(tree)
    table, told = _labelled(scans, chexpert_plus.labels(labels, wanted), labels)
    paths, how = place(tree, table["name"].to_list(), chexpert_plus.SUFFIXES)
    notes = [f"took {file}: {len(scans)} scans", told, *([f"the images {how}"] if how else [])]
    return table.with_columns(pl.Series("place", paths, pl.String)), notes


def _splits(tree: Path, root: Path, wanted: list[str], labels: Path | None) -> tuple[pl.DataFrame, list[str]]:
    """Return the scans of the tables of train, valid and test, and where their images lie; and notes."""
    tables, notes, present = [], [], set()
    for split, names in TABLES.items():
        file = next((tree / name for name in names if (tree / name).is_file()), None)
        if file is None:
            continue
        present.add(split)
        table = _table(file, wanted)
        notes.append(f"took {file}: {len(table)} scans")
        if split == "train" and labels is not None:
            columns = [f"label:{finding}" for finding in wanted]
            joined, told = _labelled(table.drop(columns), _table(labels, wanted).select("name", *columns), labels)
            table = joined.select(table.columns)
            notes.append(told)
        paths, how = place(root, table["name"].to_list())
        notes += [f"the images of {split} {how}"] if how else []
        tables.append(table.with_columns(pl.Series("place", paths, pl.String), split=pl.lit(split)))
    for split in ("train", "valid"):
        if split not in present:
            left_out = f", so the scans in {split}/ are left out" if (tree / split).is_dir() else ""
            notes.append(f"there is no {split}.csv{left_out}")
    if labels is not None and "train" not in present:
        raise UsageError("these labels are for train, of which there is no table", where=labels, fix="leave them out")
    others = [name for name in OTHER_LABELS if (tree / name).is_file() or (root / name).is_file()]
    if others and labels is None:
        notes.append(f"other labels for train are there too: --labels {others[0]} takes them")
    scans = pl.concat(tables)
    if "valid" not in present:
        scans = scans.with_columns(split=pl.col("split").replace("train", None))
    return scans, notes


def _is_tree(folder: Path) -> bool:
    if chexpert_plus.table(folder):
        return True
    for name in (name for names in TABLES.values() for name in names):
        try:
            with (folder / name).open("rb") as file:
                if b"Path" in file.readline(4096):
                    return True
        except OSError:
            continue
    return False


def _labelled(scans: pl.DataFrame, labels: pl.DataFrame, file: Path) -> tuple[pl.DataFrame, str]:
    """Return the scans with the labels of a file, joined by path; what only one side has is left out, and said."""
    if labels["name"].is_duplicated().any():
        raise DataError("the labels name a scan twice", where=file)
    joined = scans.join(labels, on="name", how="inner", maintain_order="left")
    if not len(joined):
        raise DataError("these labels name none of the scans", where=file, fix="pass labels of this set")
    told = f"took the labels from {file}"
    if lost := len(scans) - len(joined):
        told += f"; {lost} scans that it does not list are left out"
    if spare := len(labels.join(scans, on="name", how="anti")):
        told += f"; {spare} of its rows name no scan of the table"
    return joined, told


def _table(file: Path, findings: Sequence[str]) -> pl.DataFrame:
    table = read_csv(file)
    need(table, ["Path", *findings], file)
    # The folder of the validation set is called val by one release; the scans are the same.
    suffix = table["Path"].str.replace(SPLIT_SUFFIX.pattern, "$1")
    name = suffix.str.replace(r"^val/", "valid/").alias("name")
    folders = name.str.extract_groups(PATIENT_STUDY).struct.unnest()
    written = name.str.extract(r"(?i)_(frontal|lateral)\.\w+$").str.to_lowercase()
    optional = {column: table[column] if column in table.columns else pl.Series([""] * len(table))
                for column in ("Frontal/Lateral", "Sex", "Age", "AP/PA")}  # fmt: skip
    view = optional["Frontal/Lateral"].str.to_lowercase()
    return pl.DataFrame([
        name,
        folders["patient"],
        (folders["patient"] + "/" + folders["study"]).alias("study"),
        _pick(view.is_in(["frontal", "lateral"]), view, written).alias("view"),
        *(parse_labels(table[finding], file).alias(f"label:{finding}") for finding in findings),
        optional["Sex"].replace(["", "Unknown"], None).alias("sex"),
        optional["Age"].cast(pl.Float64, strict=False).replace(0.0, None).alias("age"),
        optional["AP/PA"].replace("", None).alias("projection"),
    ])  # fmt: skip


def _pick(where: pl.Series, one: pl.Series, other: pl.Series) -> pl.Series:
    return pl.select(pl.when(where).then(one).otherwise(other)).to_series()
