"""DDSM in the four forms that it is handed round in, recognised by looking: CBIS-DDSM (DICOM, or Kaggle's JPEG), the
original films (.LJPEG), and Kaggle's tiles as TFRecords, which the paper calls DDSM+ (FORMATS sections 4 to 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from damcli.data.sources import Source, cbis, files_below, films, tiles
from damcli.errors import DataError, UsageError


def read(path: Path, crops: bool = False, findings: Sequence[str] | None = None) -> Source:
    """Read what of DDSM lies at `path`; `crops` takes the annotated lesions, one a scan, instead of whole images.

    The finding is "malignant" (any lesion of the image, or the lesion itself); of the tiles it is "abnormal", or
    "malignant" where asked for. Raises `UsageError` for a path that is not there or an option that does not fit,
    `DataError` where nothing of DDSM is found.
    """
    if not path.is_dir():
        what = "DDSM is a folder" if path.exists() else "there is no such folder"
        raise UsageError(what, where=path, fix="pass the folder of the download")
    if tables := cbis.tables(path):
        _only(findings, ["malignant"])
        return cbis.read(path, tables, crops)
    if tiles.there(path):
        if crops:
            raise UsageError("the tiles of DDSM+ are crops already", where="--crops", fix="leave it out")
        return tiles.read(path, findings)
    below = list(files_below(path))
    if any(file.suffix.lower() == ".ics" for file in below):
        _only(findings, ["malignant"])
        return films.read(path, below, crops)
    entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise DataError(
        f"nothing of DDSM is recognised among {entries}",
        where=path.resolve(),
        fix="pass the folder with the *_case_description_*.csv files, the case folders (.ics), or training10_0",
    )


def _only(findings: Sequence[str] | None, known: Sequence[str]) -> None:
    if findings and list(findings) != list(known):
        raise UsageError(f"this form of DDSM has one finding, {known[0]}", where="--findings", fix="leave it out")
