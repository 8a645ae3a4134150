"""Which part every scan belongs to: what a source says is kept, what is open is split by patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from damcli.data import splits
from damcli.data.sources import Source
from damcli.errors import UsageError

VALID_FRACTION = 0.2


def assign(source: Source, valid_fraction: float | None, folds: int | None, seed: int) -> Source:
    """Give every scan of `source` a split, and a fold where folds are asked for or usual for the source.

    A split that the source names is kept. Scans without one become train and valid by patient, stratified over the
    findings: `valid_fraction` of them (default 0.2), or fold 0 where there are folds; with an official split the folds
    are of train. Raises `UsageError` for what does not go together, and for more folds than patients.
    """
    scans, notes = source.scans, list(source.notes)
    open_rows = scans["split"].is_null().to_numpy()
    own = "fold" in scans.columns and scans["fold"].null_count() < len(scans)
    number = folds if folds is not None or own or not open_rows.any() else source.folds
    if valid_fraction is not None and (number or not open_rows.any()):
        why = "with folds, fold 0 is valid" if number else "this source has its own split, which is kept"
        raise UsageError(why, where="--valid-fraction", fix="leave it out")
    if own and folds is not None:
        raise UsageError("this source has its own folds, which are kept", where="--folds", fix="leave it out")
    labels = scans.select(f"label:{finding}" for finding in source.findings).to_numpy()
    patients, split = scans["patient"].to_numpy().astype(object), scans["split"].to_numpy().astype(object)
    whole = "whole patients"
    if scans["patient"].null_count() == len(scans):
        whole = "single scans, since no patient is known and leaks cannot be excluded"
    if number:
        rows = np.flatnonzero(open_rows) if open_rows.any() else np.flatnonzero(split == "train")
        try:
            made = splits.folds(patients[rows].tolist(), labels[rows], number, seed)
        except ValueError as error:
            raise UsageError(str(error), where="--folds", fix="ask for fewer") from error
        fold = np.full(len(scans), -1, np.int32)
        fold[rows] = made
        scans = scans.with_columns(pl.Series("fold", fold).replace(-1, None))
        notes.append(f"{number} folds of {whole}, stratified (seed {seed})")
    if open_rows.any():
        rows = np.flatnonzero(open_rows)
        drawn = "no official split" if open_rows.all() else f"{len(rows)} scans have no official split"
        them = "the scans" if open_rows.all() else "them"
        if number:
            split[rows] = np.where(made == 0, "valid", "train")
            notes.append(f"{drawn}: fold 0 is valid, the others are train")
        else:
            fraction = VALID_FRACTION if valid_fraction is None else valid_fraction
            fractions = {"train": 1 - fraction, "valid": fraction}
            split[rows] = splits.by_patient(patients[rows].tolist(), labels[rows], fractions, seed)
            notes.append(f"{drawn}: {fraction:.0%} of {them} became valid, drawn as {whole} (seed {seed})")
        scans = scans.with_columns(pl.Series("split", split.tolist()))
    return replace(source, scans=scans, notes=notes)
