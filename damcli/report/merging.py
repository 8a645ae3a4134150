"""AUROCs of several hospitals as one result, `merged.json`: their figures travel, and no scan does."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from damcli import __version__
from damcli.errors import DataError
from damcli.metrics import Estimate
from damcli.metrics.pooling import Pooled, pool_aurocs
from damcli.report import tables
from damcli.report.evaluation import Unit
from damcli.report.judgement import FEW, LEVEL
from damcli.report.sites import Figure, Finding, Metrics, Site, alike

SCHEMA_VERSION = 1
METHODS = {
    "auroc": "fixed effect: mean of these sites, by inverse variance on the logit scale",
    "random": "random effects: mean of the hospitals that these are drawn from; Paule and Mandel's τ², Hartung and"
    " Knapp's interval",
    "prediction": "where the AUROC of another such hospital lies; from three sites on",
    "heterogeneity": "Cochran's Q; τ² on the logit scale, I² = τ² beside a typical site's variance, intervals by Q's"
    " profile",
}
POOLED_COLUMNS = ["finding", "sites", "fixed effect", "random effects", "another hospital (prediction)"]
SPREAD_COLUMNS = ["finding", "Q (df)", "p", "I²", "τ²"]
SITE_COLUMNS = ["finding", "site", "n+", "n−", "AUROC", "95 % interval", "weight"]
DIFFERING = 0.1  # a p-value of Q, which has little power with few sites
OTHER_FINDINGS = "the sites' means are over different findings"
NONE = "no site has an AUROC that can be pooled"
Document = Mapping[str, Any]
Rows = list[list[str]]


def merge(sites: Sequence[Site]) -> dict[str, Any]:
    """Return the content of `merged.json`: per finding each site's AUROC, the pooled ones, and how far they differ.

    Figures are pooled over the sites that have them. The mean over findings is pooled where all sites have it over the
    same ones. What is undefined is null, with the reason under `why`. Raises `DataError` where no finding is at two
    sites.
    """
    names = list(dict.fromkeys(name for site in sites for name in site.metrics.findings))
    having = {name: [site for site in sites if name in site.metrics.findings] for name in names}
    if all(len(each) < 2 for each in having.values()):
        listed = "; ".join(f"{site.name}: {', '.join(site.metrics.findings)}" for site in sites)
        raise DataError(f"no finding is at two sites ({listed})", where="--merge", fix="give findings the same names")
    findings = {name: _merged(found, [site.metrics.findings[name] for site in found]) for name, found in having.items()}
    patients = [site.metrics.patients for site in sites]
    return {
        "schema_version": SCHEMA_VERSION,
        "damcli": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "unit": {"by": sites[0].metrics.unit.by},
        "scans": sum(site.metrics.scans for site in sites),
        "units": sum(site.metrics.units for site in sites),
        "patients": None if None in patients else sum(filter(None, patients)),
        "interval": {"level": LEVEL, **METHODS},
        "sites": {site.name: _site(site) for site in sites},
        "findings": findings,
        "mean": _mean(sites),
        "gates": [],
        "warnings": list(_warnings(sites)),
        "notes": list(_notes(sites, findings)),
    }


def _site(site: Site) -> dict[str, Any]:
    metrics = site.metrics
    return {
        "subject": {
            "kind": metrics.subject.kind,
            "name": metrics.subject.name,
            "networks": metrics.subject.networks and list(metrics.subject.networks),
        },
        "split": metrics.truth.split,
        "selection": metrics.selection.used,
        "scans": metrics.scans,
        "units": metrics.units,
        "patients": metrics.patients,
        "views": metrics.views,
        "level": metrics.interval.level,
        "cluster": metrics.interval.cluster,
    }


def _merged(sites: Sequence[Site], parts: Sequence[Finding]) -> dict[str, Any]:
    document = _pooled(sites, [part.auroc for part in parts])
    for site, part in zip(sites, parts, strict=True):
        document["sites"][site.name] |= {"positives": part.positives, "negatives": part.negatives}
    return document


def _mean(sites: Sequence[Site]) -> dict[str, Any]:
    """Return the sites' means over findings, pooled where they are over the same ones."""
    if _findings_differ(sites):
        return _undefined(OTHER_FINDINGS)
    return _pooled(sites, [site.metrics.mean.auroc for site in sites])


