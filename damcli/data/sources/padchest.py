"""PadChest: 16-bit PNG in folders 0 to 54 or in one, labels as text of Python lists (FORMATS section 10.3).

Ids have up to 39 digits and are text. There is no official split. A finding is a label in the table's own words; it
does not count those below it in the authors' tree ("laminar atelectasis" is not "atelectasis").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from damcli.data.labels import choose
from damcli.data.sources import Source, check_rows, known, need, read_csv
from damcli.data.sources.tree import Tree, listed, python_lists

TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "chest_x_ray_images_labels_sample.csv")
NEEDED = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Labels")
# Metadata by the names that it has in a dataset; "year" and "born" give the age.
MORE = {
    "sex": "PatientSex_DICOM", "machine": "Manufacturer_DICOM", "label_method": "MethodLabel",
    "year": "StudyDate_DICOM", "born": "PatientBirth",
}  # fmt: skip
# What the CheXpert competition judges, in PadChest's words.
FINDINGS = ("cardiomegaly", "pulmonary edema", "consolidation", "atelectasis", "pleural effusion")
SEXES = {"M": "Male", "F": "Female", "O": "Other"}  # as in CheXpert
VIEWS = {"PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral"}
# Labels that do not say what is to be seen, and the one that takes back all beside it.
EMPTY, EXCLUDED = ["", "unchanged", "suboptimal study"], "exclude"
# A spreadsheet keeps 15 digits. A float keeps 53 bits, and whole numbers of 64 bits end where ids begin.
ROUNDED = r"^\d+([.,eE]|\d*0{15}$)"
FLOAT_DIGITS, FLOAT_STEP = 30, 2**40  # numbers of so many digits are multiples of it once they were floats
CLIPPED = [str(2**63 - 1), str(2**63), str(-(2**63))]


def read(path: Path, findings: Sequence[str] | None = None, views: Literal["frontal", "all"] = "frontal") -> Source:
    """Read PadChest, or the folders of it that were downloaded.

    `findings` are any labels of the table, by default the five of the CheXpert competition in its words: 1 where the
    list of a scan holds them, else 0. Scans are left out whose list is missing or says nothing, such as "unchanged".
    Frontal is PA, AP and AP_horizontal; "all" takes lateral views too, never others. Who labelled a scan, a physician
    or a network, is its metadata `label_method`; the age is the year of the study less that of birth, null where it
    cannot be. Raises `DataError` for ids that a program has rounded, and for a list that cannot be read (with its row).
    """
    tree = Tree(path)
    file = tree.need(*TABLES)
    table = read_csv(file, [*NEEDED, *MORE.values()])
    need(table, NEEDED, file)
    for name in ("PatientID", "StudyID"):
        what, fix = "the id is a rounded number: several may have become one", "take the table as it was downloaded"
        check_rows(~_rounded(table[name]), what, file, name, fix)
    lists = _lists(table["Labels"], file)
    every = sorted(set(lists.explode().drop_nulls()) - {""})
    wanted = choose(findings or FINDINGS, every if findings else FINDINGS, "label", file)
    scans = table.with_columns(
        lists,
        pl.col("Projection").replace_strict(VIEWS, default="other").alias("view"),
        *(known(table[column]).alias(name) if column in table.columns else pl.lit(None, pl.String).alias(name)
          for name, column in MORE.items()),
    ).filter(pl.col("Labels").is_not_null())  # fmt: skip
    notes = [f"took {file}: {len(table)} scans"]
    if unlabelled := len(table) - len(scans):
        notes.append(f"left out {unlabelled} scans whose labels are missing or say nothing")
    taken = ("frontal",) if views == "frontal" else ("frontal", "lateral")
    for view, number in scans["view"].value_counts(sort=True).iter_rows():
        if view not in taken:
            what = "lateral scans (--views all keeps them)" if view == "lateral" else "scans of other or unknown views"
            notes.append(f"left out {number} {what}")
    scans = scans.filter(pl.col("view").is_in(taken))
    age = scans["year"].str.slice(0, 4).cast(pl.Float64, strict=False) - scans["born"].cast(pl.Float64, strict=False)
    source = tree.source(
        "padchest",
        scans["ImageID"].str.replace(r"(?i)\.png$", ""),
        listed(scans["Labels"], wanted),
        patient=known(scans["PatientID"]),
        study=known(scans["StudyID"]),
        view=scans["view"],
        parts="ImageDir " + scans["ImageDir"],
        notes=notes,
        size=320,
        age=pl.select(pl.when(age.is_between(0, 100)).then(age)).to_series(),
        projection=scans["Projection"],
        sex=scans["sex"].replace(SEXES),
        machine=scans["machine"],
        label_method=scans["label_method"],
    )
    if by_network := int((source.scans["label_method"] != "Physician").sum()):
        source.notes.append(
            f"the labels of {by_network} scans are a network's, not a physician's (metadata: label_method)"
        )
    if unknown := source.scans["patient"].null_count():
        source.notes.append(f"{unknown} scans have no patient: each counts as one of its own, so patients may leak")
    return source


def _rounded(ids: pl.Series) -> pl.Series:
    """Return which ids a program has rounded or clipped, also where it wrote all digits out."""
    long = [text for text in ids.unique() if len(text) >= FLOAT_DIGITS and text.isdecimal()]
    floats = [text for text in long if int(text[-40:]) % FLOAT_STEP == 0]  # which 10**40 is a multiple of
    return ids.str.contains(ROUNDED) | ids.is_in(floats) | ids.is_in(CLIPPED)


def _lists(cells: pl.Series, file: Path) -> pl.Series:
    """Return the labels of each row, null where they are missing or say nothing."""
    lists = python_lists(cells, file)
    said = lists.list.eval(pl.element().str.to_lowercase()).list.set_difference(pl.Series([EMPTY]))
    says = (said.list.len() > 0) & ~lists.list.contains(EXCLUDED)
    return pl.select(pl.when(says).then(lists).alias(cells.name)).to_series()
