"""Any table (CSV or Parquet) with a column of image files and columns of labels, or a folder of images per class.

What the columns mean is said on the command line, or in a TOML file that is passed in place of the table:

    table = "cases.csv"             # or .csv.gz, .parquet; relative to this file, as all paths here
    images = "png"                  # default: the table's folder
    image_column = "file"
    patient_column = "patient_id"   # also study_column, view_column, split_column
    metadata = ["age", "sex"]

    [labels.cancer]
    column = "pathology"            # default: the finding's name
    positive = ["MALIGNANT"]
    negative = ["BENIGN", "BENIGN_WITHOUT_CALLBACK"]
    uncertain = ["UNPROVEN"]

Where the labels are numbers (1, 0, -1) already, `labels = ["cancer", "calcification"]` names their columns.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from damcli.config import Strict, read_toml
from damcli.data.labels import Policy, choose
from damcli.data.sources import (
    Source,
    assemble,
    blank_to_null,
    check_rows,
    class_folders,
    known,
    need,
    parse_labels,
    read_csv,
)
from damcli.data.sources.class_folders import SPLITS
from damcli.errors import DataError, UsageError

# Taken, and said, where no column is named. Never labels: which column is the truth, only the user knows.
IMAGE_COLUMNS = ("path", "image", "image_path", "file", "filename")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "patient id")
TABLES = (".csv", ".csv.gz", ".parquet")
# Columns of a dataset that no metadata may be called; the audit passes "class" over.
TAKEN = ("id", "path", "patient", "study", "view", "split", "fold", "class", "remark", "shard", "row")


class Labels(Strict):
    """The labels of a finding: the column, and which of its texts mean what. Without texts it holds 1, 0 and -1."""

    column: str | None = None
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()

    @property
    def codes(self) -> dict[str, float]:
        """The label that each text means."""
        lists = ((1.0, self.positive), (0.0, self.negative), (-1.0, self.uncertain))
        return {text: code for code, texts in lists for text in texts}

    @model_validator(mode="after")
    def _each_text_once(self) -> Labels:
        if len(self.codes) < len(self.positive) + len(self.negative) + len(self.uncertain):
            raise ValueError("a text is listed twice")
        if "" in self.codes:
            raise ValueError("a blank means what --blank says, and cannot be listed")
        return self


class Description(Strict):
    """What the columns of a table mean, as a TOML file or the command line says it."""

    table: Path
    images: Path | None = None
    image_column: str | None = None
    patient_column: str | None = None
    study_column: str | None = None
    view_column: str | None = None
    split_column: str | None = None
    labels: dict[str, Labels] = Field(default_factory=dict)
    metadata: tuple[str, ...] = ()

    @field_validator("labels", mode="before")
    @classmethod
    def _from_list(cls, labels: Any) -> Any:
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            return labels
        if len(set(labels)) < len(labels):
            raise ValueError("a column is listed twice")
        return {name: Labels() for name in labels}


def find(path: Path) -> Path | None:
    """Return the table, or its description: `path` itself, or the only one in that folder; None where it holds none.

    A description counts only where no table lies beside it. Raises `UsageError` if `path` is not there, or if there is
    more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError("there is no such table", where=path, fix="pass a CSV: damcli prepare table FILE.csv")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    found = [file for file in files if file.name.lower().endswith(TABLES)]
    found = found or [file for file in files if file.suffix.lower() == ".toml"]
    if len(found) > 1:
        raise UsageError(
            f"which table? this folder holds {', '.join(file.name for file in found)}",
            where=path.resolve(),
            fix=f"damcli prepare table {path / found[0].name}",
        )
    return found[0] if found else None