def _findings_differ(sites: Sequence[Site]) -> bool:
    return len({tuple(sorted(site.metrics.defined)) for site in sites}) > 1


def _pooled(sites: Sequence[Site], figures: Sequence[Figure]) -> dict[str, Any]:
    taken = [number for number, figure in enumerate(figures) if figure.poolable]
    document = _undefined(NONE)
    document["sites"] = {
        site.name: {"auroc": figure.model_dump(), "weight": None, "random_weight": None}
        for site, figure in zip(sites, figures, strict=True)
    }
    if taken:
        levels = [sites[number].metrics.interval.level for number in taken]
        found = pool_aurocs([figures[number].estimate for number in taken], levels, LEVEL)
        document |= _document(found)
        for number, weight, random in zip(taken, found.weights, found.random_weights, strict=True):
            document["sites"][sites[number].name] |= {"weight": weight, "random_weight": random}
    return document


def _document(found: Pooled) -> dict[str, Any]:
    why = found.random.why or None
    spread = {
        "sites": len(found.weights),
        "df": len(found.weights) - 1,
        "q": None if why else found.q,
        "p": None if why else found.p,
        "i2": _with_value(found.i2),
        "tau2": _with_value(found.tau2),
        "why": why,
    }
    each = {"auroc": found.fixed, "random": found.random, "prediction": found.prediction}
    return {name: tables.document(estimate) for name, estimate in each.items()} | {"heterogeneity": spread}


def _undefined(why: str) -> dict[str, Any]:
    nothing = {"value": None, "low": None, "high": None, "why": why}
    spread = {"sites": 0, "df": None, "q": None, "p": None, "i2": nothing, "tau2": nothing, "why": why}
    return {"sites": {}, **dict.fromkeys(("auroc", "random", "prediction"), nothing), "heterogeneity": spread}


def _with_value(estimate: Estimate) -> dict[str, Any]:
    """Return a figure for JSON that may have a value where its interval alone is undefined."""
    known = {"value": None if math.isnan(estimate.value) else estimate.value}
    return tables.document(estimate) | known


def _warnings(sites: Sequence[Site]) -> Iterator[str]:
    """Yield what makes the pooled figures mean something else than they seem to."""
    by_model: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        by_model.setdefault(tuple(sorted(site.metrics.subject.networks or ())), []).append(site.name)
    unknown = by_model.pop((), [])
    if len(by_model) > 1:
        listed = "; ".join(f"{', '.join(names)}: {weights[0][:8]}" for weights, names in by_model.items())
        yield f"the sites judged different models (by their weights, {listed}): the pooled figures are of none of them"
    if unknown:
        yield f"which model was judged is not known of {', '.join(unknown)}: that it was the same one is for you to see"
    if flattered := [site.name for site in sites if site.metrics.selection.used]:
        listed = ", ".join(flattered)
        yield f"scans had a part in making the model at {listed}: these figures flatter it, and the pooled ones do too"
    yield from alike(sites)


def _notes(sites: Sequence[Site], findings: Mapping[str, Document]) -> Iterator[str]:
    """Yield what else a reader of the figures has to know."""
    plural, first = Unit(sites[0].metrics.unit.by).plural, sites[0].metrics
    for name in findings:
        if lacking := [site.name for site in sites if name not in site.metrics.findings]:
            yield f"{name} is not at {', '.join(lacking)}"
        yield from _left_out(name, findings[name]["sites"])
    if _findings_differ(sites):
        yield f"no mean is pooled: {OTHER_FINDINGS}"
    if unsure := [site.name for site in sites if site.metrics.selection.used is None]:
        yield f"whether scans had a part in making the model is not known of {', '.join(unsure)}"
    if narrow := [site.name for site in sites if _may_be_narrow(site.metrics)]:
        yield f"intervals take {plural} as independent, which may make them too narrow, at {', '.join(narrow)}"
    if any(site.metrics.unit.reduce != first.unit.reduce for site in sites):
        yield f"the sites do not reduce the scores of scans to those of {plural} in the same way"
    if any(site.metrics.views != first.views for site in sites):
        yield f"views of a scan: {', '.join(f'{site.name} {site.metrics.views}' for site in sites)}"
    few = [
        f"{name} at {site} {least}"
        for name, merged in findings.items()
        for site, each in merged["sites"].items()
        if each["weight"] is not None and (least := min(each["positives"], each["negatives"])) < FEW
    ]
    if few:
        yield f"with fewer than {FEW} of a class a site's interval is rough, and so is its weight: {', '.join(few)}"
    if any(merged["heterogeneity"]["sites"] == 2 for merged in findings.values()):
        yield "two sites hardly tell how far hospitals differ: random effects are very wide, and none is predicted"
    p_values = {name: merged["heterogeneity"]["p"] for name, merged in findings.items()}
    if differing := [name for name, p in p_values.items() if p is not None and p < DIFFERING]:
        yield (
            f"the sites differ by more than chance (p < {DIFFERING:g}), so that the fixed effect speaks of these alone:"
            f" {', '.join(differing)}"
        )
    yield "patients who are at two of the sites count twice, which cannot be seen here"


