"""VinDr-CXR: frontal chest X-rays in DICOM, those of train read by three of 17 radiologists each.

FORMATS section 10.4. Kaggle's challenge has `train.csv`, a row per box, and images of test without labels; PhysioNet
has `annotations_train.csv` and `annotations_test.csv` with the same rows, and `image_labels_train.csv` and
`image_labels_test.csv` with a row per reading and a column per finding, diseases among them that no box can show. The
labels of test are the consensus of five readers, and name no reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import polars as pl

from damcli.data.labels import choose, uncertain
from damcli.data.sources import Source, check_rows, need, parse_labels, read_csv
from damcli.data.sources.consensus import Consensus, Rule, combine
from damcli.data.sources.tree import DICOM_FIRST, Tree
from damcli.errors import DataError

NOTHING = "No finding"
# The findings of the challenge by their numbers there; 14 is `NOTHING`.
CHALLENGE = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", NOTHING,
)  # fmt: skip
# Of one finding, what the table of test calls it, and that of train.
RENAMED = {"Other disease": "Other diseases"}
# Tables with a row per reading, and with a row per box; which of them go together.
READINGS = ("image_labels_train.csv", "image_labels_test.csv")
BOXES = ("annotations_train.csv", "annotations_test.csv", "train.csv")


def read(path: Path, findings: Sequence[str] | None = None, readers_rule: Rule = "majority") -> Source:
    """Read VinDr-CXR below `path`: the challenge's 14 findings and "No finding", unless others are named.

    Readers are combined by `consensus.combine`; a reader who lists nothing else has said "No finding". Tables with a
    row per reading come before those of boxes. Images of train have no split yet, those of test, where it is labelled,
    are test; no patient is known. Raises `DataError` where there is no table, or one that is broken.
    """
    tree = Tree(path, DICOM_FIRST)
    by_reading = tree.table(*READINGS) is not None
    train_names, test_names = (READINGS[:1], READINGS[1:]) if by_reading else (BOXES[::2], BOXES[1:2])
    files = {"train": tree.table(*train_names), "test": tree.table(*test_names)}
    there = {split: file for split, file in files.items() if file} or {"train": tree.need(*READINGS, *BOXES)}
    tables = {split: _read(file, split) for split, file in there.items()}
    # A column that one table lacks is not known there; a finding that no row names is not there.
    one, *other = (known for _, known in tables.values())
    named = [f for f in one if all(f in known for known in other)] if by_reading else sorted({*one, *chain(*other)})
    usual = [finding for finding in CHALLENGE if finding in named]
    wanted = usual if findings is None else choose(findings, named, "finding", "--findings")
    notes = [f"took {', '.join(file.name for file in there.values())}"]
    if findings is None and len(named) > len(usual):
        notes.append(f"findings are the challenge's {len(usual)} of {len(named)}: name others with --findings")
    parts = []
    for split, (rows, _) in tables.items():
        made = combine(rows, wanted, readers_rule, NOTHING)
        parts.append(
            pl.DataFrame([made.scans, *made.labels.values()]).with_columns(
                pl.lit("test" if split == "test" else None, pl.String).alias("split")
            )
        )
        notes.append(_said(split, made, rows, readers_rule))
    for split, readings, boxes in zip(files, READINGS, BOXES, strict=False):
        if by_reading and files[split] is None and (unread := tree.table(boxes)):
            notes.append(f"left {unread.name} out, which has boxes and no readings: {readings} would give {split}")
        elif files[split] is None:
            notes.append(f"there are no labels of {split}: its images are left out")
    notes.append("no patient is known: each scan counts as a patient of its own, so leakage cannot be excluded")
    scans = pl.concat(parts)
    labels = {finding: scans[finding] for finding in wanted}
    frontal = pl.Series(["frontal"] * len(scans))
    return tree.source("vindr-cxr", scans["scan"], labels, view=frontal, split=scans["split"], notes=notes, size=320)


def _read(file: Path, split: str) -> tuple[pl.DataFrame, list[str]]:
    """Return what readers list as rows (scan, reader, finding), null for a reading as such, and the findings known."""
    table = read_csv(file).rename({**RENAMED, "image_id": "scan", "rad_id": "reader"}, strict=False)
    if "reader" not in table.columns:
        if split == "train":
            raise DataError(
                "the table has no column 'rad_id': what three readers said of an image cannot be told apart",
                where=file, fix="take the table as it was given out",
            )  # fmt: skip
        # All rows of test are one consensus.
        table = table.with_columns(pl.lit("consensus").alias("reader"))
    need(table, ["scan"], file)
    for column, what in (("scan", "image"), ("reader", "reader")):
        check_rows(table[column] != "", f"the row names no {what}", file)
    return _boxes(table, file) if "class_name" in table.columns else _readings(table, file)


def _boxes(table: pl.DataFrame, file: Path) -> tuple[pl.DataFrame, list[str]]:
    name = table["class_name"]
    check_rows(name != "", "the row names no finding", file, "class_name", f"a scan without any has {NOTHING!r}")
    nothing = name.str.to_lowercase() == NOTHING.lower()
    if "class_id" in table.columns:
        same = nothing == (table["class_id"] == str(CHALLENGE.index(NOTHING)))
        check_rows(same, f"class 14 is {NOTHING!r}, and no other is", file, "class_id")
    rows = table.select("scan", "reader", pl.when(nothing).then(pl.lit(NOTHING)).otherwise(name).alias("finding"))
    return rows, sorted({*rows["finding"], NOTHING})


def _readings(table: pl.DataFrame, file: Path) -> tuple[pl.DataFrame, list[str]]:
    need(table, [NOTHING], file)
    read = table.select("scan", "reader")
    check_rows(~read.is_duplicated(), "this reader has read this scan before", file, fix="keep one row of a reading")
    known = [column for column in table.columns if column and column not in read.columns]
    labels = read.with_columns(parse_labels(table[finding], file) for finding in known)
    said = labels.select(pl.min_horizontal(known) >= 0).to_series()
    check_rows(said, "this reading is blank, or holds a -1", file, fix="a reader lists a finding, 1, or not, 0")
    listed = labels.unpivot(known, index=read.columns, variable_name="finding").filter(pl.col("value") == 1)
    return pl.concat([read.with_columns(pl.lit(None, pl.String).alias("finding")), listed.drop("value")]), known


def _said(split: str, made: Consensus, rows: pl.DataFrame, rule: Rule) -> str:
    counts = sorted(set(made.readers))
    if counts == [1]:
        return f"{split}: {len(made.scans)} scans, labelled once"
    each = " or ".join(map(str, counts))
    ties = sum(int(uncertain(cells.to_numpy()).sum()) for cells in made.labels.values())
    return (
        f"{split}: {len(made.scans)} scans, each read by {each} of {rows['reader'].n_unique()} readers, combined by "
        f"{rule}; they disagree on {made.disagree}" + (f", and {ties} labels are ties: uncertain" if ties else "")
    )
