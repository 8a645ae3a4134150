"""Operating points: a threshold chosen by a rule on some scans, and what it is worth on others.

A scan is called positive where its score ≥ the threshold. Choose on scans that are not those you judge by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError, model_validator

from damcli.config import Strict
from damcli.metrics.auroc import checked
from damcli.metrics.delong import Estimate, on_logit_scale, tail_of
from damcli.metrics.intervals import Groups, from_draws, members_of, weights, wilson
from damcli.metrics.ranking import Ranking

Kind = Literal["youden", "sensitivity", "specificity", "cost"]
Floats = NDArray[np.float64]


class Rule(Strict):
    """What a threshold is chosen for; `at` is the sensitivity, the specificity, or the ratio of the costs.

    Youden's index is sensitivity + specificity − 1 (Cancer 3 (1950) 32-35). At a cost of 5, a positive that is missed
    costs 5 times as much as a negative that is called.
    """

    kind: Kind
    at: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _sensible(self) -> Rule:
        if self.kind == "youden":
            if self.at is not None:
                raise ValueError("youden takes no number")
        elif self.at is None:
            raise ValueError(f"{self.kind} takes a number, such as {self.kind}={5 if self.kind == 'cost' else 0.9}")
        elif self.kind == "cost" and not self.at > 0:
            raise ValueError(f"a cost is above 0; got {self.at:g}")
        elif self.kind != "cost" and not 0 < self.at <= 1:
            raise ValueError(f"a {self.kind} is above 0 and at most 1; got {self.at:g}")
        return self

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `youden`, `sensitivity=0.9`, `specificity=0.95` or `cost=5`. Raises `ValueError`.

        >>> Rule.parse("sensitivity=0.9").name, Rule.parse("cost = 5").words
        ('sensitivity-0.9', 'the threshold of the least cost, a missed positive costing 5 times a false alarm')
        """
        kind, equals, number = (part.strip() for part in text.partition("="))
        if kind not in get_args(Kind):
            raise ValueError(f"an operating point is chosen by {', '.join(get_args(Kind))}; got {text!r}")
        try:
            at = float(number) if equals else None
        except ValueError:
            raise ValueError(f"{kind} takes a number; got {number!r}") from None
        try:
            return cls.model_validate({"kind": kind, "at": at})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(str(first.get("ctx", {}).get("error", first["msg"]))) from None

    @property
    def name(self) -> str:
        """What tables, columns and files call the point."""
        return self.kind if self.at is None else f"{self.kind}-{self.at!r}".removesuffix(".0")

    @property
    def words(self) -> str:
        """The rule in words."""
        if self.kind == "youden":
            return "the threshold with the largest sensitivity + specificity"
        at = repr(self.at).removesuffix(".0")
        if self.kind == "cost":
            return f"the threshold of the least cost, a missed positive costing {at} times a false alarm"
        other = "specificity" if self.kind == "sensitivity" else "sensitivity"
        return f"the threshold with the largest {other} among those with a {self.kind} of at least {at}"


class Chosen(Strict):
    """What a threshold was chosen on, and what it was worth there."""

    positives: int
    negatives: int
    sensitivity: float
    specificity: float


class Point(Strict):
    """An operating point, as it is stored."""

    rule: Rule
    threshold: float = Field(allow_inf_nan=False)
    chosen_on: Chosen


class Measured(NamedTuple):
    """What a threshold is worth, with intervals; `prevalence` is the one that PPV and NPV are at."""

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    prevalence: float


def choose(targets: ArrayLike, scores: ArrayLike, rule: Rule, prevalence: float | None = None) -> float:
    """Return the threshold that a rule chooses: always the score of one of the scans of known target.

    Costs are weighed at the `prevalence` given, or at that of the scans; the other rules do not depend on it. Among
    thresholds that the rule holds equal it takes the one of the larger sensitivity (for a sensitivity: of the larger
    specificity, then of the larger sensitivity; for a specificity: the other way round). Raises `ValueError` where a
    class is missing, where no threshold does what is asked (no specificity of 0.9 where the highest score is that of
    a negative; no Youden's index above 0; nothing cheaper than to call no scan), and what `auroc` raises.

    >>> choose([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.8], Rule.parse("youden"))
    0.4
    >>> choose([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.8], Rule.parse("specificity=0.9"))
    0.8
    """
    return point(targets, scores, rule, prevalence).threshold


