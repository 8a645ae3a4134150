"""Findings, what they may be called, and what becomes of labels that are uncertain (-1) or blank.

A raw label is 1 (positive), 0 (negative), -1 (uncertain) or NaN (blank: not mentioned). Between 0 and 1 it is soft:
the share of the readers who see the finding. A `Policy` turns labels into training targets in [0, 1] or NaN (missing),
which keep the share, and into the truth that evaluation compares with: there a soft label is what most readers say,
and one of exactly 0.5 is as uncertain as -1.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from damcli.config import Strict
from damcli.errors import DataError, UsageError

CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COMPETITION = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
# Columns of tables of scores that are no findings: these, and those that say which scans an operating point calls
# positive, FINDING:positive.
NO_FINDINGS = ("path", "status", "error", "patient", "study", "scans", "scans_failed")
CALLS = ":positive"

UncertainRule = Literal["ones", "zeros", "ignore", "ones-lsr", "zeros-lsr"]
UNCERTAIN_RULES: tuple[UncertainRule, ...] = ("ones", "zeros", "ignore", "ones-lsr", "zeros-lsr")
# Label smoothing draws uncertain targets uniformly from here (Pham et al. 2021, as the paper uses it).
SMOOTHING = {"ones-lsr": (0.55, 0.85), "zeros-lsr": (0.0, 0.30)}


class Policy(Strict):
    """What uncertain (-1) and blank labels of one finding become.

    `uncertain`: `ones`, `zeros`, `ignore` (missing), `ones-lsr` (uniform in 0.55 to 0.85), `zeros-lsr` (0 to 0.30), or
    a fixed target in [0, 1]. `blank`: `negative` or `missing`.
    """

    uncertain: UncertainRule | Annotated[float, Field(ge=0, le=1)] = "ignore"
    blank: Literal["negative", "missing"] = "missing"


def is_finding(column: str) -> bool:
    """Whether a column of a table of scores may be a finding: damcli itself names none so, in any case.

    >>> is_finding("Edema"), is_finding("Patient "), is_finding("Edema:positive")
    (True, False, False)
    """
    return column.strip().casefold() not in NO_FINDINGS and not column.endswith(CALLS)


def check_findings(findings: Sequence[str]) -> None:
    """Raise `DataError` unless findings can be columns of a table of scores beside those that are none.

    >>> check_findings(["Edema", "status"])
    Traceback (most recent call last):
    ...
    damcli.errors.DataError: a finding may not be called 'status': tables of scores have a column of that name
      fix: rename it where its labels are, and prepare again
    """
    for finding in findings:
        why = "tables of scores have a column of that name"
        if control := re.search(r"[\x00-\x1f\x7f-\x9f]", finding):
            why = f"{control[0]!r} is no character that can be shown"
        if control or not is_finding(finding):
            fix = "rename it where its labels are, and prepare again"
            raise DataError(f"a finding may not be called {finding!r}: {why}", fix=fix)
    if not findings or not all(map(str.strip, findings)) or len(set(findings)) < len(findings):
        raise DataError(f"findings must be named, each once, got {list(findings)}")


def chexpert_policy(finding: str) -> Policy:
    """Return the default for CheXpert's labels: the paper's for its five findings, `ignore` for the others.

    >>> chexpert_policy("Edema").uncertain, chexpert_policy("Consolidation").uncertain
    ('ones-lsr', 'zeros-lsr')
    """
    if finding in ("Atelectasis", "Edema"):
        return Policy(uncertain="ones-lsr", blank="negative")
    return Policy(uncertain="zeros-lsr" if finding in COMPETITION else "ignore", blank="negative")


def targets(
    labels: npt.NDArray[np.float64], ids: Sequence[str], finding: str, policy: Policy, seed: int
) -> npt.NDArray[np.float32]:
    """Return training targets for raw labels under a policy.

    `labels` (N,) holds numbers in [0, 1], -1 or NaN, `ids` the N scan ids. Returns float32 (N,) in [0, 1], NaN =
    missing; a soft label is its own target. Smoothed targets are drawn from a hash of (seed, scan id, finding): the
    same on every machine and in any order of work.

    >>> targets(np.array([1, 0, -1, np.nan]), list("abcd"), "Edema", Policy(uncertain=0.5, blank="negative"), seed=0)
    array([1. , 0. , 0.5, 0. ], dtype=float32)
    """
    result = np.asarray(labels, np.float64).copy()
    unsure = np.flatnonzero(result == -1)
    if isinstance(policy.uncertain, float):
        result[unsure] = policy.uncertain
    elif policy.uncertain in SMOOTHING:
        low, high = SMOOTHING[policy.uncertain]
        draws = [draw(seed, ids[row], finding) for row in unsure.tolist()]
        result[unsure] = low + (high - low) * np.array(draws, np.float64)
    else:
        result[unsure] = {"ones": 1.0, "zeros": 0.0, "ignore": np.nan}[policy.uncertain]
    if policy.blank == "negative":
        result[np.isnan(labels)] = 0.0
    return result.astype(np.float32)


def truth(labels: npt.NDArray[np.float64], policy: Policy) -> npt.NDArray[np.float64]:
    """Return what evaluation compares with: 1, 0, or NaN where the label is uncertain, or blank and so missing.

    >>> truth(np.array([1, 0, -1, np.nan, 2 / 3]), Policy(uncertain="ones", blank="negative"))
    array([ 1.,  0., nan,  0.,  1.])
    """
    result = certain(labels)
    if policy.blank == "negative":
        result[np.isnan(labels)] = 0.0
    return result


def certain(labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 1 where raw labels are positive, 0 where negative, NaN where uncertain or blank, in the labels' shape.

    >>> certain(np.array([1, 0, -1, np.nan, 1 / 3, 0.5]))
    array([ 1.,  0., nan, nan,  0., nan])
    """
    values = np.asarray(labels, np.float64)
    return np.where(np.isnan(values) | uncertain(values), np.nan, values > 0.5)