def _may_be_narrow(metrics: Metrics) -> bool:
    """Return whether scans may be of one patient, and were not drawn together."""
    repeat = metrics.patients is None or metrics.patients < metrics.units
    return repeat and metrics.interval.cluster is None


def _left_out(name: str, sites: Mapping[str, Any]) -> Iterator[str]:
    for site, each in sites.items():
        if each["weight"] is not None:
            continue
        figure = each["auroc"]
        if figure["value"] is None:
            yield f"{name} has no AUROC at {site} ({figure['why']})"
        else:
            direction = "low" if figure["value"] else "high"
            yield (
                f"{name} at {site} is exactly {figure['value']:g} ({figure['low']:.3f}–{figure['high']:.3f}), which has"
                f" no place on the logit scale: it is left out, and the pooled figure may be too {direction}"
            )


def rows(document: Document) -> Rows:
    """Return a row for each of `parts` with `POOLED_COLUMNS`."""
    return [
        [name, str(each["heterogeneity"]["sites"]), *map(tables.cell, (each["auroc"], each["random"])), _range(each)]
        for name, each in parts(document)
    ]


def spread_rows(document: Document) -> Rows:
    """Return a row for each of `parts` with `SPREAD_COLUMNS`."""
    return [
        [
            name,
            f"n/a ({found['why']})" if found["why"] else f"{found['q']:.2f} ({found['df']})",
            tables.p_value(found["p"]),
            percent(found["i2"]),
            number(found["tau2"]),
        ]
        for name, found in ((name, each["heterogeneity"]) for name, each in parts(document))
    ]


def site_rows(document: Document) -> Rows:
    """Return a row for each of `parts` and site with `SITE_COLUMNS`."""
    return [
        [
            *(name, site, str(each.get("positives", "")), str(each.get("negatives", ""))),
            *(part(tables.read_back(each["auroc"])) for part in (tables.figure, tables.interval)),
            "none" if each["weight"] is None else f"{100 * each['weight']:.1f} %",
        ]
        for name, merged in parts(document)
        for site, each in merged["sites"].items()
    ]


def parts(document: Document) -> list[tuple[str, Document]]:
    """Return what was pooled by name: the findings, and of several their mean, where there is one."""
    findings = list(document["findings"].items())
    return [*findings, ("mean", document["mean"])] if len(findings) > 1 and document["mean"]["sites"] else findings


def percent(figure: Document) -> str:
    """Return I² with its interval, or why one of them is undefined.

    >>> percent({"value": 0.42, "low": 0.0, "high": 0.975, "why": None})
    '42 % (0–98 %)'
    """
    return _shown(figure, lambda share: f"{100 * share:.0f}", " %")


def number(figure: Document) -> str:
    """Return τ² with its interval, or why one of them is undefined.

    >>> number({"value": 0.0, "low": None, "high": None, "why": "one site only"})
    '0 (n/a: one site only)'
    """
    return _shown(figure, lambda value: f"{value:.3g}", "")


def _shown(figure: Document, text: Any, unit: str) -> str:
    if figure["value"] is None:
        return f"n/a ({figure['why']})"
    ends = f"n/a: {figure['why']}" if figure["low"] is None else f"{text(figure['low'])}–{text(figure['high'])}{unit}"
    return f"{text(figure['value'])}{unit} ({ends})"


def _range(merged: Document) -> str:
    figure = merged["prediction"]
    return f"n/a ({figure['why']})" if figure["why"] else tables.interval(tables.read_back(figure))
