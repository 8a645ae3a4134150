"""Labels keyed by study, such as CheXpert's `groundtruth.csv`, and which scans of a table of scores they are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from damcli.data import scores
from damcli.data.labels import is_finding
from damcli.data.scores import ScanTable
from damcli.errors import DataError

COLUMNS = ("study", "study_id")  # what the column of studies is called, in any case


class OfStudies(NamedTuple):
    """Scans of labelled studies: their ids and studies, and int64 (n,) the row of the labels that is their study's.

    `patients` are those of the labels, else of the scores; None where neither has them.
    """

    ids: list[str]
    studies: list[str]
    patients: list[str] | None
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class StudyTable:
    """A table of labels with a row per study.

    `studies` are the keys, unique and never blank: an id (`s50414267`), or a folder (`patient64741/study1`, with
    whatever lies above it); where there is a column `patient`, it is put before them. `column` is where they stood.
    """

    path: Path
    frame: pl.DataFrame
    column: str
    studies: list[str]

    @classmethod
    def of(cls, path: Path, frame: pl.DataFrame, column: str) -> StudyTable:
        """Return the table that `frame`, read from `path`, is. Raises `DataError` for a study blank or twice."""
        found = scores.text(frame[column], path).to_list()
        studies = _of_patients(found, scores.id_column(frame, "patient", path))
        scores.refuse_repeated(studies, np.arange(1, len(frame) + 1), column, "studies", path)
        return cls(path, frame, column, studies)

    @property
    def names(self) -> list[str]:
        """The columns that may be findings."""
        return [name for name in self.frame.columns if name != self.column and is_finding(name)]

    def labels(self, findings: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return raw labels by study, float64 (m, K), as `ScanTable.labels`; `[rows]` of them are those of scans."""
        return scores.raw_labels(self.frame, findings, self.path, np.arange(1, len(self.frame) + 1))

    def scans(self, table: ScanTable) -> OfStudies:
        """Return the scans of a table of scores that belong to the studies, in its order, those that failed included.

        A scan belongs to the study that its column `study` names (below its `patient`, if it has one), else to the one
        in whose folder it lies: the whole key stands in its path, or its path begins with the end of the key, of which
        `study1` alone is not enough. Whole parts of paths are compared: `study1` is not `study11`. Raises `DataError`
        for a study without any scan, and for a scan that may be of two.
        """
        keys, ids = _Keys(self.studies), table.ids
        column = study_column(table.frame)
        named = scores.id_column(table.frame, column, table.path) if column else None
        named = _of_patients(named or [""] * len(ids), table.patients)
        owners = [keys.owners(study) or keys.owners(path) for study, path in zip(named, ids, strict=True)]
        for row, (path, found) in enumerate(zip(ids, owners, strict=True)):
            if len(found) > 1:
                raise DataError(
                    f"the scan {path} may be of {len(found)} studies, such as {self.studies[min(found)]}",
                    where=f"{table.path}, row {table.rows[row]} below the header",
                    fix="give the scores paths that hold the study's whole folder, or a column `study`",
                )
        scans = [row for row, found in enumerate(owners) if found]
        rows = np.array([min(owners[scan]) for scan in scans], np.int64)
        without = sorted(set(range(len(self.studies))) - set(rows.tolist()))
        if without:
            first = f" (the scores' first is {ids[0]})" if ids else ""
            raise DataError(
                f"{len(without)} of {len(self.studies)} studies have no scan among the scores,"
                f" first {self.studies[without[0]]}{first}",
                where=self.path,
                fix="score them all; a scan's `path` must hold the folder of its study, or a column `study` name it",
            )
        own, theirs = scores.id_column(self.frame, "patient", self.path), table.patients
        patients = None
        if own is not None:
            patients = [own[row] for row in rows]
        elif theirs is not None:
            patients = [theirs[scan] for scan in scans]
        return OfStudies([ids[scan] for scan in scans], [self.studies[row] for row in rows], patients, rows)


def read_labels(path: Path) -> ScanTable | StudyTable:
    """Read a table of labels: keyed by its column `path`, else by `study` or `study_id` (in any case).

    Raises what `ScanTable.read` raises.
    """
    frame = scores.read_table(path)
    column = study_column(frame)
    return StudyTable.of(path, frame, column) if column and "path" not in frame.columns else ScanTable.of(path, frame)


def study_column(frame: pl.DataFrame) -> str | None:
    """Return the name of a table's column of studies.

    >>> study_column(pl.DataFrame({"Study": [], "No Finding": []}))
    'Study'
    """
    return next((name for name in frame.columns if name.strip().lower() in COLUMNS), None)


class _Keys:
    """Studies by their keys, and by the ends of these."""

    def __init__(self, studies: Sequence[str]) -> None:
        self._whole = {_parts(study): row for row, study in enumerate(studies)}
        self._ends: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for key, row in self._whole.items():
            for start in range(1, len(key) - 1):
                self._ends[key[start:]].add(row)

    def owners(self, path: str) -> set[int]:
        """Return the rows of the studies that a path may lie in, or that a name may mean."""
        parts = _parts(path)
        whole = {self._whole[run] for run in _runs(parts) if run in self._whole}
        return whole or {row for stop in range(2, len(parts) + 1) for row in self._ends.get(parts[:stop], ())}


def _of_patients(studies: Sequence[str | None], patients: Sequence[str] | None) -> list[str]:
    """Return the studies, each below its patient unless it names that already; "" where there is no study."""
    named = [scores.spelled(study or "") for study in studies]
    if patients is None:
        return named
    return [
        f"{patient}/{study}" if study and patient and patient not in _parts(study) else study
        for study, patient in zip(named, patients, strict=True)
    ]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in scores.spelled(path).split("/") if part)


def _runs(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every run of neighbouring parts."""
    for start in range(len(parts)):
        for stop in range(start + 1, len(parts) + 1):
            yield parts[start:stop]
