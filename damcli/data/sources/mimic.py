"""MIMIC-CXR-JPG: images in files/p10/p10000032/s50414267/, labels by study (FORMATS section 10.2).

Release 2.1.0 still calls its tables 2.0.0. The labels are CheXpert's unless others are asked for: NegBio's, or those
that radiologists gave to studies of the test set, in a file that names no patients and says "Airspace Opacity".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from damcli.data.labels import CHEXPERT_FINDINGS, COMPETITION, chexpert_policy, choose
from damcli.data.sources import Source, check_rows, known, need, parse_labels, read_csv
from damcli.data.sources.tree import Tree
from damcli.errors import DataError

METADATA, SPLIT, LABELS = (f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split", "chexpert"))
OTHER_LABELS = ("mimic-cxr-2.0.0-negbio.csv", "mimic-cxr-2.1.0-test-set-labeled.csv")
IDS = ["dicom_id", "study_id", "subject_id"]
VIEWS = {"PA": "frontal", "AP": "frontal", "LATERAL": "lateral", "LL": "lateral", None: None}
SPLITS = {"train": "train", "validate": "valid", "test": "test"}
SAME = {"Lung Opacity": "Airspace Opacity"}  # one finding, by the name that one of the files has for it


def read(
    path: Path,
    findings: Sequence[str] | None = None,
    views: Literal["frontal", "all"] = "frontal",
    labels: Path | None = None,
) -> Source:
    """Read MIMIC-CXR-JPG, or the part of it that was downloaded, with its official split.

    `findings` defaults to the five of the CheXpert competition, with the same policies. Frontal is what the table
    calls PA or AP: no lateral view, none of the few oblique ones, nor one of which it says nothing. `labels` is another
    file of labels by study: its path, or its name in the download. Studies that the labels do not list are left out.
    Raises `DataError` for a scan without a split, a study that is labelled twice or under another patient, and a label
    that is none.
    """
    wanted = choose(findings or COMPETITION, CHEXPERT_FINDINGS, "finding", "MIMIC-CXR")
    tree = Tree(path)
    file = tree.need(METADATA)
    every = _scans(file, tree.need(SPLIT))
    given = tree.need(LABELS) if labels is None else labels if labels.exists() else tree.table(labels.name) or labels
    scans = _labelled(every, given, wanted)
    notes = [f"took {file}: {len(every)} scans", f"took the labels from {given}"]
    if lost := len(every) - len(scans):
        notes.append(f"left out {lost} scans of studies that it does not list")
    others = [found.name for found in map(tree.table, OTHER_LABELS) if found]
    if others and labels is None:
        notes.append(f"other labels are there too: --labels {' or '.join(others)} takes them")
    if views == "frontal":
        rows = scans["view"].fill_null("unknown").value_counts(sort=True).iter_rows()
        gone = [f"{number} {view}" for view, number in rows if view != "frontal"]
        scans = scans.filter(view="frontal")
        notes += [f"left out by their view: {', '.join(gone)} (--views all keeps them)"] if gone else []
    notes.append("these JPEGs are histogram-equalised, as other sets are not: a model may do worse on the others")
    return tree.source(
        "mimic-cxr-jpg",
        scans["dicom_id"],
        {finding: scans[f"label:{finding}"] for finding in wanted},
        patient=scans["subject_id"],
        study=scans["study_id"],
        view=scans["view"],
        split=scans["split"],
        parts="p" + scans["subject_id"].str.slice(0, 2),
        policies={finding: chexpert_policy(finding) for finding in wanted},
        notes=notes,
        size=320,
        projection=scans["projection"],
    )


def _scans(file: Path, split_file: Path) -> pl.DataFrame:
    """Return all scans with their ids, projection, view and split."""
    table, split = read_csv(file, [*IDS, "ViewPosition"]), read_csv(split_file, [*IDS, "split"])
    need(table, [*IDS, "ViewPosition"], file)
    need(split, [*IDS, "split"], split_file)
    for name in IDS:
        check_rows(known(table[name]).is_not_null(), "the id is blank", file, name)
    named = split["split"].str.to_lowercase().replace_strict(SPLITS, default=None, return_dtype=pl.String)
    check_rows(named.is_not_null(), "a split is neither train, validate nor test", split_file, "split")
    scans = table.join(split.with_columns(named), on=IDS, how="left", maintain_order="left")
    check_rows(scans["split"].is_not_null(), f"{split_file.name} has not this scan, or has it of another study", file)
    projection = known(scans["ViewPosition"]).str.to_uppercase().alias("projection")
    view = projection.replace_strict(VIEWS, default="other", return_dtype=pl.String).alias("view")
    return scans.select(*IDS, "split", projection, view)


def _labelled(scans: pl.DataFrame, file: Path, wanted: Sequence[str]) -> pl.DataFrame:
    """Return the scans whose study a file of labels lists, with its labels."""
    table = read_csv(file)
    columns = {name: name if name in table.columns else SAME.get(name, name) for name in wanted}
    need(table, ["study_id", *columns.values()], file)
    ids = [name for name in ("study_id", "subject_id") if name in table.columns]
    values = [parse_labels(table[column], file).alias(f"label:{name}") for name, column in columns.items()]
    labels = table.select(*ids, *values)
    check_rows(~labels.select(ids).is_duplicated(), "a study is labelled twice", file)
    joined = scans.join(labels, on=ids, how="inner", maintain_order="left")
    strays = scans.join(labels, on=ids, how="anti")["study_id"]
    check_rows(~table["study_id"].is_in(strays.to_list()), "a study is another patient's than in the metadata", file)
    if not len(joined):
        raise DataError(
            "these labels name none of the studies",
            where=file,
            fix="pass labels of this set, with its ids in digits alone",
        )
    return joined
