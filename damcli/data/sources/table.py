"""Any CSV with a column of image files and columns of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from damcli.data.labels import Policy
from damcli.data.sources import Source, assemble, blank_to_null, need, parse_labels, read_csv
from damcli.errors import DataError, UsageError

# Taken, and said, where no column is named. Never labels: which column is the truth, only the user knows.
IMAGE_COLUMNS = ("path", "image", "image_path", "file", "filename")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "patient id")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "validate"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def find(path: Path) -> Path:
    """Return the table: `path` itself, or the only CSV in that folder.

    Raises `UsageError` if there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError("there is no such table", where=path, fix="pass a CSV: damcli prepare table FILE.csv")
    found = sorted(path.glob("*.csv"))
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "no CSV"
        raise UsageError(
            f"which table? this folder holds {listed}", where=path.resolve(), fix="damcli prepare table FILE.csv"
        )
    return found[0]


def read(
    path: Path,
    label_columns: Sequence[str],
    image_column: str | None = None,
    patient_column: str | None = None,
    study_column: str | None = None,
    view_column: str | None = None,
    split_column: str | None = None,
    images: Path | None = None,
) -> Source:
    """Read a table of scans. Its label columns (1, 0, -1 or blank) are the findings; ids are read as text.

    Image files are looked for under `images`, by default the table's own folder. Without `image_column` or
    `patient_column` a column of a usual name is taken, and said. A blank label is missing and an uncertain one ignored
    unless a policy says otherwise. Raises `DataError` for a missing column, a label or split that is none (with its
    row), or a scan that is named twice.
    """
    file = find(path)
    table = read_csv(file)
    if not label_columns:
        fix = f"--label-columns {','.join(_label_like(table)) or 'NAME,NAME'}"
        raise UsageError("which columns are the labels?", where=file, fix=fix)
    image_column = image_column or _usual(table, IMAGE_COLUMNS)
    if image_column is None:
        raise UsageError("which column names the images?", where=file, fix=f"--image-column {table.columns[0]}")
    patient_column = patient_column or _usual(table, PATIENT_COLUMNS)
    given = {"patient": patient_column, "study": study_column, "view": view_column, "split": split_column}
    need(table, [image_column, *label_columns, *(name for name in given.values() if name)], file)

    nothing = pl.Series([None] * len(table), dtype=pl.String)
    columns = {key: blank_to_null(table[name]) if name else nothing for key, name in given.items()}
    columns["view"] = columns["view"].str.to_lowercase()
    if split_column:
        columns["split"] = _splits(columns["split"], file, split_column)
    labels = [parse_labels(table[name], file).alias(f"label:{name}") for name in label_columns]
    root = images if images is not None else file.parent
    scans, refused = assemble(
        table[image_column].to_list(), root, pl.DataFrame([*(s.alias(k) for k, s in columns.items()), *labels])
    )
    notes = [f"took {file}: {len(table)} scans, images from column {image_column!r}"]
    if patient_column:
        notes.append(f"patients from column {patient_column!r}")
        blank = int(columns["patient"].null_count())
        if blank:
            notes.append(f"{blank} scans have no patient id: each counts as a patient of its own")
    else:
        notes.append("no patient column: each scan counts as a patient of its own, so leakage cannot be excluded")
    return Source("table", root, scans, list(label_columns), {f: Policy() for f in label_columns}, notes, refused)


def _usual(table: pl.DataFrame, names: Sequence[str]) -> str | None:
    by_name = {column.casefold(): column for column in table.columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _label_like(table: pl.DataFrame) -> list[str]:
    codes = ["0", "1", "-1", "0.0", "1.0", "-1.0", ""]
    return [column for column in table.columns if table[column].is_in(codes).all()]


def _splits(cells: pl.Series, file: Path, column: str) -> pl.Series:
    named = cells.str.to_lowercase().replace_strict(SPLITS, default=None)
    if named.null_count():
        row = int(named.is_null().arg_true()[0])
        raise DataError(
            "a split is neither train, valid nor test",
            where=f"{file}, row {row + 1} below the header, column {column!r}",
            fix="write the splits so; without --split-column they are made by patient",
        )
    return named
