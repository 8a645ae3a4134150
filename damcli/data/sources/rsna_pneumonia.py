"""RSNA Pneumonia Detection Challenge (stage 2): a table of boxes, and chest X-rays of NIH under other names.

FORMATS section 10.5. `patientId` is the image's name, one per image, also in the DICOM header: only RSNA's mapping to
the names that NIH gave the images tells which of them show the same patient.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl

from damcli.data.labels import choose
from damcli.data.sources import Source, check_rows, check_same, known, need, parse_labels, read_csv, strange_ages, years
from damcli.data.sources.tree import DICOM_FIRST, Tree
from damcli.errors import DataError, UsageError

TABLE = "stage_2_train_labels.csv"
CLASSES_TABLE = "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
TEST = "stage_2_test_images"
FINDINGS = ("Pneumonia", "Normal")
CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
NIH_IMAGE = re.compile(r"(\d{8})_\d{3}(?:\.\w+)?")
HEADER = {"PatientAge": "age", "PatientSex": "sex", "ViewPosition": "projection"}
SEXES = {"M": "Male", "F": "Female"}
OVERLAP = "the images come from NIH ChestX-ray14: a model of one set has seen images of the other"


def read(path: Path, findings: Sequence[str] | None = None) -> Source:
    """Read the training images below `path`: "Pneumonia" where there is a box, and on demand "Normal" of the classes.

    The patient is NIH's, where RSNA's mapping file lies below `path` too, else not known. Age, sex and projection
    come from the DICOM headers. Raises `DataError` where there is no table of labels, or rows of an image contradict
    one another, `UsageError` for another finding.
    """
    wanted = choose(findings or FINDINGS[:1], FINDINGS, "finding", "--findings")
    tree = Tree(path, DICOM_FIRST)
    file = tree.need(TABLE)
    images, boxes = _images(file)
    notes = [f"took {file}: {len(images)} images, {boxes} boxes; Pneumonia is an opacity suspicious of it"]
    if "Normal" in wanted:
        images = _with_classes(images, tree.need(CLASSES_TABLE))
    patients, whose = _patients(images["name"], tree.table(MAPPING))
    if test := len(tree.images(lambda image: image.stem if TEST in image.parts else None)):
        notes.append(f"left {TEST} out: {test} images without labels")
    source = tree.source(
        "rsna-pneumonia",
        images["name"],
        {finding: images[finding] for finding in wanted},
        key=lambda image: None if TEST in image.parts else image.stem,
        patient=patients,
        view=pl.Series(["frontal"] * len(images)),
        notes=[*notes, whose, OVERLAP],
        size=320,
    )
    about, told = _headers(source.scans["path"])
    return replace(source, scans=source.scans.hstack(about), notes=[*source.notes, *told])


def _images(file: Path) -> tuple[pl.DataFrame, int]:
    """Return a row per image (name, Pneumonia) of a table with a row per box, and the number of boxes."""
    table = read_csv(file)
    need(table, ["patientId", "Target"], file)
    rows = pl.DataFrame([table["patientId"].alias("name"), parse_labels(table["Target"], file).alias("Pneumonia")])
    check_rows(rows["name"] != "", "the row names no image", file, "patientId")
    check_same(rows["Pneumonia"], rows["name"], "the rows of one image have two labels", file)
    boxed = ~table["x"].str.to_lowercase().is_in(["", "nan"]) if "x" in table.columns else rows["Pneumonia"] == 1
    check_rows(boxed.eq_missing(rows["Pneumonia"] == 1), "the box and the Target contradict one another", file)
    return rows.unique("name", keep="first", maintain_order=True), int(boxed.sum())


def _with_classes(images: pl.DataFrame, file: Path) -> pl.DataFrame:
    """Add "Normal" by the detailed classes: 1 for them, 0 for both others, null for images that are not listed."""
    table = read_csv(file)
    need(table, ["patientId", "class"], file)
    rows = table.select(pl.col("patientId").alias("name"), pl.col("class"))
    check_rows(rows["class"].is_in(CLASSES), f"the class is none of {', '.join(CLASSES)}", file, "class")
    check_same(rows["class"], rows["name"], "the rows of one image have two classes", file)
    joined = rows.join(images, on="name", how="left", maintain_order="left")
    agrees = (joined["class"] == "Lung Opacity") == (joined["Pneumonia"] == 1)
    check_rows(agrees.fill_null(True), f"the class and the Target of {TABLE} contradict one another", file, "class")
    normal = rows.unique("name").select("name", (pl.col("class") == "Normal").cast(pl.Float64).alias("Normal"))
    return images.join(normal, on="name", how="left", maintain_order="left")


def _patients(names: pl.Series, mapping: Path | None) -> tuple[pl.Series, str]:
    """Return NIH's patient of each image, null where it is not known; and what is to be said of it."""
    if mapping is None:
        return pl.Series([None] * len(names), dtype=pl.String), (
            "patients are not known: patientId is one per image, so leakage cannot be excluded (RSNA's "
            f"{MAPPING} beside the tables tells NIH's patients)"
        )
    mapped = _mapped(mapping)
    patients = pl.Series([mapped.get(name) for name in names], dtype=pl.String)
    told = f"took {mapping}: NIH's patient of {len(names) - patients.null_count()} images"
    if lacking := patients.null_count():
        told += f"; that of {lacking} is not known, so leakage cannot be excluded"
    return patients, told


def _mapped(file: Path) -> dict[str, str]:
    """Return NIH's patient by the name of RSNA's image, from a list of objects with `subset_img_id` and `img_id`."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError("this file of NIH's patients is no JSON", where=file, fix="fetch it again") from error
    except OSError as error:
        raise UsageError(f"this file cannot be read: {error.strerror}", where=file) from error
    patients: dict[str, str] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
        here, there = (str(entry.get(name)) if isinstance(entry, dict) else "" for name in ("subset_img_id", "img_id"))
        named = NIH_IMAGE.fullmatch(there)
        if named and patients.setdefault(here.removesuffix(".dcm"), named[1]) != named[1]:
            raise DataError("an image belongs to two patients", where=f"{file}, entry {number}")
    if not patients:
        raise DataError(
            "this file does not list images by subset_img_id and img_id", where=file, fix="fetch it again, or remove it"
        )
    return patients


def _headers(paths: Iterable[str]) -> tuple[pl.DataFrame, list[str]]:
    """Return age in years, sex and projection of each image, null where its header does not tell; and notes."""
    # Of what they warn, nothing matters here; pydicom quotes the header. Threads wait for the disk side by side.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(_header, paths))
    age, sex, projection = pl.DataFrame(rows, schema=dict.fromkeys(HEADER.values(), pl.String), orient="row")
    about = pl.DataFrame(
        [years(age), sex.replace_strict(SEXES, default=None, return_dtype=pl.String), known(projection)]
    )
    notes = []
    if silent := sum(not any(row) for row in rows):
        notes.append(f"age, sex and projection of {silent} images are not known: DICOM headers have them")
    return about, [*notes, *strange_ages(about["age"], age)]


def _header(path: str) -> tuple[str, ...]:
    """Return PatientAge, PatientSex and ViewPosition as text, "" where there is none."""
    from pydicom import dcmread

    if Path(path).suffix.lower() not in (".dcm", ".dicom"):
        return ("",) * len(HEADER)
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
        return tuple(str(header.get(keyword) or "").strip().upper() for keyword in HEADER)
    except Exception:  # whatever a damaged header makes pydicom raise: prepare refuses the image with the reason
        return ("",) * len(HEADER)