def point(targets: ArrayLike, scores: ArrayLike, rule: Rule, prevalence: float | None = None) -> Point:
    """Return what `choose` chooses, with what it is worth on the scans that it was chosen on."""
    share = _prevalence(prevalence)
    ranking = Ranking.of(targets, scores)
    # Whole numbers, so that thresholds that are equally good compare as equal.
    true, false = (counts.astype(np.int64) for counts in ranking.counts())
    positives, negatives = int(true[-1]), int(false[-1])
    if not (positives and negatives):
        raise ValueError(f"no {'negatives' if positives else 'positives'} to choose a threshold by")
    at = _place(rule, true, false, share)
    return Point(
        rule=rule,
        threshold=float(ranking.thresholds[at - 1]),
        chosen_on=Chosen(
            positives=positives,
            negatives=negatives,
            sensitivity=float(true[at] / positives),
            specificity=float((negatives - false[at]) / negatives),
        ),
    )


def _place(rule: Rule, true: NDArray[np.int64], false: NDArray[np.int64], prevalence: float | None) -> int:
    """Return the place in the counts of the threshold that the rule chooses: 1 … T, 0 being none."""
    positives, negatives = true[-1], false[-1]
    missed, places = positives - true, np.arange(len(true))
    if rule.at is None:
        index = true * negatives - false * positives
        if index.max() <= 0:
            raise ValueError("no threshold is better than calling all scans or none")
        return int(places[index == index.max()][-1])
    if rule.kind == "cost":
        # Per scan: at the scans' own prevalence each of them counts once.
        by = (1.0, 1.0) if prevalence is None else (prevalence / positives, (1 - prevalence) / negatives)
        cost = rule.at * by[0] * missed + by[1] * false
        if cost[0] <= cost[1:].min():
            raise ValueError(f"at a cost of {rule.at:g} it is cheapest to call no scan positive")
        return int(places[cost == cost.min()][-1])
    if rule.kind == "sensitivity":
        enough = places[true / positives >= rule.at]
        return int(enough[false[enough] == false[enough].min()][-1])
    enough = places[1:][((negatives - false) / negatives >= rule.at)[1:]]
    if not len(enough):
        raise ValueError(f"no threshold has a specificity of {rule.at:g}: the highest scores are those of negatives")
    return int(enough[true[enough] == true[enough].max()][0])


