"""`predict --by study` and `--by patient`: whose a scan is, and one row for all scans that belong together."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from damcli.bundle.table import Row
from damcli.data.inputs import Input
from damcli.data.units import Reduce, Units
from damcli.data.workers import Decoded

# CheXpert's folders, also in names that users have flattened: patient00001_study1_view1_frontal.jpg.
_CHEXPERT = re.compile(r"(?<![^/])(patient\d+)[/_](?:(study\d+)[/_])?")
_LISTED = 3  # reasons that the row of a failed unit gives


def ids_of(one: Input, header: Decoded, stated: tuple[str, str] | None = None) -> tuple[str, str]:
    """Return the patient and the study of a scan, "" where they are not known.

    Each is the first one that is there: what a table has `stated`, what the DICOM `header` says (PatientID,
    StudyInstanceUID, without the blanks that fill them up), CheXpert's folders in the path. Studies may be numbered
    anew for every patient, so that of a table or a folder is named below its patient, unless it says that itself.

    >>> from pathlib import Path
    >>> from damcli.data.archives import Place
    >>> scan = Input("train/patient00001/study1/view1_frontal.jpg", Place(Path("small.zip"), 0), "")
    >>> ids_of(scan, Decoded(0, None, "ok", ""))
    ('patient00001', 'patient00001/study1')
    >>> ids_of(scan, Decoded(0, None, "ok", "", "007 ", "1.2.3"), ("p7", ""))
    ('p7', '1.2.3')
    """
    patient, study = _below(*(text.strip() for text in stated or ("", "")))
    patient, study = patient or header.patient.strip(" \0"), study or header.study.strip(" \0")
    if not (patient and study):
        # The innermost folders count: those further up may be called so by chance.
        *_, folders = ("", ""), *_CHEXPERT.findall(f"{one.place.path.absolute().as_posix()}/{one.name}")
        owner, own = _below(*folders)
        patient, study = patient or owner, study or own
    return patient, study


@dataclass(eq=False)
class ByUnit(Iterator[Row]):
    """The rows of units. `skipped` files were no image and belong to none, `alone` scans have no id and are their own.

    The rows' `scans` and `skipped` add up to the files given.
    """

    skipped: int
    alone: int
    _rows: Iterator[Row]

    def __next__(self) -> Row:
        return next(self._rows)


def rows(by: Literal["study", "patient"], scans: Iterable[Row], reduce: Mapping[str, Reduce]) -> ByUnit:
    """Return a row for every study or patient, in the order of its first scan, from the rows of all scans.

    `reduce` holds the rule of every finding, in their order. A unit's scores, float32 (K,), are those of its scans
    that are ok, reduced by `data.units`; it failed where there are none, and its row then says what was wrong with
    them. Its key, `Row.path`, is the id that the scans have in `Row.study` or `Row.patient`; of a scan without, the
    scan's path. Where scans of several patients have the same study, they are several, with the patient before it.

    All scans are read at once, of which their scores are kept, as float32, and the ids.

    >>> scan = Row("a.dcm", "ok", "", np.array([0.25], np.float32), study="s")
    >>> other = scan._replace(path="b.dcm", scores=np.array([0.75], np.float32))
    >>> [(row.path, row.scores.tolist(), row.scans) for row in rows("study", [scan, other], {"Edema": "mean"})]
    [('s', [0.5], 2)]
    """
    patients: list[str] = []
    studies: list[str] = []
    paths: list[str] = []
    scores, missing = array("f"), [np.nan] * len(reduce)
    reasons: dict[int, str] = {}
    same: dict[str, str] = {}
    skipped = 0
    for row in scans:
        if row.status == "skipped":
            skipped += 1
            continue
        if row.scores is None:
            reasons[len(paths)] = same.setdefault(row.error, row.error)
        scores.extend(missing if row.scores is None else row.scores)
        patients.append(same.setdefault(row.patient, row.patient))
        studies.append(same.setdefault(row.study, row.study))
        # Only a scan alone may be called by its path.
        paths.append("" if row.patient and (row.study or by == "patient") else row.path)
    known = any(patients if by == "patient" else studies)
    units = Units.of(by if known else "scan", patients, studies, paths)
    names = _names(units, studies, paths) if by == "study" else units.names
    reduced = np.empty((len(units), len(reduce)), np.float32)
    # One finding at a time, since they are reduced as float64.
    columns = np.asarray(scores).reshape(-1, len(reduce)).T
    for column, (rule, values) in enumerate(zip(reduce.values(), columns, strict=True)):
        reduced[:, column] = units.scores(values[:, None], [rule]).scores[:, 0]
    made = _rows(names, units, reduced, reasons, patients, studies if by == "study" else None)
    return ByUnit(skipped, units.alone if known else len(paths), made)


def _rows(
    names: Sequence[str],
    units: Units,
    reduced: NDArray[np.float32],
    reasons: Mapping[int, str],
    patients: Sequence[str],
    studies: Sequence[str] | None,
) -> Iterator[Row]:
    scans = np.bincount(units.members, minlength=len(units))
    errors: dict[int, list[str]] = defaultdict(list)
    for scan, reason in reasons.items():
        errors[int(units.members[scan])].append(reason)
    for unit, (name, first) in enumerate(zip(names, units.first.tolist(), strict=True)):
        count, failed = int(scans[unit]), errors.get(unit, [])
        scored = len(failed) < count
        yield Row(
            name,
            "ok" if scored else "failed",
            "" if scored else _summary(failed),
            reduced[unit] if scored else None,
            patient=patients[first],
            study=studies[first] if studies else "",
            scans=count,
            failed=len(failed),
        )


def _names(units: Units, studies: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return what studies are called: by their own ids alone, as far as these are theirs alone."""
    firsts = units.first.tolist()
    own = [name if name == paths[first] else studies[first] for name, first in zip(units.names, firsts, strict=True)]
    count = Counter(own)
    return [study if count[study] == 1 else name for study, name in zip(own, units.names, strict=True)]


def _summary(reasons: Sequence[str]) -> str:
    """Return the reasons of several scans in one text.

    >>> _summary(["the file is empty", "the file is empty", "it is cut off"])
    '2 scans: the file is empty; 1 scan: it is cut off'
    """
    if len(reasons) == 1:
        return reasons[0]
    counted = Counter(reasons).most_common()
    told = [f"{number} scan{'s' if number > 1 else ''}: {reason}" for reason, number in counted[:_LISTED]]
    rest = sum(number for _, number in counted[_LISTED:])
    return "; ".join([*told, *([f"{rest} more"] if rest else [])])


def _below(patient: str, study: str) -> tuple[str, str]:
    """Return both, the study below its patient."""
    return patient, f"{patient}/{study}" if patient and study and patient not in study.split("/") else study
