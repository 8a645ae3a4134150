"""Splits by patient: no patient is on both sides, and positives are spread as evenly as the patients allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from damcli.data.labels import draw


def by_patient(
    patients: Sequence[str | None], labels: npt.NDArray[np.float64], fractions: Mapping[str, float], seed: int
) -> npt.NDArray[np.str_]:
    """Return the split of each scan: all scans of a patient in one, positives and scans near the asked fractions.

    `patients` has N ids, a blank one (None or "") being a patient of its own; `labels` (N, K) counts as positive
    above 0.5; `fractions` gives the share of scans per split and sums to 1. Depends on `seed` and the ids only. Raises
    `ValueError` for fractions that do not sum to 1. Greedy iterative stratification (Sechidis et al. 2011) over
    patients, the rarest finding first.

    >>> by_patient(["p", "p", "q", "r"], np.zeros((4, 1)), {"train": 0.5, "valid": 0.5}, seed=0).tolist()
    ['train', 'train', 'valid', 'valid']
    """
    shares = np.array(list(fractions.values()), np.float64)
    if not len(shares) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(f"fractions must be non-negative and sum to 1, got {dict(fractions)}")
    members, names = _groups(patients)
    # The last column counts scans: it decides where patients without any positive go.
    counts = np.zeros((len(names), labels.shape[1] + 1))
    np.add.at(counts, members, np.hstack([labels > 0.5, np.ones((len(labels), 1))]))
    totals = counts.sum(axis=0)
    rarity = np.where(counts > 0, totals, np.inf)
    rarest = rarity.argmin(axis=1)
    order = np.lexsort((
        [draw(seed, name) for name in names],
        -counts[np.arange(len(names)), rarest],
        rarity[np.arange(len(names)), rarest],
    ))  # fmt: skip
    wanted = np.outer(shares, totals).tolist()
    chosen = np.zeros(len(names), np.int64)
    for group in order.tolist():
        column = int(rarest[group])
        split = max(range(len(shares)), key=lambda s: (wanted[s][column], wanted[s][-1]))
        chosen[group] = split
        wanted[split] = [left - taken for left, taken in zip(wanted[split], counts[group].tolist(), strict=True)]
    return np.array(list(fractions))[chosen[members]] if len(members) else np.array([], dtype=np.str_)


def part(
    patients: Sequence[str | None], truth: npt.NDArray[np.float64], fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which scans belong to a patient-wise, stratified part of about `fraction` of the scans.

    Shapes as in `by_patient`; `truth` is 1, 0 or NaN. The `tune` part of a training split is made so.

    >>> int(part(list("abcdefgh"), np.ones((8, 1)), 0.25, seed=0).sum())
    2
    """
    return by_patient(patients, truth, {"rest": 1 - fraction, "part": fraction}, seed) == "part"


def folds(
    patients: Sequence[str | None], truth: npt.NDArray[np.float64], number: int, seed: int
) -> npt.NDArray[np.int32]:
    """Return the fold of each scan, 0 to `number` - 1: whole patients, positives and scans spread evenly.

    Shapes as in `by_patient`. Raises `ValueError` for fewer than two folds, or more than there are patients.

    >>> np.bincount(folds(list("aabbccdd"), np.ones((8, 1)), 4, seed=0)).tolist()
    [2, 2, 2, 2]
    """
    groups = len(_groups(patients)[1])
    if not 2 <= number <= groups:
        raise ValueError(f"folds must lie between 2 and the number of patients, {groups}, got {number}")
    names = {str(fold): 1 / number for fold in range(number)}
    return by_patient(patients, truth, names, seed).astype(np.int32)


def imbalanced(positive: npt.NDArray[np.bool_], imratio: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which scans stay when positives are removed at random until they are `imratio` of all.

    `positive` is bool (N,); every negative stays, and as many positives as keep their share at or below `imratio`, at
    least one. Depends on `seed` and the order of the scans only. The paper's benchmarks are made so (ALGORITHM
    section 8). Raises `ValueError` for an `imratio` outside (0, 1) or above the share that is there.

    >>> kept = imbalanced(np.arange(100) < 50, 0.1, seed=0)
    >>> int(kept[:50].sum()), int(kept[50:].sum())
    (5, 50)
    """
    positives = np.flatnonzero(positive)
    negatives = len(positive) - len(positives)
    if not 0 < imratio < 1:
        raise ValueError(f"imratio must lie in (0, 1), got {imratio}")
    # Rounded first: 0.1 x 900 / 0.9 falls a hair short of 100.
    left = max(int(round(imratio * negatives / (1 - imratio), 9)), 1)
    if left > len(positives):
        raise ValueError(
            f"imratio must not exceed the share of positives there is, {len(positives) / max(len(positive), 1):.3g}, "
            f"got {imratio:g}"
        )
    kept = ~np.asarray(positive, np.bool_)
    kept[np.random.default_rng(seed).permutation(positives)[:left]] = True
    return kept


def crossing(patients: Sequence[str | None], splits: Sequence[str | None]) -> list[tuple[int, int]]:
    """Return, for each patient with scans in two splits, the row numbers of two such scans.

    >>> crossing(["p", "q", "p", None, None], ["train", "train", "valid", "train", "valid"])
    [(0, 2)]
    """
    first: dict[str, int] = {}
    pairs: dict[str, tuple[int, int]] = {}
    for row, patient in enumerate(patients):
        if not patient:
            continue
        seen = first.setdefault(patient, row)
        if splits[seen] != splits[row]:
            pairs.setdefault(patient, (seen, row))
    return list(pairs.values())


def _groups(patients: Sequence[str | None]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number the patients; a blank id makes a group of its own, named by its row."""
    names = [patient or f"\0row {row}" for row, patient in enumerate(patients)]
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], np.int64), list(known)