def uncertain(labels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return where raw labels are uncertain: -1, or a soft label that says neither.

    >>> uncertain(np.array([1, 0, -1, np.nan, 1 / 3, 0.5])).tolist()
    [False, False, True, False, False, True]
    """
    values = np.asarray(labels, np.float64)
    return (values == -1) | (values == 0.5)


def draw(seed: int, *names: str) -> float:
    """Return a number in [0, 1) that depends on `seed` and `names` only (64 bits of BLAKE2b).

    >>> draw(0, "a", "b") == draw(0, "a", "b") != draw(1, "a", "b")
    True
    """
    text = "\0".join((str(seed), *names))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def choose(wanted: Iterable[str], known: Sequence[str], what: str, where: object) -> list[str]:
    """Return `wanted` names spelled as in `known`, in the wanted order, whatever their case.

    Raises `UsageError` for a name that is not known, with the nearest one, and for one that is given twice.

    >>> choose(["edema"], COMPETITION, "finding", "--findings")
    ['Edema']
    """
    spelled = {name.casefold(): name for name in known}
    chosen: list[str] = []
    for name in wanted:
        found = name if name in known else spelled.get(name.strip().casefold())
        if found is None:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"choose from: {', '.join(known)}"
            raise UsageError(f"there is no {what} {name.strip()!r}", where=where, fix=fix)
        if found in chosen:
            raise UsageError(f"the {what} {found!r} is given twice", where=where, fix="name it once")
        chosen.append(found)
    return chosen


def with_rules(policies: Mapping[str, Policy], uncertain: str | None, blank: str | None) -> dict[str, Policy]:
    """Return the policies changed by what the command line says.

    `uncertain` is one rule for all findings (`ones`) or rules by finding (`Edema=ones,Cardiomegaly=0.3`); `blank` is
    `negative` or `missing`. Raises `UsageError` for an unknown rule or finding.

    >>> with_rules({"Edema": Policy(), "Fracture": Policy()}, "Edema=0.7", None)["Edema"].uncertain
    0.7
    """
    changed = dict(policies)
    rules = [part.strip() for part in (uncertain or "").split(",") if part.strip()]
    if len(rules) == 1 and "=" not in rules[0]:
        rules = [f"{finding}={rules[0]}" for finding in policies]
    for part in rules:
        name, _, text = part.rpartition("=")
        finding = choose([name], list(policies), "finding", "--uncertain")[0]
        changed[finding] = changed[finding].model_copy(update={"uncertain": _rule(text.strip())})
    if blank is not None:
        if blank not in ("negative", "missing"):
            raise UsageError(f"--blank takes negative or missing, got {blank!r}", fix="choose one of the two")
        changed = {name: policy.model_copy(update={"blank": blank}) for name, policy in changed.items()}
    return changed


def _rule(text: str) -> UncertainRule | float:
    for rule in UNCERTAIN_RULES:
        if text == rule:
            return rule
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(
            f"there is no rule {text!r} for uncertain labels",
            where="--uncertain",
            fix=f"choose {', '.join(UNCERTAIN_RULES)}, or a number from 0 to 1",
        )
    return value
