"""The figures of an evaluation, each with its interval: what tables, pictures and `metrics.json` are made of."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from damcli import __version__
from damcli.metrics import Components, Estimate, components, estimate, roc_curve, wilson
from damcli.metrics.calibration import Bin
from damcli.metrics.intervals import bootstrap, from_draws, obstacle
from damcli.metrics.ranking import (
    Counts,
    Ranking,
    area,
    average_precision,
    partial_area,
    precision_on,
    roc_on,
    sensitivity_at,
)
from damcli.report import tables
from damcli.report.drawings import Band, Curves
from damcli.report.evaluation import Evaluation
from damcli.report.method import Method
from damcli.report.plots import RocLine

if TYPE_CHECKING:
    from damcli.report.page import GalleryItem

# Files of version 2 may lack `subject.networks` and `truth.ids_sha256`, which came later.
SCHEMA_VERSION = 2
LEVEL = 0.95
FEW = 10  # of a class
MAX_FALSE_POSITIVE_RATE = 0.1
SPECIFICITY = 0.9
GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Figures:
    """What a finding's scores are worth; the bands are (2, G): low and high on `GRID`.

    `lost` counts the draws that lacked a class.
    """

    part: Components
    prevalence: Estimate
    auroc: Estimate
    average_precision: Estimate
    partial_auroc: Estimate
    sensitivity: Estimate
    roc_band: npt.NDArray[np.float64] | None
    precision_band: npt.NDArray[np.float64] | None
    lost: int = 0


@dataclass(frozen=True)
class Judgement:
    """An evaluation with its figures; `scored` are the scans' scores, calibrated where that was decided.

    `sections` are the parts of `metrics.json` that were asked for besides, `reliability` by finding the bins of the
    reliability diagrams, `gallery` single scans to show.
    """

    evaluation: Evaluation
    scored: Evaluation
    method: Method
    findings: dict[str, Figures]
    mean: Estimate
    mean_average_precision: Estimate
    sections: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Mapping[str, Sequence[Bin]]] = field(default_factory=dict)
    gallery: Sequence[GalleryItem] = ()
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    @property
    def aurocs(self) -> dict[str, Estimate]:
        """AUROC and interval by finding."""
        return {name: figures.auroc for name, figures in self.findings.items()}

    @property
    def defined(self) -> int:
        """How many findings have an AUROC."""
        return sum(not auroc.why for auroc in self.aurocs.values())

    @cached_property
    def ids_sha256(self) -> str:
        """A hash of the rows' names, whatever their order: it tells the same scans again and does not say which."""
        names = "\n".join(sorted(self.evaluation.truth.ids))
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        evaluation, method, notes = self.evaluation, self.method, list(self.evaluation.notes)
        rows, plural = len(evaluation.truth.ids), evaluation.unit.plural
        if method.cluster:
            notes.append(f"intervals: {method.others(evaluation.unit.by)}")
        elif evaluation.patients is None:
            notes.append(f"intervals take {plural} as independent: whether patients repeat is not known")
            known = [study for study in evaluation.truth.studies or () if study]
            if len(set(known)) < len(known):
                notes[-1] += ", but studies do: --cluster study draws a study's scans together"
        elif evaluation.patients_repeat:
            notes.append(
                f"intervals take {plural} as independent, and are too narrow: {rows} {plural} of"
                f" {evaluation.patients} patients"
            )
        few = {name: min(each.part.positives, each.part.negatives) for name, each in self.findings.items()}
        listed = ", ".join(f"{name} {n}" for name, n in few.items() if n < FEW and not self.aurocs[name].why)
        if listed:
            notes.append(f"with fewer than {FEW} of a class an interval is rough, and may be too narrow: {listed}")
        lost = [f"{name} {each.lost}" for name, each in self.findings.items() if each.lost and not each.auroc.why]
        if lost:
            notes.append(f"of {method.draws:,} draws those that lacked a class are left out: {', '.join(lost)}")
        notes += self.sections.get("notes", ())
        return notes

    def rows(self) -> list[list[str]]:
        """Return rows of text for a table with `tables.AUROC_COLUMNS`, the mean last."""
        rows = [
            tables.auroc_row(name, figures.part.positives, figures.part.negatives, figures.auroc)
            for name, figures in self.findings.items()
        ]
        return [*rows, tables.mean_row(f"mean of {self.defined}", self.mean)]

    def further_rows(self) -> list[list[str]]:
        """Return rows of text for a table with `tables.FURTHER_COLUMNS`."""
        return [
            [name, *map(tables.in_words, (each.average_precision, each.partial_auroc, each.sensitivity))]
            for name, each in self.findings.items()
        ]

    def lines(self) -> list[RocLine]:
        """Return a ROC curve per finding, for a panel of `plots.roc`."""
        truth, scores = self.evaluation.truth.values, self.evaluation.scores
        curves = [roc_curve(truth[:, k], scores[:, k]) for k in range(len(self.findings))]
        return [RocLine(name, curve, self.aurocs[name]) for name, curve in zip(self.aurocs, curves, strict=True)]

    def curves(self) -> dict[str, Curves]:
        """Return what is drawn of each finding."""
        truth, scores = self.evaluation.truth.values, self.evaluation.scores
        return {
            name: Curves.of(
                truth[:, k],
                scores[:, k],
                roc_band=None if each.roc_band is None else Band(GRID, *each.roc_band),
                precision_band=None if each.precision_band is None else Band(GRID, *each.precision_band),
                reliability=self.reliability.get(name, {}),
            )
            for k, (name, each) in enumerate(self.findings.items())
        }

    def document(self) -> dict[str, Any]:
        """Return the content of `metrics.json`; what is undefined is null, with the reason under `why`."""
        evaluation, truth = self.evaluation, self.evaluation.truth
        uncertain = truth.uncertain.sum(axis=0).tolist()
        findings: dict[str, dict[str, Any]] = {}
        for (name, each), left_out in zip(self.findings.items(), uncertain, strict=True):
            positives, negatives = each.part.positives, each.part.negatives
            findings[name] = {
                "positives": positives,
                "negatives": negatives,
                "uncertain": left_out,
                "unlabelled": len(truth.ids) - positives - negatives - left_out,
                "prevalence": tables.document(each.prevalence),
                "auroc": tables.document(each.auroc),
                "average_precision": tables.document(each.average_precision),
                "partial_auroc": {
                    "max_false_positive_rate": MAX_FALSE_POSITIVE_RATE,
                    **tables.document(each.partial_auroc),
                },
                "sensitivity_at_specificity": {"specificity": SPECIFICITY, **tables.document(each.sensitivity)},
                "operating": self.sections.get("operating", {}).get(name),
                "calibration": self.sections.get("calibration", {}).get(name),
            }
        return {
            "schema_version": SCHEMA_VERSION,
            "damcli": __version__,
            "created": self.created,
            "subject": {
                "kind": evaluation.kind,
                "path": str(evaluation.subject),
                "networks": self.sections.get("networks"),
            },
            "truth": {
                "path": str(truth.path),
                "split": truth.split,
                "fingerprint": truth.fingerprint,
                "ids_sha256": self.ids_sha256,
            },
            "selection": {"used": evaluation.selection.used, "note": evaluation.selection.note},
            "unit": {"by": evaluation.unit.by, "reduce": evaluation.unit.reduce, "rule": evaluation.unit.rule},
            "scans": evaluation.scan_count,
            "units": len(truth.ids),
            "patients": evaluation.patients,
            "failed": evaluation.failed,
            "views": evaluation.views,
            "interval": {
                "level": LEVEL,
                "auroc": self.method.auroc(evaluation.unit.by),
                "others": self.method.others(evaluation.unit.by),
                "cluster": self.method.cluster,
                "draws": self.method.draws,
                "seed": self.method.seed,
            },
            "findings": findings,
            "mean": {
                "findings": self.defined,
                "auroc": tables.document(self.mean),
                "average_precision": tables.document(self.mean_average_precision),
            },
            "decisions": self.sections.get("decisions"),
            "comparison": self.sections.get("comparison"),
            "readers": self.sections.get("readers"),
            "subgroups": self.sections.get("subgroups", []),
            "gates": self.sections.get("gates", []),
            "notes": self.notes,
        }


