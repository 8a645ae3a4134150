"""CBIS-DDSM: four case tables, and the images as DICOM in any of the trees that TCIA gave out, or as Kaggle's JPEG.

FORMATS section 4. A table's paths name series that are found again in every tree; its file names and its columns for
crop and mask are not to be trusted, so that those two are told apart by what they hold.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from damcli.data.labels import Policy
from damcli.data.sources import Source, check_rows, files_below, need, read_csv, table_of
from damcli.errors import DataError, UsageError

TABLE = re.compile(r"(?P<lesion>calc|mass)_case_description_(?P<split>train|test)_set\.csv", re.IGNORECASE)
COLUMNS = (
    "patient_id", "breast_density", "left or right breast", "image view", "abnormality type", "assessment",
    "pathology", "image file path", "cropped image file path", "ROI mask file path",
)  # fmt: skip
PATHS = COLUMNS[-3:]
PATHOLOGIES = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")
IMAGES = (".dcm", ".jpg", ".jpeg", ".png")
UID = re.compile(r"[0-9]+(?:\.[0-9]+){4,}")
# Trees with names in words end folders in the last five digits of the UID.
ENDING = re.compile(r".*-(\d{5})")
_CASE = r"(?:Mass|Calc)-(?:Training|Test)_(P_\d{5}_(?:LEFT|RIGHT)_(?:CC|MLO))(?:_\d+)?"
CASE_FOLDER = re.compile(_CASE)
MASK_EXTREMES = 0.99  # the share of a mask's pixels that are black or white, JPEG's noise allowed


class Place(NamedTuple):
    """Where the tables say that an image lies: the folder of its case and view, its study and its series."""

    case: str
    study: str
    series: str


def tables(path: Path) -> list[Path]:
    """Return the case tables in a folder or up to two levels below it, sorted. Raises `UsageError` for one twice."""
    for pattern in ("*", "*/*", "*/*/*"):
        found = sorted(file for file in path.glob(pattern) if TABLE.fullmatch(file.name) and file.is_file())
        if len({file.name.lower() for file in found}) < len(found):
            raise UsageError(
                "a case table of CBIS-DDSM is there twice", where=path.resolve(), fix="pass the folder of one download"
            )
        if found:
            return found
    return []


def read(path: Path, tables: Sequence[Path], crops: bool) -> Source:
    """Read CBIS-DDSM below `path`: whole images with "malignant" where any lesion of the film is, or lesion crops.

    Train and test are the official ones, but for patients who are in train with one type of lesion and in test with
    the other: all their scans go to test, so that none of an official test set is trained on. Raises `DataError` for
    tables that are none, or without any image.
    """
    cases = read_cases(tables)
    patients = moved(cases)
    cases = cases.with_columns(
        split=pl.when(pl.col("patient").is_in(patients)).then(pl.lit("test")).otherwise(pl.col("split"))
    )
    index = _Images(path)
    if not index.files:
        raise DataError(
            "there are CBIS-DDSM's tables, but no images below this folder",
            where=path.resolve(),
            fix="pass the folder that holds both, or put the tables beside the images",
        )
    notes = [f"took {', '.join(table.name for table in tables)} in {tables[0].parent}: {len(cases)} lesions"]
    if missing := {"calcification", "mass"} - set(cases["lesion"]):
        notes.append(
            f"there is no table of {' or '.join(sorted(missing))} lesions: films with one may count as not malignant"
        )
    if patients:
        notes.append(
            f"{len(patients)} patients are in train with one type of lesion and in test with the other: all their "
            "scans are kept in test"
        )
    notes.append("the paper's DDSM+ test set of 13,900 images is in no public download")
    scans, refused, told = (_crops if crops else _images)(cases, index)
    return Source("ddsm:cbis", path, scans, ["malignant"], {"malignant": Policy()}, [*notes, *told], refused, size=224)


def read_cases(tables: Sequence[Path]) -> pl.DataFrame:
    """Return the lesions of the tables, a row each: patient, film, view, split, lesion, malignant, paths and facts.

    `film` is patient, side and view: the same film may be listed with masses and with calcifications. Raises
    `DataError` for a table without a needed column, a pathology that is none, or a path that is not of the row's film.
    """
    return pl.concat([_read_table(table) for table in tables])


def moved(cases: pl.DataFrame) -> list[str]:
    """Return the patients who are in train with one type of lesion and in test with the other, sorted."""
    sides = cases.group_by("patient").agg(pl.col("split").n_unique())
    return sorted(sides.filter(pl.col("split") > 1)["patient"].to_list())


def _read_table(file: Path) -> pl.DataFrame:
    named = TABLE.fullmatch(file.name)
    assert named is not None
    table = read_csv(file)
    # One pair of tables spells it with a blank.
    table = table.rename({"breast density": "breast_density"}, strict=False)
    need(table, COLUMNS, file)
    breasts = table["patient_id"] + "_" + table["left or right breast"]
    films = breasts + "_" + table["image view"]
    checks = {column: table[column].str.extract(rf"^{_CASE}(?:/[^/]+){{3}}$") == films for column in PATHS}
    for column, good in {"pathology": table["pathology"].is_in(PATHOLOGIES), **checks}.items():
        check_rows(good, f"the {column} is none of CBIS-DDSM's", file)
    return table.select(
        pl.col("patient_id").alias("patient"),
        breasts.alias("breast"),
        films.alias("film"),
        pl.col("image view").str.to_lowercase().alias("view"),
        pl.lit(named["split"].lower()).alias("split"),
        pl.col("abnormality type").alias("lesion"),
        (pl.col("pathology") == "MALIGNANT").cast(pl.Float64).alias("malignant"),
        *(pl.col(path).alias(name) for path, name in zip(PATHS, ("image", "crop", "mask"), strict=True)),
        # 0 stands for a density that is not known.
        pl.col("breast_density").cast(pl.Int64, strict=False).replace(0, None).alias("density"),
        pl.col("assessment").cast(pl.Int64, strict=False),
    )


Scans = tuple[pl.DataFrame, list[tuple[str, str]], list[str]]


def _images(cases: pl.DataFrame, index: _Images) -> Scans:
    """A row per image; a film that is listed with both types of lesion is malignant if any of them is."""
    films = cases.group_by("film").agg(pl.col("malignant").max())
    images = cases.group_by("image", maintain_order=True).agg(
        pl.col("film", "patient", "breast", "view", "split", "density", "lesion").first(),
        pl.col("malignant").max().alias("alone"), pl.col("assessment").max(), pl.len().alias("lesions"),
    ).join(films, on="film", how="left", maintain_order="left")  # fmt: skip
    changed = int((images["alone"] != images["malignant"]).sum())
    told = [f"{changed} images are malignant by a lesion of the same film that other tables list"] if changed else []
    return *_scans(images, [index.whole(name) for name in images["image"]], images["image"].to_list()), told


def _crops(cases: pl.DataFrame, index: _Images) -> Scans:
    found = [index.crop(*names) for names in cases.select("crop", "mask").iter_rows()]
    return *_scans(cases.with_columns(lesions=pl.lit(1)), found, cases["crop"].to_list()), []


def _scans(
    cases: pl.DataFrame, found: Sequence[Path | DataError], names: Sequence[str]
) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
    """Return the scans whose image was found, and what is wrong with the others."""
    refused = [(name, path.what) for name, path in zip(names, found, strict=True) if isinstance(path, DataError)]
    kept = cases.filter(pl.Series([isinstance(path, Path) for path in found], dtype=pl.Boolean))
    scans = table_of(
        [_place(name).case for name, path in zip(names, found, strict=True) if isinstance(path, Path)],
        [path.absolute() for path in found if isinstance(path, Path)],
        {"malignant": kept["malignant"]},
        patient=kept["patient"], study=kept["breast"], view=kept["view"], split=kept["split"],
        lesion=kept["lesion"], lesions=kept["lesions"], density=kept["density"], assessment=kept["assessment"],
    )  # fmt: skip
    return scans, refused


def _place(name: str) -> Place:
    return Place(*name.split("/")[:3])


class _Images:
    """Every image below a folder, by the series that it belongs to as far as its place in the tree tells."""

    def __init__(self, root: Path) -> None:
        self.files = 0
        self._series: dict[object, list[Path]] = defaultdict(list)
        folders = _downloaded(root)
        for file in files_below(root):
            if file.suffix.lower() in IMAGES:
                self.files += 1
                for key in _keys(file, folders):
                    self._series[key].append(file)

    def whole(self, name: str) -> Path | DataError:
        """Return the image of a whole film, or why there is none."""
        place = _place(name)
        found = self._of(place) or self._series.get(place.case, [])
        if not found:
            return DataError("the image is not in this download")
        named = [file for file in found if file.stem == Path(name).stem] if len(found) > 1 else found
        return named[0] if len(named) == 1 else DataError(f"{len(found)} files lie where one image should")

    def crop(self, crop: str, mask: str) -> Path | DataError:
        """Return the image of a lesion, told from its mask by what the files hold, or why there is none.

        Both lie in one series, or in two, and either may lie where the table has the other.
        """
        candidates = list(dict.fromkeys([*self._of(_place(crop)), *self._of(_place(mask))]))
        if not candidates:
            return DataError("the image of the lesion is not in this download")
        try:
            crops = [file for file in candidates if not _is_mask(file)]
        except DataError as error:
            return error
        if not crops:
            return DataError("only the lesion's mask is in this download")
        return crops[0] if len(crops) == 1 else DataError(f"{len(crops)} files may be the image of the lesion")

    def _of(self, place: Place) -> list[Path]:
        described = (place.case, place.study[-5:], place.series[-5:])
        return self._series.get(place.series) or self._series.get(described) or []


def _keys(file: Path, folders: Mapping[str, str]) -> Iterator[object]:
    """Yield what a file may be found by: its series' UID; its case and the ends of two UIDs; its name as the case's."""
    series, study, case = (file.parents[n].name if n < len(file.parents) else "" for n in range(3))
    if (known := folders.get(str(file.parent))) is not None:
        yield known
    elif UID.fullmatch(series):
        yield series
    elif (ends := (ENDING.fullmatch(study), ENDING.fullmatch(series)))[0] and ends[1] and CASE_FOLDER.fullmatch(case):
        yield case, ends[0][1], ends[1][1]
    if CASE_FOLDER.fullmatch(file.stem):
        yield file.stem


def _downloaded(root: Path) -> dict[str, str]:
    """Return the series of each folder, as NBIA's `metadata.csv` tells, where there is one."""
    known: dict[str, str] = {}
    for file in sorted([*root.glob("metadata.csv"), *root.glob("*/metadata.csv")]):
        table = read_csv(file)
        if {"Series UID", "File Location"} <= set(table.columns):
            for series, place in table.select("Series UID", "File Location").iter_rows():
                known[str(file.parent / Path(*[p for p in place.replace("\\", "/").split("/") if p != "."]))] = series
    return known


def _is_mask(file: Path) -> bool:
    """Tell a mask from a crop: it has 8 bits in DICOM, not 16; elsewhere it is black and white. Raises `DataError`."""
    from PIL import Image
    from pydicom import dcmread

    try:
        # Of what they warn, nothing matters here; pydicom quotes the header.
        with warnings.catch_warnings(action="ignore"):
            if file.suffix.lower() == ".dcm":
                return int(dcmread(file, stop_before_pixels=True).BitsAllocated) == 8
            with Image.open(file) as image:
                if image.mode.startswith("I"):  # 16 bits
                    return False
                image.draft("L", (512, 512))  # masks are as large as whole films, and a smaller one tells as much
                grey = np.asarray(image.convert("L"))
    except Exception as error:  # what readers raise is of many kinds, and quotes paths
        raise DataError("crop and mask cannot be told apart: one of them cannot be read") from error
    return bool(((grey < 16) | (grey > 239)).mean() >= MASK_EXTREMES)
