"""The real scans that an exported model is compared with PyTorch on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from damcli.bundle.build import Member
    from damcli.data.store import Dataset
    from damcli.training.folder import RunInfo

NUMBER = 64
# Where AUROCs decide: half precision, OpenVINO. One pair of scans that changes places moves an AUROC the less the more
# pairs there are.
NUMBER_JUDGED = 256
# The scans that no run was trained on come first.
SPLITS = ("valid", "test", "train")


def parity_scans(
    dataset: Dataset, findings: Sequence[str], number: int = NUMBER
) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """Return up to `number` scans spread evenly over a split, those first that have a label of a finding.

    They are uint8 (N, S, S[, 3]); then their truth (N, findings), and what the manifest has of them.
    """
    import numpy as np

    [split, *_] = [name for name in (*SPLITS, *dataset.info.splits) if dataset.info.splits.get(name)]
    rows = dataset.rows(split)
    known = dict(zip(dataset.info.findings, dataset.truth(rows).T, strict=True))
    unknown = np.full(len(rows), np.nan)
    truth = np.column_stack([known.get(finding, unknown) for finding in findings])
    labelled = ~np.isnan(truth).all(1)
    places = np.flatnonzero(labelled if labelled.any() else ~labelled)
    places = places[np.unique(np.linspace(0, len(places) - 1, number).astype(int))]
    return dataset.read(rows[places]), truth[places], dataset.manifest[rows[places]]


def dataset_of(given: Path | None, members: Sequence[Member], runs: Sequence[RunInfo]) -> Dataset:
    """Open the dataset given, else that of the member that the model takes its size from."""
    from damcli.bundle.build import common_contract
    from damcli.data.store import Dataset

    contract = common_contract([member.contract for member in members])
    path = given or next(run.dataset for run in runs if run.contract == contract)
    if given is None and not (path / "dataset.json").is_file():
        raise UsageError(
            "the run's dataset is no longer there, and real scans are needed to compare with PyTorch",
            where=path,
            fix="say where it is: --dataset DATASET",
        )
    dataset = Dataset.open(path)
    if dataset.info.contract != contract:
        raise UsageError(
            f"this dataset was decoded by another contract ({dataset.info.contract}) than the model's ({contract})",
            where=path,
            fix="give the dataset that the run was trained on, or one prepared in the same way",
        )
    return dataset
