"""NIH ChestX-ray14: a table of findings per image, twelve folders of PNG, and lists of the official split.

FORMATS section 10.1. Commas in the header's brackets are ordinary ones: width, height and spacing are two columns each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from damcli.data.labels import choose
from damcli.data.sources import Source, check_rows, known, need, read_csv, strange_ages, years
from damcli.data.sources.tree import Tree, listed
from damcli.errors import DataError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
NONE = "No Finding"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = ("train_val_list.txt", "test_list.txt")
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Sex", "View Position")
EARLIER = {"Patient Gender": "Patient Sex"}


def read(path: Path, findings: Sequence[str] | None = None) -> Source:
    """Read ChestX-ray14 below `path`; `findings` defaults to its fourteen, "No Finding" is one where asked for.

    The patient is the number that file names begin with. The official test list is test; train and valid are split
    from the rest, by patient. Ages above 100 are not known. Raises `DataError` for a table without a needed column, a
    row whose findings, patient or list are none or contradict each other.
    """
    tree = Tree(path)
    file = tree.need(*TABLES)
    table = read_csv(file, [*COLUMNS, *EARLIER]).rename(EARLIER, strict=False)
    need(table, COLUMNS, file)
    wanted = choose(findings or FINDINGS, [*FINDINGS, NONE], "finding", "nih")
    keys = table["Image Index"].str.extract(r"^(\d{8}_\d{3})\.png$")
    check_rows(keys.is_not_null(), "the image's name is none of ChestX-ray14", file, "Image Index")
    patient = keys.str.head(8)
    check_rows(
        patient == table["Patient ID"].str.zfill(8), "this is not the patient of the file name", file, "Patient ID"
    )
    marks = listed(table["Finding Labels"], [*FINDINGS, NONE])
    number = table["Finding Labels"].str.count_matches("|", literal=True) + 1
    good = (pl.DataFrame(marks).sum_horizontal() == number) & ((marks[NONE] == 0) | (number == 1))
    check_rows(good, "these are not findings of ChestX-ray14, or contradict each other", file, "Finding Labels")
    split, told = _split(tree, table["Image Index"], file)
    age = years(table["Patient Age"])
    notes = [f"took {file}: {len(table)} scans", told, *strange_ages(age, table["Patient Age"])]
    return tree.source(
        "nih", keys, {finding: marks[finding] for finding in wanted}, notes=notes, size=320,
        patient=patient, split=split, view=pl.Series(["frontal"] * len(table)),
        age=age, sex=known(table["Patient Sex"]).replace({"M": "Male", "F": "Female"}),  # as in CheXpert
        projection=known(table["View Position"]),
    )  # fmt: skip


def _split(tree: Tree, names: pl.Series, file: Path) -> tuple[pl.Series, str]:
    """Return "test" or null by image as the official lists have it, and a note; null for all where there is none."""
    lists = [tree.table(name) for name in LISTS]
    if lists == [None, None]:
        return pl.Series([None] * len(names), dtype=pl.String), f"no {LISTS[1]}: no official split, so none is test"
    for name, found in zip(LISTS, lists, strict=True):
        if found is None:
            raise DataError(f"of the two lists of the official split {name} is missing", where=tree.root.resolve(),
                            fix="put it beside the other one, or remove that one too")  # fmt: skip
    trained, tested = (names.is_in(_names(found)) for found in lists if found)
    check_rows(trained ^ tested, f"this image is in none or both of {' and '.join(LISTS)}", file)
    split = pl.select(pl.when(tested).then(pl.lit("test"))).to_series()
    return split, f"the scans of {LISTS[1]} are test, as is official"


def _names(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig", errors="replace").split()