def measure(
    targets: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    prevalence: float | None = None,
    groups: Groups | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Measured:
    """Return what a threshold is worth on these scans, with intervals that stay inside [0, 1].

    PPV and NPV are at the scans' own prevalence, or at the one given: then they follow from sensitivity and
    specificity by Bayes' theorem. Intervals are Wilson's (`wilson`); at a given prevalence normal on the logit scale
    (Mercaldo, Lau, Zhou, Stat. Med. 26 (2007) 2170-2183, eq. 8-11, the prevalence taken as known). Where `groups` (N,)
    repeat, all are from the bootstrap over groups (`damcli.metrics.intervals`). A sensitivity or specificity of exactly
    0 or 1 shows no variance: at a given prevalence PPV and NPV are then bounded by their values at the bounds of both.
    What is undefined is nan and says why. Raises what `auroc` does, and `ValueError` for a threshold that is nan or a
    prevalence or level outside (0, 1).

    >>> found = measure([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.8], 0.4, prevalence=0.1)
    >>> found.true_positives, found.false_positives, round(found.ppv.value, 6), found.npv.value
    (2, 1, 0.25, 1.0)
    """
    if math.isnan(threshold):
        raise ValueError("the threshold is nan")
    given = _prevalence(prevalence)
    positive, negative, values = checked(targets, scores)
    # In float64, so that a float32 score is compared with the threshold that is stored, not with that one rounded.
    called = values.astype(np.float64) >= threshold
    cells = np.stack([positive & called, positive & ~called, negative & ~called, negative & called], axis=1)
    table = _Table.of(cells, groups, draws, seed)
    tp, fn, tn, fp = (int(count) for count in cells.sum(axis=0))
    sensitivity = table.share(TP, FN, "positives", level)
    specificity = table.share(TN, FP, "negatives", level)
    if not (tp + fn and tn + fp):
        ppv = npv = _undefined("no negatives" if tp + fn else "no positives")
    elif given is None:
        ppv = table.share(TP, FP, "scans called positive", level)
        npv = table.share(TN, FN, "scans called negative", level)
    else:
        ppv = table.predictive((TP, FN, TN, FP), sensitivity, specificity, given, level)
        npv = table.predictive((TN, FP, TP, FN), specificity, sensitivity, 1 - given, level)
    if given is None:
        given = (tp + fn) / known if (known := tp + fn + tn + fp) else math.nan
    return Measured(threshold, tp, fp, tn, fn, sensitivity, specificity, ppv, npv, given)


# The columns of a table: positives called and not, negatives not called and called.
TP, FN, TN, FP = range(4)


@dataclass(frozen=True, eq=False)
class _Table:
    """Which of four cells each scan is in (N, 4), its group (N,), and the cells' sums in each draw (D, 4), if drawn."""

    cells: NDArray[np.bool_]
    members: NDArray[np.intp]
    drawn: Floats | None

    @classmethod
    def of(cls, cells: NDArray[np.bool_], groups: Groups | None, draws: int, seed: int) -> _Table:
        """Draw the groups, if any is of more than one scan."""
        members, count = members_of(groups, len(cells))
        if count == len(cells):
            return cls(cells, members, None)
        by_group = np.zeros((count, 4))
        np.add.at(by_group, members, cells)
        # To draw the groups by themselves is to draw their scans with them.
        drawn = [times @ by_group for times in weights(None, count, draws, seed)]
        return cls(cells, members, np.concatenate(drawn))

    def share(self, wanted: int, other: int, name: str, level: float) -> Estimate:
        """Return the share of one cell in two, called `name`."""
        whole = self.cells[:, wanted] | self.cells[:, other]
        successes, total = int(self.cells[:, wanted].sum()), int(whole.sum())
        if not total:
            return _undefined(f"no {name}")
        if self.drawn is None:
            return Estimate(successes / total, *wilson(successes, total, level))
        own = self.members[whole]
        if len(np.unique(own)) < 2:
            one = name.replace("tives", "tive").replace("scans", "scan")
            return _undefined(f"only 1 {one}" if total == 1 else f"all {name} in one group")
        shares = _over(self.drawn[:, wanted], self.drawn[:, other])
        return from_draws(shares, successes / total, groups=own, level=level)

    def predictive(
        self, columns: Sequence[int], own: Estimate, others: Estimate, prevalence: float, level: float
    ) -> Estimate:
        """Return the PPV at a prevalence; the NPV where the classes have changed places in all arguments.

        `columns` are TP, FN, TN, FP, `own` the sensitivity and `others` the specificity.
        """
        tp, fn, tn, fp = columns
        counts = self.cells.sum(axis=0)
        if not counts[tp] + counts[fp]:
            return _undefined(f"no scans called {'positive' if tp == TP else 'negative'}")
        if why := own.why or others.why:
            return _undefined(why)
        ends = zip(own[:3], others[:3], strict=True)
        value, low, high = (float(_bayes(sensitivity, specificity, prevalence)) for sensitivity, specificity in ends)
        if {own.value, others.value} & {0.0, 1.0}:
            return Estimate(value, low, high)
        if self.drawn is not None:
            sums = self.drawn.T
            drawn = _bayes(_over(sums[tp], sums[fn]), _over(sums[tn], sums[fp]), prevalence)
            return from_draws(drawn, value, level=level)
        of_logit = math.sqrt((1 - own.value) / counts[tp] + others.value / counts[fp])
        return Estimate(value, *on_logit_scale(value, of_logit * value * (1 - value), tail_of(level)))


def _bayes(sensitivity: ArrayLike, specificity: ArrayLike, prevalence: float) -> Floats:
    """Return the share of positives among those called, and nan where none is."""
    hits = prevalence * np.asarray(sensitivity, np.float64)
    return _over(hits, (1 - prevalence) * (1 - np.asarray(specificity, np.float64)))


def _over(part: ArrayLike, rest: ArrayLike) -> Floats:
    """Return part / (part + rest), and nan where both are 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(part, np.float64) / (np.asarray(part, np.float64) + np.asarray(rest, np.float64))


def _prevalence(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise ValueError(f"a prevalence lies between 0 and 1; got {value}")
    return value


def _undefined(why: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, why)
