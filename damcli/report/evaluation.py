"""Scores against the truth: the figures, as a table's rows, as ROC curves and as the content of `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from damcli import __version__
from damcli.metrics import Components, Estimate, components, estimate, roc_curve
from damcli.report import tables
from damcli.report.plots import RocLine

if TYPE_CHECKING:
    from damcli.data.store import Dataset

SCHEMA_VERSION = 1
LEVEL = 0.95
METHOD = (
    "DeLong, normal on the logit scale; at exactly 0 or 1 the exact bound of disjoint pairs; scans taken as independent"
)


@dataclass(frozen=True)
class Truth:
    """What scores are compared with: `values` float64 (n, K) holds 1, 0 or nan, `uncertain` bool (n, K) says where -1.

    `patients` has an id per scan, "" where it has none, or is None where nothing is known of them. `split` and
    `fingerprint` are None for a table of labels.
    """

    path: Path
    split: str | None
    fingerprint: str | None
    ids: list[str]
    findings: tuple[str, ...]
    values: npt.NDArray[np.float64]
    uncertain: npt.NDArray[np.bool_]
    patients: list[str] | None

    @classmethod
    def of_dataset(cls, dataset: Dataset, split: str, rows: npt.NDArray[np.int64]) -> Truth:
        """Return the certain labels of some rows of a dataset, called `split`."""
        info, scans = dataset.info, dataset.manifest[rows]
        uncertain = [scans[f"label:{finding}"].eq(-1).fill_null(False).to_numpy() for finding in info.findings]
        return cls(
            path=dataset.path,
            split=split,
            fingerprint=info.fingerprint,
            ids=dataset.ids(rows),
            findings=tuple(info.findings),
            values=dataset.truth(rows),
            uncertain=np.column_stack(uncertain),
            patients=dataset.patients(rows),
        )

    @classmethod
    def of_labels(
        cls,
        path: Path,
        ids: list[str],
        findings: Sequence[str],
        raw: npt.NDArray[np.float64],
        patients: list[str] | None,
    ) -> Truth:
        """Return the certain ones of raw labels (n, K), which are 1, 0, -1 (uncertain) or nan (blank: not labelled)."""
        uncertain = raw == -1
        return cls(path, None, None, ids, tuple(findings), np.where(uncertain, np.nan, raw), uncertain, patients)

    def part(self, findings: Sequence[str], scans: npt.NDArray[np.bool_] | None = None) -> Truth:
        """Return the truth of some findings and, where `scans`, bool (n,), is given, of the scans where it holds."""
        columns = [self.findings.index(finding) for finding in findings]
        rows = np.arange(len(self.ids)) if scans is None else np.flatnonzero(scans)
        return Truth(
            path=self.path,
            split=self.split,
            fingerprint=self.fingerprint,
            ids=[self.ids[row] for row in rows],
            findings=tuple(findings),
            values=self.values[rows][:, columns],
            uncertain=self.uncertain[rows][:, columns],
            patients=None if self.patients is None else [self.patients[row] for row in rows],
        )


@dataclass(frozen=True)
class Selection:
    """Whether the scans had a part in making what is evaluated: True, False, or None where that is not known."""

    used: bool | None
    note: str


@dataclass(frozen=True)
class Evaluation:
    """Scores (n, K) and truth of the same scans and findings, and where both come from.

    `kind` is run, model, folds or scores; `failed` scans could not be scored and are in neither; a score is the mean
    over `views` of a scan.
    """

    kind: str
    subject: Path
    truth: Truth
    scores: npt.NDArray[np.floating[Any]]
    selection: Selection
    failed: int = 0
    remarks: tuple[str, ...] = ()
    views: int = 1

    @cached_property
    def parts(self) -> list[Components]:
        """Per finding the AUROC with the contributions of the scans."""
        return [components(self.truth.values[:, k], self.scores[:, k]) for k in range(len(self.truth.findings))]

    @cached_property
    def aurocs(self) -> dict[str, Estimate]:
        """AUROC and interval by finding."""
        return {name: estimate([part], LEVEL) for name, part in zip(self.truth.findings, self.parts, strict=True)}

    @cached_property
    def mean(self) -> Estimate:
        """The mean AUROC of the findings that have one, with its interval."""
        return estimate(self.parts, LEVEL)

    @property
    def defined(self) -> int:
        """How many findings have an AUROC."""
        return sum(not auroc.why for auroc in self.aurocs.values())

    @property
    def patients(self) -> int | None:
        """How many patients the scans are of, one without an id being its own; None where that is not known."""
        ids = self.truth.patients
        return None if ids is None else len(set(ids) - {""}) + ids.count("")

    @property
    def title(self) -> str:
        """What was evaluated on what, in one line."""
        split = f", split {self.truth.split}" if self.truth.split else ""
        views = f", {self.views} views each" if self.views > 1 else ""
        return f"{self.subject} on {self.truth.path}{split}, {len(self.truth.ids)} scans{views}"

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        scans, patients = len(self.truth.ids), self.patients
        notes = [] if self.selection.used is False else [f"selection: {self.selection.note}"]
        notes += self.remarks
        if self.failed:
            notes.append(f"{self.failed} scans could not be scored (status failed) and are left out")
        uncertain = self.truth.uncertain.sum(axis=0).tolist()
        if any(uncertain):
            listed = ", ".join(f"{f} {n}" for f, n in zip(self.truth.findings, uncertain, strict=True) if n)
            notes.append(f"uncertain labels are left out: {listed}")
        if patients is None:
            notes.append("DeLong treats scans as independent: whether patients repeat is not known")
        elif patients < scans:
            notes.append(f"DeLong treats scans as independent: {scans} scans of {patients} patients")
        return notes

    def rows(self) -> list[list[str]]:
        """Return rows of text for a table with `tables.AUROC_COLUMNS`, the mean last."""
        rows = [
            tables.auroc_row(name, part.positives, part.negatives, self.aurocs[name])
            for name, part in zip(self.truth.findings, self.parts, strict=True)
        ]
        return [*rows, tables.mean_row(f"mean of {self.defined}", self.mean)]

    def lines(self) -> list[RocLine]:
        """Return a ROC curve per finding, for a panel of `plots.roc`."""
        curves = [roc_curve(self.truth.values[:, k], self.scores[:, k]) for k in range(len(self.parts))]
        return [RocLine(name, curve, self.aurocs[name]) for name, curve in zip(self.aurocs, curves, strict=True)]

    def document(self) -> dict[str, Any]:
        """Return the content of `metrics.json`; what is undefined is null, with the reason under `why`."""
        truth = self.truth
        uncertain = truth.uncertain.sum(axis=0).tolist()
        findings = {
            name: {
                "positives": part.positives,
                "negatives": part.negatives,
                "uncertain": left_out,
                "unlabelled": len(truth.ids) - part.positives - part.negatives - left_out,
                "auroc": tables.document(self.aurocs[name]),
            }
            for name, part, left_out in zip(truth.findings, self.parts, uncertain, strict=True)
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "damcli": __version__,
            "subject": {"kind": self.kind, "path": str(self.subject)},
            "truth": {"path": str(truth.path), "split": truth.split, "fingerprint": truth.fingerprint},
            "selection": {"used": self.selection.used, "note": self.selection.note},
            "scans": len(truth.ids),
            "patients": self.patients,
            "failed": self.failed,
            "views": self.views,
            "interval": {"level": LEVEL, "method": METHOD},
            "findings": findings,
            "mean": {"findings": self.defined, "auroc": tables.document(self.mean)},
            "notes": self.notes,
        }
