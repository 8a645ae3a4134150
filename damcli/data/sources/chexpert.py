"""CheXpert-v1.0 and -small as they lie on disk, with or without their top folder (FORMATS section 1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION, chexpert_policy, choose
from damcli.data.sources import Source, assemble, need, parse_labels, read_csv
from damcli.errors import DataError, UsageError

TABLES = {"train": "train.csv", "valid": "valid.csv"}
# A Path starts with the folder of its release, whatever the user's is called: what counts begins at the split.
SPLIT_SUFFIX = re.compile(r"^(?:.*/)?((?:train|valid|val|test)/.+)$", re.DOTALL)

# Also in names that users have flattened: patient00001_study1_view1_frontal.jpg.
PATIENT_STUDY = r"(?:^|/)(?<patient>patient[^/_]+)[/_](?:(?<study>study[^/_]+)[/_])?"


def find(folder: Path) -> Path:
    """Return the CheXpert tree (a folder with train.csv or valid.csv): `folder`, or the only one directly below it.

    Raises `UsageError` if `folder` is none or holds two equally good trees, `DataError` if it holds no tree.
    """
    if not folder.is_dir():
        what = "a CheXpert tree is a folder" if folder.exists() else "there is no such folder"
        raise UsageError(what, where=folder, fix="pass the folder that holds train.csv, or its parent")
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    trees = [path for path in below if _is_tree(path)]
    if _is_tree(folder) or (not trees and any((folder / name).is_file() for name in TABLES.values())):
        return folder
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


def read(path: Path, findings: Sequence[str] | None = None, views: Literal["frontal", "all"] = "frontal") -> Source:
    """Read a CheXpert tree: its `train.csv` and `valid.csv`, whose official split is kept.

    `findings` defaults to the five of the competition; lateral views are left out unless `views` is "all". Without a
    valid.csv the split is left open. Age 0 and Sex "Unknown" become null. Raises `DataError` for a table without a
    needed column, a label that is none (with its row), or a scan that is named twice.
    """
    tree = find(path)
    wanted = choose(findings or COMPETITION, CHEXPERT_FINDINGS, "finding", "CheXpert")
    present = {split: tree / name for split, name in TABLES.items() if (tree / name).is_file()}
    tables = [_table(file, wanted, split if len(present) > 1 or split == "valid" else None)
              for split, file in present.items()]  # fmt: skip
    table = pl.concat(tables)
    notes = [f"took {file}: {len(t)} scans" for file, t in zip(present.values(), tables, strict=True)]
    for split, name in TABLES.items():
        if split not in present:
            left_out = f", so the scans in {split}/ are left out" if (tree / split).is_dir() else ""
            notes.append(f"there is no {name}{left_out}")
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
    policies = {f: chexpert_policy(f) for f in wanted}
    return Source("chexpert", tree, scans, wanted, policies, notes, refused, size=320)


def _is_tree(folder: Path) -> bool:
    for name in TABLES.values():
        try:
            with (folder / name).open("rb") as file:
                if b"Path" in file.readline(4096):
                    return True
        except OSError:
            continue
    return False


def _table(file: Path, findings: Sequence[str], split: str | None) -> pl.DataFrame:
    table = read_csv(file)
    need(table, ["Path", *findings], file)
    name = table["Path"].str.replace(SPLIT_SUFFIX.pattern, "$1").alias("name")
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
        pl.Series("split", [split] * len(table), pl.String),
        *(parse_labels(table[finding], file).alias(f"label:{finding}") for finding in findings),
        optional["Sex"].replace(["", "Unknown"], None).alias("sex"),
        optional["Age"].cast(pl.Float64, strict=False).replace(0.0, None).alias("age"),
        optional["AP/PA"].replace("", None).alias("projection"),
    ])  # fmt: skip


def _pick(where: pl.Series, one: pl.Series, other: pl.Series) -> pl.Series:
    return pl.select(pl.when(where).then(one).otherwise(other)).to_series()