def read(
    path: Path,
    label_columns: Sequence[str] = (),
    image_column: str | None = None,
    patient_column: str | None = None,
    study_column: str | None = None,
    view_column: str | None = None,
    split_column: str | None = None,
    images: Path | None = None,
) -> Source:
    """Read a table of scans: a CSV or Parquet file, a TOML that describes one, or a folder of any of these.

    A folder without a table is one of a folder per class (see `class_folders`), whose `label_columns` are classes.

    The label columns (1, 0, -1 or blank) are the findings; ids are read as text. What is given here goes before what a
    TOML says; `label_columns` may name findings of a TOML too. Image files are looked for under `images`, by default
    the table's own folder. Without `image_column` or `patient_column` a column of a usual name is taken, and said. A
    blank label is missing and an uncertain one ignored unless a policy says otherwise. Raises `DataError` for a missing
    column, a label or split that is none (with its row), ids that are no whole numbers, or a scan that is named twice;
    `UsageError` for a TOML with unknown keys, or where labels or images are not named.
    """
    options = {
        "image_column": image_column, "patient_column": patient_column, "study_column": study_column,
        "view_column": view_column, "split_column": split_column, "images": images,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    file = find(path)
    if file is None:
        for name in given:
            fix = f"leave out --{name.replace('_', '-')}, or pass a CSV"
            raise UsageError("there is no table, only folders", where=path.resolve(), fix=fix)
        return class_folders.read(path, label_columns)
    described = describe(file) if file.suffix.lower() == ".toml" else Description(table=file)
    if label_columns:
        chosen = choose(label_columns, label_columns, "label column", "--label-columns")
        given["labels"] = {name: described.labels.get(name, Labels()) for name in chosen}
    return _source(described.model_copy(update=given))


def describe(file: Path) -> Description:
    """Read a TOML that describes a table; its paths are relative to its folder.

    Raises `UsageError` for a file that is no TOML, an unknown key (with the nearest known one), or a wrong value.
    """
    values = _known(read_toml(file), Description, file)
    labels = values.get("labels")
    if isinstance(labels, dict):
        values["labels"] = {
            name: _known(meant, Labels, file) if isinstance(meant, dict) else meant for name, meant in labels.items()
        }
    try:
        described = Description.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"key {key}: {first['msg']}", where=file) from error
    images = described.images and file.parent / described.images
    return described.model_copy(update={"table": file.parent / described.table, "images": images})


def _known(values: Mapping[str, Any], model: type[BaseModel], file: Path) -> dict[str, Any]:
    return dict(zip(choose(values, list(model.model_fields), "key", file), values.values(), strict=True))


def _source(described: Description) -> Source:
    file = described.table
    table = _read(file)
    if not described.labels:
        fix = f"--label-columns {shlex.quote(','.join(_label_like(table)) or 'NAME,NAME')}"
        raise UsageError("which columns are the labels?", where=file, fix=fix)
    image_column = described.image_column or _usual(table, IMAGE_COLUMNS)
    if image_column is None:
        raise UsageError(
            "which column names the images?", where=file, fix=f"--image-column {shlex.quote(table.columns[0])}"
        )
    patient_column = described.patient_column or _usual(table, PATIENT_COLUMNS)
    named = {
        "patient": patient_column or described.study_column, "study": described.study_column,
        "view": described.view_column, "split": described.split_column,
    }  # fmt: skip
    label_columns = {finding: labels.column or finding for finding, labels in described.labels.items()}
    need(table, [image_column, *label_columns.values(), *(name for name in named.values() if name)], file)
    metadata = choose(described.metadata, table.columns, "column", file)
    for name in metadata:
        if name in TAKEN or name.startswith(("label:", "target:")):
            raise UsageError(f"metadata cannot be called {name!r}", where=file, fix="give the column another name")

    nothing = pl.Series([None] * len(table), dtype=pl.String)
    columns = {key: blank_to_null(_id_text(table[name], file)) if name else nothing for key, name in named.items()}
    columns |= {key: known(columns[key]) for key in ("patient", "study")}
    columns["view"] = columns["view"].str.to_lowercase()
    if described.split_column:
        columns["split"] = _splits(columns["split"], file, described.split_column)
    for finding, labels in described.labels.items():
        cells = _text(table[label_columns[finding]], file)
        columns[f"label:{finding}"] = _coded(cells, labels.codes, file) if labels.codes else parse_labels(cells, file)
    columns |= {name: _number_or_text(_text(table[name], file)) for name in metadata}
    root = described.images if described.images is not None else file.parent
    scans, refused = assemble(
        _id_text(table[image_column], file).to_list(), root, pl.DataFrame([s.alias(k) for k, s in columns.items()])
    )
    notes = [f"took {file}: {len(table)} scans, images from column {image_column!r}"]
    if patient_column:
        notes.append(f"patients from column {patient_column!r}")
        blank = int(columns["patient"].null_count())
        if blank:
            notes.append(f"{blank} scans have no patient id: each counts as a patient of its own")
    elif described.study_column:
        notes.append(
            f"no patient column: scans are split by {described.study_column!r}, and the studies of one patient may leak"
        )
    else:
        notes.append("no patient column: each scan counts as a patient of its own, so leakage cannot be excluded")
    notes += [
        f"column {name!r} holds floating-point numbers, taken as whole ones (12.0 is 12)"
        for name in (image_column, *named.values())
        if name and table[name].dtype.is_float()
    ]
    findings = list(described.labels)
    return Source("table", root, scans, findings, {name: Policy() for name in findings}, notes, refused)


