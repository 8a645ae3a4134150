"""CheXpert Plus: one table of scans, labels as JSON Lines, images as PNG or DICOM (FORMATS section 3).

Its reports are not kept: they are neither needed nor ours to spread, and no error shows them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from damcli.data.sources import blank_to_null, check_rows, need, read_csv
from damcli.data.sources.chexpert_trees import SPLIT_SUFFIX
from damcli.errors import DataError, UsageError

# The labels read from a whole report come first.
LABELS = ("report_fixed.json", "impression_fixed.json", "findings_fixed.json")
NEEDED = ("path_to_image", "frontal_lateral", "split")
METADATA = ("sex", "age", "ap_pa", "race")
# path_to_image ends in .jpg, while the images are PNG or DICOM.
SUFFIXES = (".png", ".dcm", ".jpg")


def table(folder: Path) -> Path | None:
    """Return the table of scans in a folder, the newest by name, or None."""
    return max(folder.glob("df_chexpert_plus_*.csv"), default=None)


def scans(file: Path) -> pl.DataFrame:
    """Return the scans of the table: name, patient, study, view, split, sex, age, projection, race.

    Raises `UsageError` for a file that cannot be read, `DataError` for a table that is none.
    """
    raw = read_csv(file, [*NEEDED, *METADATA])
    need(raw, NEEDED, file)
    absent = [name for name in METADATA if name not in raw.columns]
    raw = raw.with_columns(pl.lit("").alias(name) for name in absent)
    name = raw["path_to_image"].str.replace(SPLIT_SUFFIX.pattern, "$1").alias("name")
    folders = name.str.extract_groups(r"(?<patient>patient[^/]+)/(?<study>study[^/]+)/").struct.unnest()
    split = raw["split"].str.to_lowercase()
    check_rows(split.is_in(["train", "valid"]), "a split is neither train nor valid", file)
    return pl.DataFrame([
        name,
        folders["patient"],
        (folders["patient"] + "/" + folders["study"]).alias("study"),
        blank_to_null(raw["frontal_lateral"].str.to_lowercase()).alias("view"),
        split,
        raw["sex"].replace(["", "Unknown"], None),
        raw["age"].cast(pl.Float64, strict=False).replace(0.0, None),
        blank_to_null(raw["ap_pa"]).alias("projection"),
        blank_to_null(raw["race"]),
    ])  # fmt: skip


def labels_file(tree: Path) -> Path:
    """Return the file of labels that lies in a tree. Raises `UsageError` where there is none."""
    found = {file.name: file for folder in (tree, tree / "chexbert_labels") for file in folder.glob("*_fixed.json")}
    name = next((name for name in LABELS if name in found), None)
    if name is None:
        raise UsageError(
            "the labels of CheXpert Plus are missing",
            where=tree,
            fix="put chexbert_labels/ beside the table, or pass --labels FILE.json",
        )
    return found[name]


def labels(file: Path, findings: Sequence[str]) -> pl.DataFrame:
    """Read labels that are JSON Lines, whatever the file is called: name, and null, 1, 0 or -1 by finding.

    Raises `UsageError` for a file that cannot be read, `DataError` for a line that is none, with its number.
    """
    names: list[str] = []
    columns: dict[str, list[float | None]] = {f"label:{finding}": [] for finding in findings}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"these labels cannot be read: {error.strerror}", where=file) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError("these labels are no JSON Lines", where=where) from error
        if not isinstance(found, dict) or not isinstance(found.get("path_to_image"), str):
            raise DataError("a line has no 'path_to_image'", where=where)
        names.append(SPLIT_SUFFIX.sub(r"\1", found["path_to_image"]))
        for finding in findings:
            value = found.get(finding, "absent")
            if value not in (None, 1, 0, -1):
                raise DataError(f"the label of {finding} is not 1, 0, -1 or null", where=where)
            columns[f"label:{finding}"].append(None if value is None else float(value))
    return pl.DataFrame({"name": names, **columns}, schema_overrides=dict.fromkeys(columns, pl.Float64))
