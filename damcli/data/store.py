"""The dataset on disk: `dataset.json`, `manifest.parquet`, uint8 shards `images-00000.npy …`, `rejected.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ValidationError

from damcli import files
from damcli.config import Strict
from damcli.data import labels, shards
from damcli.data.audit import Concern
from damcli.data.images import Contract
from damcli.data.labels import Policy
from damcli.errors import DataError, UsageError

SCHEMA_VERSION = 1
UNFINISHED = ".unfinished.json"


class Shard(Strict):
    """One `.npy` file of the dataset."""

    file: str
    scans: int
    sha256: str


class Counts(Strict):
    """What a split holds of a finding. A blank label counts as the policy reads it, a soft one as its `truth` is."""

    positive: int
    negative: int
    uncertain: int
    missing: int


class DatasetInfo(Strict):
    """What `dataset.json` says.

    `splits` holds the scans per split, `counts` the labels by split and finding, `fingerprint` a hash of pixels,
    labels, splits and settings (not of where the files lay), `inputs` a hash of what `prepare` was given, `audit` what
    was found that may make figures too good.
    """

    schema_version: int
    source: str
    findings: tuple[str, ...]
    contract: Contract
    policies: dict[str, Policy]
    seed: int
    splits: dict[str, int]
    counts: dict[str, dict[str, Counts]]
    rejected: int
    notes: tuple[str, ...]
    audit: tuple[Concern, ...] = ()
    shards: tuple[Shard, ...]
    manifest_sha256: str
    inputs: str
    fingerprint: str


class Dataset:
    """A prepared dataset. `rows` below are row numbers of `manifest`, int64 (n,).

    `manifest` has a row per scan: id, path, patient, study, view, split, fold, "label:<finding>" (raw, null = blank),
    "target:<finding>" (null = missing), metadata columns, shard, row.
    """

    def __init__(self, path: Path, info: DatasetInfo, manifest: pl.DataFrame) -> None:
        self.path, self.info, self.manifest = path, info, manifest
        parts = info.shards
        self._images = shards.Reader([path / s.file for s in parts], [s.scans for s in parts], shape(info.contract))

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open a dataset folder. Raises `DataError` if it is none, unfinished, damaged or of another schema."""
        path = Path(path)
        if not (path / "dataset.json").exists() and (path / UNFINISHED).exists():
            raise DataError(
                "this dataset is not finished", where=path, fix="run the same `damcli prepare` again: it continues"
            )
        info = read_info(path)
        manifest = path / "manifest.parquet"
        if not manifest.is_file() or files.sha256(manifest) != info.manifest_sha256:
            what = "damaged" if manifest.is_file() else "missing"
            raise DataError(f"the dataset's manifest is {what}", where=manifest, fix=shards.PREPARE_AGAIN)
        return cls(path, info, pl.read_parquet(manifest))

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the rows of a split, ascending. Raises `UsageError` naming the splits if there is no such one."""
        if split not in self.info.splits:
            fix = f"choose from: {', '.join(self.info.splits)}"
            raise UsageError(f"the dataset has no split {split!r}", where=self.path, fix=fix)
        return np.flatnonzero((self.manifest["split"] == split).to_numpy()).astype(np.int64)

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return training targets, float32 (n, findings) in [0, 1], NaN = missing."""
        return self._targets[rows]

    def truth(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return what evaluation compares with, float64 (n, findings): 1, 0, or NaN (uncertain or missing)."""
        return self._truth[rows]

    def uncertain(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which labels are uncertain, bool (n, findings): -1, or a soft one of 0.5."""
        return labels.uncertain(self._raw[rows])

    def ids(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the scan ids."""
        return self.manifest["id"].gather(rows).to_list()

    def patients(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the patient ids, "" where there is none (such a scan counts as a patient of its own)."""
        return self.manifest["patient"].fill_null("").gather(rows).to_list()

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Return the images, uint8 (n, size, size) or (n, size, size, 3), in `out` where it is given."""
        return self._images.read(self._shards[rows], self._rows[rows], out)

    @cached_property
    def _targets(self) -> npt.NDArray[np.float32]:
        return _matrix(self.manifest, "target", self.info.findings).astype(np.float32)

    @cached_property
    def _truth(self) -> npt.NDArray[np.float64]:
        policies = self.info.policies
        return np.column_stack([labels.truth(self._raw[:, k], policies[f]) for k, f in enumerate(self.info.findings)])

    @cached_property
    def _raw(self) -> npt.NDArray[np.float64]:
        return _matrix(self.manifest, "label", self.info.findings)

    @cached_property
    def _shards(self) -> npt.NDArray[np.int64]:
        return self.manifest["shard"].to_numpy()

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        return self.manifest["row"].to_numpy()


def read_info(path: Path) -> DatasetInfo:
    """Read a dataset's `dataset.json`. Raises `DataError` if it is missing, damaged or of another schema."""
    raw = files.read_json(path / "dataset.json", "dataset")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"this dataset has schema {version}, this damcli reads schema {SCHEMA_VERSION}",
            where=path,
            fix="prepare it again with this damcli",
        )
    try:
        return DatasetInfo.model_validate(raw)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"dataset.json is damaged at {key}", where=path, fix=shards.PREPARE_AGAIN) from error


def shape(contract: Contract) -> tuple[int, ...]:
    """Return the shape of an image under a contract: (size, size), or (size, size, 3) for colour."""
    return (contract.size, contract.size) if contract.channels == 1 else (contract.size, contract.size, 3)


def count(raw: npt.NDArray[np.float64], policy: Policy) -> Counts:
    """Count raw labels under a policy: a soft one as positive above 0.5, negative below, uncertain at 0.5.

    >>> count(np.array([1, 0, -1, np.nan, 2 / 3]), Policy(blank="negative"))
    Counts(positive=2, negative=2, uncertain=1, missing=0)
    """
    truth = labels.truth(raw, policy)
    uncertain = int(labels.uncertain(raw).sum())
    return Counts(
        positive=int((truth == 1).sum()),
        negative=int((truth == 0).sum()),
        uncertain=uncertain,
        missing=int(np.isnan(truth).sum()) - uncertain,
    )


def column(frame: pl.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """Return a column of numbers as float64, NaN for null.

    >>> column(pl.DataFrame({"a": [1, None]}), "a")
    array([ 1., nan])
    """
    return frame[name].cast(pl.Float64).to_numpy()


def _matrix(manifest: pl.DataFrame, kind: str, findings: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.column_stack([column(manifest, f"{kind}:{finding}") for finding in findings])