def _read(file: Path) -> pl.DataFrame:
    """Read a CSV as text, or a Parquet file with the types that it has."""
    if not _is_parquet(file):
        return read_csv(file)
    try:
        with file.open("rb") as content:
            table = pl.read_parquet(content)
    except OSError as error:
        raise UsageError(f"this table cannot be read: {error.strerror}", where=file) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError("this is no Parquet file, or it is damaged", where=file) from error
    if not table.width or not len(table):
        raise DataError("this table is empty", where=file)
    return table


def _is_parquet(file: Path) -> bool:
    """Tell by the name, or by the four bytes that a Parquet file begins and ends with."""
    if file.suffix.lower() == ".parquet":
        return True
    try:
        with file.open("rb") as content:
            return content.read(4) == b"PAR1" and content.seek(-4, os.SEEK_END) > 0 and content.read() == b"PAR1"
    except OSError:  # which `read_csv` says
        return False


def _text(cells: pl.Series, file: Path) -> pl.Series:
    """Return the cells of any type as text, blanks as "", yes and no as 1 and 0."""
    if cells.dtype.is_nested() or cells.dtype in (pl.Binary, pl.Object):
        raise DataError(
            f"column {cells.name!r} holds {cells.dtype} values, not numbers or text", where=file, fix="name another"
        )
    if cells.dtype == pl.Boolean:
        cells = cells.cast(pl.Int8)
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
    return cells.cast(pl.String).str.strip_chars().fill_null("")


def _id_text(cells: pl.Series, file: Path) -> pl.Series:
    """Return names or ids as text, exactly.

    A column of whole numbers with gaps comes as floating-point numbers from some programs: 12.0 is "12". `DataError` is
    raised for one that is not whole, or too large to be sure of its last digit.
    """
    if not cells.dtype.is_float():
        return _text(cells, file)
    cells = cells.fill_nan(None)
    exact = 2 ** (np.finfo(cells.to_numpy().dtype).nmant + 1)
    check_rows(
        cells.is_null() | ((cells == cells.round()) & (cells.abs() < exact)),
        "ids are floating-point numbers, of which this one is not whole, or has lost digits",
        file,
        cells.name,
        fix="write them as text or integers",
    )
    return _text(cells.cast(pl.Int64), file)


def _coded(cells: pl.Series, codes: Mapping[str, float], file: Path) -> pl.Series:
    labels = cells.replace_strict(codes, default=None, return_dtype=pl.Float64)
    wrong = (labels.is_null() & (cells != "")).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"the label {cells[row][:40]!r} is in none of the lists",
            where=f"{file}, row {row + 1} below the header, column {cells.name!r}",
            fix=f"add it to positive, negative or uncertain, beside {', '.join(codes)}",
        )
    return labels


def _number_or_text(cells: pl.Series) -> pl.Series:
    """Return metadata as float64 where every cell is a number or blank, else as text."""
    cells = pl.select(pl.when((cells != "") & (cells.str.to_lowercase() != "nan")).then(cells)).to_series()
    numbers = cells.cast(pl.Float64, strict=False)
    numeric = numbers.null_count() == cells.null_count() and bool(numbers.is_finite().all())
    return numbers if numeric else cells


def _usual(table: pl.DataFrame, names: Sequence[str]) -> str | None:
    by_name = {column.casefold(): column for column in table.columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _label_like(table: pl.DataFrame) -> list[str]:
    codes = ["0", "1", "-1", "0.0", "1.0", "-1.0", ""]
    plain = [column for column in table if not column.dtype.is_nested() and column.dtype not in (pl.Binary, pl.Object)]
    return [column.name for column in plain if _text(column, Path()).is_in(codes).all()]


def _splits(cells: pl.Series, file: Path, column: str) -> pl.Series:
    named = cells.str.to_lowercase().replace_strict(SPLITS, default=None)
    fix = "write the splits so; without --split-column they are made by patient"
    check_rows(named.is_not_null(), "a split is neither train, valid nor test", file, column, fix)
    return named