def draws(evaluation: Evaluation, method: Method) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the bootstrap, some draws at a time, for `judge`: float64 (d, K, F). It is what takes long."""
    yield from bootstrap(
        _rankings(evaluation), _figure, method.groups(evaluation), len(evaluation.truth.ids), method.draws, method.seed
    )


def judge(
    evaluation: Evaluation, method: Method | None = None, drawn: Sequence[npt.NDArray[np.float64]] | None = None
) -> Judgement:
    """Return the figures of an evaluation; `drawn` is what `draws` yielded, and is drawn here where it is not given."""
    method = method or Method.of(evaluation)
    truth, scores, names = evaluation.truth.values, evaluation.scores, evaluation.truth.findings
    sampled = np.concatenate(list(draws(evaluation, method) if drawn is None else drawn))
    groups = method.groups(evaluation)
    parts = [components(truth[:, k], scores[:, k]) for k in range(len(names))]
    findings = {}
    for k, (name, ranking, part) in enumerate(zip(names, _rankings(evaluation), parts, strict=True)):
        found = _figure(ranking, ranking.counts())
        why = part.undefined or obstacle(truth[:, k], groups)

        def interval(column: int, k: int = k, found: Any = found, why: str = why) -> Estimate:
            if why:
                return Estimate(math.nan, math.nan, math.nan, why)
            return from_draws(sampled[:, k, column], found[column], truth[:, k], groups, LEVEL)

        auroc = interval(0) if groups is not None else estimate([part], LEVEL)
        bands = None
        if not why:
            bands = np.nanquantile(sampled[:, k, 5:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
        findings[name] = Figures(
            part,
            _prevalence(part, groups, sampled[:, k, 4], found[4]),
            auroc,
            interval(1),
            interval(2),
            interval(3),
            None if bands is None else bands[:, : len(GRID)],
            None if bands is None else bands[:, len(GRID) :],
            int(np.isnan(sampled[:, k, 0]).sum()),
        )
    whole = estimate(parts, LEVEL)
    if groups is not None:
        whole = _mean([each.auroc for each in findings.values()], sampled[:, :, 0], truth, groups)
    precision = _mean([each.average_precision for each in findings.values()], sampled[:, :, 1], truth, groups)
    return Judgement(evaluation, evaluation, method, findings, whole, precision)


def _mean(
    estimates: Sequence[Estimate],
    sampled: npt.NDArray[np.float64],
    truth: npt.NDArray[np.float64],
    groups: Sequence[str] | None,
) -> Estimate:
    """Return the mean over the findings that have a figure, its interval from the draws that they share."""
    defined = [k for k, each in enumerate(estimates) if not each.why]
    if not defined:
        why = estimates[0].why if len(estimates) == 1 else "no finding has one"
        return Estimate(math.nan, math.nan, math.nan, why)
    value = math.fsum(estimates[k].value for k in defined) / len(defined)
    return from_draws(sampled[:, defined].mean(axis=1), value, truth[:, defined], groups, LEVEL)


def _prevalence(
    part: Components, groups: Sequence[str] | None, sampled: npt.NDArray[np.float64], value: float
) -> Estimate:
    known = part.positives + part.negatives
    if not known:
        return Estimate(math.nan, math.nan, math.nan, "no labelled scans")
    if groups is None:
        return Estimate(value, *wilson(part.positives, known, LEVEL))
    return from_draws(sampled, value, None, groups, LEVEL)


def _rankings(evaluation: Evaluation) -> list[Ranking]:
    truth, scores = evaluation.truth.values, evaluation.scores
    return [Ranking.of(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]


def _figure(ranking: Ranking, counts: Counts) -> npt.NDArray[np.float64]:
    """Return (..., 5 + 2 G): AUROC, average precision, partial AUROC, sensitivity, prevalence, and both curves."""
    positives, negatives = counts.true[..., -1:], counts.false[..., -1:]
    with np.errstate(invalid="ignore"):
        prevalence = positives / (positives + negatives)
    each = (
        area(ranking, counts),
        average_precision(ranking, counts),
        partial_area(MAX_FALSE_POSITIVE_RATE)(ranking, counts),
        sensitivity_at(SPECIFICITY)(ranking, counts),
        prevalence,
        roc_on(GRID)(ranking, counts),
        precision_on(GRID)(ranking, counts),
    )
    return np.concatenate(each, axis=-1)
