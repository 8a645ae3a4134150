"""Scores beside the truth of the same scans, or of studies or patients: what was evaluated, before any figure of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from damcli.report.truth import Selection, Truth

__all__ = ["Evaluation", "Selection", "Truth", "Unit"]


@dataclass(frozen=True)
class Unit:
    """What a row of scores and truth is: a `scan`, a `study` or a `patient`, and how it came of its scans.

    `reduce` says by finding how scores became one: mean, max or first; `rule` says in words how labels did.
    """

    by: str = "scan"
    reduce: dict[str, str] = field(default_factory=dict)
    rule: str = "each scan is judged by itself"

    @property
    def plural(self) -> str:
        """The units' name in a sentence."""
        return {"scan": "scans", "study": "studies", "patient": "patients"}[self.by]


@dataclass(frozen=True)
class Evaluation:
    """Scores (n, K) and truth of the same scans and findings, and where both come from.

    `kind` is run, model, folds or scores; `failed` scans could not be scored and are in neither; a score is the mean
    over `views` of a scan. Where `unit` is no scan, rows are studies or patients that `scans` scans make up.
    """

    kind: str
    subject: Path
    truth: Truth
    scores: npt.NDArray[np.floating[Any]]
    selection: Selection
    failed: int = 0
    remarks: tuple[str, ...] = ()
    views: int = 1
    unit: Unit = Unit()
    scans: int | None = None

    @property
    def scan_count(self) -> int:
        """How many scans were scored."""
        return len(self.truth.ids) if self.scans is None else self.scans

    @property
    def patients(self) -> int | None:
        """How many patients the scans are of, one without an id being its own; None where none has an id."""
        ids = self.truth.patients
        return None if ids is None or not any(ids) else len(set(ids) - {""}) + ids.count("")

    @property
    def patients_repeat(self) -> bool:
        """Whether two rows are known to be of one patient."""
        return self.patients is not None and self.patients < len(self.truth.ids)

    @property
    def title(self) -> str:
        """What was evaluated on what, in one line."""
        split = f", split {self.truth.split}" if self.truth.split else ""
        views = f", {self.views} views each" if self.views > 1 else ""
        units = "" if self.unit.by == "scan" else f" in {len(self.truth.ids)} {self.unit.plural}"
        return f"{self.subject} on {self.truth.path}{split}, {self.scan_count} scans{units}{views}"

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know, the intervals aside."""
        notes = [] if self.selection.used is False else [f"selection: {self.selection.note}"]
        notes += self.remarks
        if self.failed:
            notes.append(f"{self.failed} scans could not be scored (status failed) and are left out")
        uncertain = self.truth.uncertain.sum(axis=0).tolist()
        if any(uncertain):
            listed = ", ".join(f"{f} {n}" for f, n in zip(self.truth.findings, uncertain, strict=True) if n)
            notes.append(f"uncertain labels are left out: {listed}")
        return notes
