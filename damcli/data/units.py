"""Scans put together to what is judged: studies or patients, whose scores and labels come of all their scans."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from damcli.data.labels import choose
from damcli.errors import DataError, UsageError

By = Literal["scan", "study", "patient"]
Reduce = Literal["mean", "max", "first"]
REDUCES: tuple[Reduce, ...] = ("mean", "max", "first")
LABEL_RULE = "positive if any scan is; else uncertain if any is; else negative if any is; else unlabelled"
# What a unit is called whose scans differ.
SEVERAL = "several"
# A label by its rank, the highest of which counts: unlabelled, negative, uncertain, positive.
_BY_RANK = np.array([np.nan, 0.0, -1.0, 1.0])


class ReducedScores(NamedTuple):
    """Scores of units float64 (m, K), nan where a unit `failed`, bool (m,): none of its scans could be scored.

    `partly` counts the units of which some scans could be scored and others not.
    """

    scores: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    partly: int


class ReducedLabels(NamedTuple):
    """Raw labels of units float64 (m, K): 1, 0, -1 (uncertain) or nan (unlabelled).

    `disagree` (K,) counts by finding the units whose labelled scans are not all labelled alike.
    """

    labels: npt.NDArray[np.float64]
    disagree: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Units:
    """What scans are put together to.

    `names` (m,) are the units' in the order of their first scans, whose rows are `first`, int64 (m,); `members`, int64
    (n,), is the unit of each scan. A scan without the id is a unit of its own, named by its path; `alone` counts these.
    """

    by: By
    names: list[str]
    first: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    alone: int = 0

    @classmethod
    def of(
        cls,
        by: By,
        patients: Sequence[str | None] | None,
        studies: Sequence[str | None] | None,
        paths: Sequence[str],
        where: object = None,
    ) -> Units:
        """Return the units of scans, whose ids (n,) are blank or None where there is none.

        A study is known by its patient and its own id, since studies may be numbered anew for every patient: so the
        `study1` of two patients are two, and a `study1` without a patient is a scan alone where they are so numbered.
        Raises `DataError`, with `where`, where no scan has the id.

        >>> units = Units.of("study", ["p1", "p1", "p2"], ["s1", "s1", "s1"], ["a.png", "b.png", "c.png"])
        >>> units.names, units.members.tolist()
        (['p1/s1', 'p2/s1'], [0, 0, 1])
        """
        keys = _keys(by, patients, studies, len(paths))
        if by != "scan" and len(paths) and not any(key is not None for key in keys):
            raise DataError(
                f"it is not known which {by} a scan is of: none has the id of one",
                where=where,
                fix=f"give the labels a column {by}, or leave out --by {by}",
            )
        numbers: dict[Hashable, int] = {}
        # A scan's row is the key of one without an id: no id is an integer.
        whole: Iterable[Hashable] = (row if key is None else key for row, key in enumerate(keys))
        members = np.array([numbers.setdefault(key, len(numbers)) for key in whole], np.int64)
        names = [paths[key] if isinstance(key, int) else _name(cast(tuple[str, ...], key)) for key in numbers]
        first = np.full(len(numbers), len(paths), np.int64)
        np.minimum.at(first, members, np.arange(len(paths)))
        alone = 0 if by == "scan" else sum(key is None for key in keys)
        return cls(by, names, first, members, alone)

    def __len__(self) -> int:
        return len(self.names)

    def scores(self, scores: npt.NDArray[np.floating], rules: Sequence[Reduce]) -> ReducedScores:
        """Return the units' scores from those of the scans (n, K), reduced by the rule of each of the K findings.

        `first` is the first scan in the order given. A scan with nan in any finding failed and takes no part: its unit
        is reduced over the others. Neither the order of the scans nor rounding makes a difference to mean and max: the
        mean of equal scores is that score.

        >>> units = Units.of("patient", ["p", "p", "q"], None, ["a", "b", "c"])
        >>> units.scores(np.array([[0.2, 0.2], [0.6, 0.6], [np.nan, 0.1]]), ["mean", "max"]).scores.tolist()
        [[0.4, 0.6], [nan, nan]]
        """
        values = np.asarray(scores, np.float64)
        assert values.shape == (len(self.members), len(rules)), (values.shape, len(self.members), rules)
        failed = np.isnan(values).any(axis=1)
        rows = np.flatnonzero(~failed)
        scored = np.bincount(self.members[rows], minlength=len(self))
        reduced = np.full((len(self), len(rules)), np.nan)
        if len(rows):
            for column, rule in enumerate(rules):
                reduced[scored > 0, column] = _reduced(self.members[rows], values[rows, column], rule)
        partly = (scored > 0) & (scored < np.bincount(self.members, minlength=len(self)))
        return ReducedScores(reduced, scored == 0, int(partly.sum()))

    def labels(self, labels: npt.NDArray[np.float64]) -> ReducedLabels:
        """Return the units' labels from the raw ones of all their scans (n, K), failed ones too, by `LABEL_RULE`.

        >>> units = Units.of("patient", ["p", "p", "q", "q"], None, list("abcd"))
        >>> units.labels(np.array([[1.0], [-1.0], [np.nan], [0.0]]))
        ReducedLabels(labels=array([[1.],
               [0.]]), disagree=array([1]))
        """
        values = np.asarray(labels, np.float64)
        ranks = np.select([values == 1, values == -1, values == 0], [3, 2, 1], 0).astype(np.int8)
        assert ((ranks > 0) | np.isnan(values)).all(), "raw labels are 1, 0, -1 or nan"
        highest = np.zeros((len(self), values.shape[1]), np.int8)
        lowest = np.full_like(highest, 4)
        np.maximum.at(highest, self.members, ranks)
        np.minimum.at(lowest, self.members, np.where(ranks > 0, ranks, 4).astype(np.int8))
        return ReducedLabels(_BY_RANK[highest], (lowest < highest).sum(axis=0))

    def shared(self, values: Sequence[str]) -> list[str]:
        """Return for each unit the value that all its scans have; `SEVERAL` where they differ.

        >>> Units.of("patient", ["p", "p", "q"], None, ["a", "b", "c"]).shared(["frontal", "lateral", "frontal"])
        ['several', 'frontal']
        """
        found = [values[row] for row in self.first.tolist()]
        for unit, value in zip(self.members.tolist(), values, strict=True):
            if found[unit] != value:
                found[unit] = SEVERAL
        return found


def parse_reduce(text: str, findings: Sequence[str]) -> dict[str, Reduce]:
    """Read `--reduce`: a rule for all findings, rules for some, or both; the others are reduced by their mean.

    Raises `UsageError` for an unknown rule or finding, and for a finding or the rule of all given twice.

    >>> parse_reduce("max,Edema=mean", ["Edema", "Fracture"])
    {'Edema': 'mean', 'Fracture': 'max'}
    """
    rules: dict[str, Reduce] = {}
    general: Reduce | None = None
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, equals, word = part.rpartition("=")
        rule = _rule(word.strip())
        if not equals:
            if general is not None:
                raise UsageError("the rule of all findings is given twice", where="--reduce", fix="name it once")
            general = rule
            continue
        finding = choose([name], findings, "finding", "--reduce")[0]
        if finding in rules:
            raise UsageError(f"the finding {finding!r} is given twice", where="--reduce", fix="name it once")
        rules[finding] = rule
    return {finding: rules.get(finding, general or "mean") for finding in findings}


def _rule(word: str) -> Reduce:
    for rule in REDUCES:
        if word.lower() == rule:
            return rule
    fix = f"choose {', '.join(REDUCES)}; by finding: --reduce max,Edema=mean"
    raise UsageError(f"there is no way {word!r} to reduce scores", where="--reduce", fix=fix)


def _keys(
    by: By, patients: Sequence[str | None] | None, studies: Sequence[str | None] | None, scans: int
) -> list[tuple[str, ...] | None]:
    """Return what each scan's unit is known by; None where it has no id."""
    owners: Sequence[str | None] = [None] * scans if patients is None else patients
    if by == "patient":
        return [(patient,) if patient else None for patient in owners]
    if by == "scan" or studies is None:
        return [None] * scans
    owner_of: dict[str, str] = {}
    named = [(patient, study) for patient, study in zip(owners, studies, strict=True) if patient and study]
    numbered = {study for patient, study in named if owner_of.setdefault(study, patient) != patient}
    return [
        None if not study or (not patient and numbered) else (patient or "", study)
        for patient, study in zip(owners, studies, strict=True)
    ]


def _name(key: tuple[str, ...]) -> str:
    """Return a unit's name: a study's is its path below its patient, unless its own id says that.

    >>> _name(("p1", "s1")), _name(("p1", "test/p1/s1")), _name(("", "s1")), _name(("p1",))
    ('p1/s1', 'test/p1/s1', 's1', 'p1')
    """
    return key[-1] if not key[0] or key[0] in key[-1].split("/") else "/".join(key)


def _reduced(members: npt.NDArray[np.int64], values: npt.NDArray[np.float64], rule: Reduce) -> npt.NDArray[np.float64]:
    """Return the value of each unit that has one, in the order of the units."""
    # Sorted within a unit too, so that a sum does not depend on the order in which scans are given.
    order = np.argsort(members, kind="stable") if rule == "first" else np.lexsort((values, members))
    units, values = members[order], values[order]
    starts = np.flatnonzero(np.append(True, units[1:] != units[:-1]))
    if rule == "first":
        return values[starts]
    ends = np.append(starts[1:], len(units)) - 1
    if rule == "max":
        return values[ends]
    means = np.add.reduceat(values, starts) / (ends - starts + 1)
    return cast(npt.NDArray[np.float64], np.clip(means, values[starts], values[ends]))
