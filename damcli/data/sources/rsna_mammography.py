"""RSNA Screening Mammography (Kaggle): `train.csv`, and the films as DICOM or as pictures that others made of them.

FORMATS section 11.1. Cancer is told per breast, and given to each of its films.
"""

from __future__ import annotations

import re
from pathlib import Path

from damcli.data.sources import Source, check_rows, check_same, known, need, parse_labels, read_csv, strange_ages, years
from damcli.data.sources.tree import DICOM_FIRST, Tree

TABLE = "train.csv"
COLUMNS = ("patient_id", "image_id", "laterality", "cancer")
OPTIONAL = ("view", "age", "implant", "density", "site_id", "machine_id")
# What was found out after the film, or because of it.
TELLING = ("biopsy", "invasive", "BIRADS", "difficult_negative_case")
# …/PATIENT/IMAGE.dcm, or …/PATIENT_IMAGE.png as conversions have it.
NAME = re.compile(r"(?:.*/)?(\d+)[/_](\d+)\.\w+")
TEST = "test_images"


def read(path: Path) -> Source:
    """Read the training images below `path`; the finding is "cancer", a study is a breast.

    Age, implant, density, site and machine are metadata, where the table has them; biopsy, invasive, BIRADS and
    difficult_negative_case tell the label and are not. Raises `DataError` where there is no `train.csv`, for films of
    one breast with two labels, and for rows whose ids, side or label are none.
    """
    tree = Tree(path, DICOM_FIRST)
    file = tree.need(TABLE)
    table = read_csv(file)
    need(table, COLUMNS, file)
    for column, pattern in {"patient_id": r"^\d+$", "image_id": r"^\d+$", "laterality": "^[LR]$"}.items():
        check_rows(table[column].str.contains(pattern), f"this {column} is none", file, column)
    cancer = parse_labels(table["cancer"], file)
    breast = table["patient_id"] + "_" + table["laterality"]
    check_same(cancer, breast, "the films of one breast have two labels", file, "cancer")
    about = {column: known(table[column]) for column in OPTIONAL if column in table.columns}
    notes = [f"took {file}: {len(table)} films of {breast.n_unique()} breasts; cancer is told per breast"]
    if telling := [column for column in TELLING if column in table.columns]:
        notes.append(f"no metadata, as they tell the label: {', '.join(telling)}")
    if test := len(tree.images(lambda film: film.stem if TEST in film.parts else None)):
        notes.append(f"left {TEST} out: {test} films without labels")
    elif without := tree.table("test.csv"):
        notes.append(f"left {without} out: it has no labels")
    age = years(about["age"]) if "age" in about else None
    if age is not None:
        notes += strange_ages(age, about["age"])
    return tree.source(
        "rsna-mammography",
        table["patient_id"] + "/" + table["image_id"],
        {"cancer": cancer},
        key=_key,
        patient=table["patient_id"],
        study=breast,
        view=about["view"].str.to_lowercase() if "view" in about else None,
        notes=notes,
        age=age,
        implant=about.get("implant"),
        density=about.get("density"),
        site=about.get("site_id"),
        machine=about.get("machine_id"),
    )


def _key(file: Path) -> str | None:
    named = NAME.fullmatch(file.as_posix())
    return f"{named[1]}/{named[2]}" if named and TEST not in file.parts else None
