"""What scores are compared with: the labels of scans, or of studies or patients, and what else is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars as pl

    from damcli.data.store import Dataset

# Columns of a manifest that are no metadata to make subgroups of.
PLUMBING = ("id", "path", "patient", "study", "split", "fold", "class", "remark", "shard", "row")


@dataclass(frozen=True)
class Selection:
    """Whether the scans had a part in making what is evaluated: True, False, or None where that is not known."""

    used: bool | None
    note: str


@dataclass(frozen=True)
class Truth:
    """What scores are compared with: `values` float64 (n, K) holds 1, 0 or nan.

    `uncertain`, bool (n, K), says where the label is -1, or a soft one of 0.5. `patients` and `studies` have an id per
    scan, "" where it has none, or are None where nothing is known of them; `metadata` is a table of the other columns,
    a row per scan. A table of labels has no `split` and no `fingerprint`.
    """

    path: Path
    split: str | None
    fingerprint: str | None
    ids: list[str]
    findings: tuple[str, ...]
    values: npt.NDArray[np.float64]
    uncertain: npt.NDArray[np.bool_]
    patients: list[str] | None
    studies: list[str] | None = None
    metadata: pl.DataFrame | None = None

    @classmethod
    def of_dataset(cls, dataset: Dataset, split: str, rows: npt.NDArray[np.int64]) -> Truth:
        """Return the certain labels of some rows of a dataset, called `split`."""
        info, scans = dataset.info, dataset.manifest[rows]
        known = [name for name in scans.columns if name not in PLUMBING and not name.startswith(("label:", "target:"))]
        return cls(
            path=dataset.path,
            split=split,
            fingerprint=info.fingerprint,
            ids=dataset.ids(rows),
            findings=tuple(info.findings),
            values=dataset.truth(rows),
            uncertain=dataset.uncertain(rows),
            patients=dataset.patients(rows),
            studies=scans["study"].fill_null("").to_list(),
            metadata=scans.select(known),
        )

    @classmethod
    def of_labels(
        cls,
        path: Path,
        ids: list[str],
        findings: Sequence[str],
        raw: npt.NDArray[np.float64],
        patients: list[str] | None,
        studies: list[str] | None = None,
        metadata: pl.DataFrame | None = None,
    ) -> Truth:
        """Return the certain ones of raw labels (n, K), which are 1, 0, -1 (uncertain) or nan (blank: not labelled)."""
        uncertain = raw == -1
        values = np.where(uncertain, np.nan, raw)
        return cls(path, None, None, ids, tuple(findings), values, uncertain, patients, studies, metadata)

    @property
    def raw(self) -> npt.NDArray[np.float64]:
        """The labels as they were given, (n, K): 1, 0, -1 (uncertain) or nan (blank)."""
        return np.where(self.uncertain, -1.0, self.values)

    def part(
        self, findings: Sequence[str], scans: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | None = None
    ) -> Truth:
        """Return the truth of some findings and scans: those where `scans`, bool (n,), holds, or those row numbers."""
        columns = [self.findings.index(finding) for finding in findings]
        rows = np.arange(len(self.ids))[... if scans is None else scans]
        return replace(
            self,
            ids=_taken(self.ids, rows),
            findings=tuple(findings),
            values=self.values[rows][:, columns],
            uncertain=self.uncertain[rows][:, columns],
            patients=None if self.patients is None else _taken(self.patients, rows),
            studies=None if self.studies is None else _taken(self.studies, rows),
            metadata=None if self.metadata is None else self.metadata[rows],
        )


def _taken(values: Sequence[str], rows: npt.NDArray[np.integer]) -> list[str]:
    return [values[row] for row in rows.tolist()]
