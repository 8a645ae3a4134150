"""VinDr-Mammo: 5,000 screening exams of four views in DICOM, with a BI-RADS assessment of every breast.

FORMATS section 11.2. `breast-level_annotations.csv` has a row per image, with the assessment of its breast;
`finding_annotations.csv` has a row per box, or one of "No Finding" for an image without a box.
Raw images (FOR PROCESSING), which the owner's viewer skips, are taken: `prepare` remarks and counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from damcli.data.labels import choose
from damcli.data.sources import Source, blank_to_null, check_rows, check_same, need, read_csv
from damcli.data.sources.tree import DICOM_FIRST, Tree, listed, python_lists

BREASTS, BOXES = "breast-level_annotations.csv", "finding_annotations.csv"
SUSPICIOUS = "suspicious"
COLUMNS = ("study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split")
SPLITS = {"training": None, "test": "test"}


def read(path: Path, findings: Sequence[str] | None = None) -> Source:
    """Read VinDr-Mammo below `path`; the finding is "suspicious", unless others are named.

    "suspicious" is of the breast: positive for BI-RADS 4 and 5, negative for 1 to 3, blank where there is none. Any
    category of the boxes ("Mass", "Suspicious Calcification", …, "No Finding") is a finding too, and is of the image:
    positive where a box of it is of that category, negative where its rows have none, blank where it has no row.
    Images of an exam are of one patient; those of training have no split yet. Density and side are kept. Raises
    `DataError` where a table is missing or broken, and where the images of a breast are assessed differently.
    """
    tree = Tree(path, DICOM_FIRST)
    file = tree.need(BREASTS)
    table = read_csv(file)
    need(table, COLUMNS, file)
    for column in ("study_id", "image_id", "laterality"):
        check_rows(table[column] != "", "a name is missing", file, column)
    split = table["split"].str.to_lowercase()
    check_rows(split.is_in(list(SPLITS)), f"a split is neither {' nor '.join(SPLITS)}", file, "split")
    breast = (table["study_id"] + "_" + table["laterality"]).alias("breast")
    grade = table["breast_birads"].str.to_uppercase().str.extract(r"^BI-RADS ([1-5])$").cast(pl.Int64)
    check_rows(
        grade.is_not_null() | (table["breast_birads"] == ""),
        "an assessment is none of BI-RADS 1 to BI-RADS 5",
        file,
        "breast_birads",
    )
    check_same(
        table["breast_birads"], breast, "another image of this breast is assessed differently", file, "breast_birads"
    )

    labels = {SUSPICIOUS: (grade >= 4).cast(pl.Float64)}
    notes = [
        f"took {file.name}: {len(table)} images of {breast.n_unique()} breasts",
        "no patient is known: an exam counts as one, so leakage cannot be excluded where a patient came twice",
    ]
    wanted = [SUSPICIOUS] if findings is None else list(findings)
    if [name for name in wanted if name.strip().casefold() != SUSPICIOUS]:
        boxes = tree.need(BOXES)
        labels |= _categories(boxes, table["image_id"])
        notes.append(f"took {boxes.name}: categories are of images, not of breasts")
    wanted = choose(wanted, list(labels), "finding", "--findings")
    if SUSPICIOUS in wanted:
        notes.append(f"{SUSPICIOUS} is a breast of BI-RADS 4 or 5; negative are BI-RADS 1 to 3")
    return tree.source(
        "vindr-mammo",
        table["image_id"],
        {finding: labels[finding] for finding in wanted},
        patient=table["study_id"],
        study=breast,
        view=blank_to_null(table["view_position"].str.to_lowercase()),
        split=split.replace_strict(SPLITS, return_dtype=pl.String),
        notes=notes,
        laterality=blank_to_null(table["laterality"]),
        density=blank_to_null(table["breast_density"].str.strip_prefix("DENSITY ")),
    )


def _categories(file: Path, images: pl.Series) -> dict[str, pl.Series]:
    """Return a label of every image for each category that the boxes have, in alphabetical order."""
    table = read_csv(file)
    need(table, ["image_id", "finding_categories"], file)
    lists = python_lists(table["finding_categories"], file)
    named = (lists.list.len() > 0) & ~lists.list.contains("")
    check_rows(named, "the list names no finding, such as ['Mass']", file, "finding_categories")
    of_image = table.select("image_id", lists).explode(lists.name).group_by("image_id").agg(lists.name)
    known = images.to_frame("image_id").join(of_image, on="image_id", how="left", maintain_order="left")[lists.name]
    return listed(known, sorted(set(lists.explode())))
