"""HAM10000: 10,015 images of 7,470 skin lesions with one of seven diagnoses (FORMATS section 12).

No patient is known. Several images show one lesion, which is never on two sides of a split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from damcli.data.labels import choose
from damcli.data.sources import Source, check_rows, check_same, known, need, read_csv, strange_ages, years
from damcli.data.sources.tree import Tree

# What the codes of `dx` mean; melanoma is called as in the melanoma source, whose models are evaluated here.
FINDINGS = {
    "akiec": "actinic keratosis", "bcc": "basal cell carcinoma", "bkl": "benign keratosis", "df": "dermatofibroma",
    "mel": "melanoma", "nv": "nevus", "vasc": "vascular lesion",
}  # fmt: skip
# Kaggle's; what Dataverse serves by default, tab-separated; and what it calls the original.
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
NAME = re.compile(r"ISIC_\d{7}", re.IGNORECASE)


def read(path: Path, findings: Sequence[str] | None = None) -> Source:
    """Read HAM10000 below `path`; `findings` defaults to all seven diagnoses, of which an image has exactly one.

    Patient and study are the lesion, null where it is not known. There is no official split. Age, sex, site and, where
    the table says it, the collection (`dataset`) are kept for the metadata network; how a diagnosis was confirmed is
    not: it tells of the diagnosis. Raises `DataError` for a table without a needed column, for a `dx` that is none, and
    for a lesion with two.
    """
    tree = Tree(path)
    file = tree.need(*TABLES)
    table = read_csv(file)
    need(table, COLUMNS, file)
    wanted = choose(findings or FINDINGS.values(), list(FINDINGS.values()), "finding", "ham10000")
    name = table["dx"].str.to_lowercase().replace_strict(FINDINGS, default=None, return_dtype=pl.String)
    check_rows(name.is_not_null(), f"a diagnosis is none of {', '.join(FINDINGS)}", file, "dx")
    lesion = known(table["lesion_id"])
    check_same(name, lesion, "another image of this lesion has another diagnosis", file, "dx")
    notes = [
        f"took {file}: {len(table)} images of {lesion.drop_nulls().n_unique()} lesions",
        "no patient is known: lesions are split, and those of one patient may leak",
        "ISIC 2018 and 2019 contain these images: a model that was trained on those has seen them",
    ]
    if blank := lesion.null_count():
        notes.append(f"{blank} images have no lesion id: each counts as one of its own, so leakage cannot be excluded")
    age = years(table["age"])
    notes += strange_ages(age, table["age"])
    site = known(table["localization"]).str.to_lowercase()
    dataset = known(table["dataset"]) if "dataset" in table.columns else None
    return tree.source(
        "ham10000", table["image_id"].str.to_uppercase(),
        {finding: (name == finding).cast(pl.Float64) for finding in wanted},
        key=_key, ids=table["image_id"].to_list(), notes=notes, size=384, channels=3,
        patient=lesion, study=lesion, age=age, sex=known(table["sex"]).str.to_lowercase(),
        site=site, dataset=dataset,
    )  # fmt: skip


def _key(path: Path) -> str | None:
    return path.stem.upper() if NAME.fullmatch(path.stem) else None
