"""An evaluation as one page, `report.html`: everything in the file, nothing from the network, no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from damcli import files
from damcli.errors import DataError
from damcli.report import caveats, drawings, plots, svg, tables
from damcli.report.drawings import Curves
from damcli.report.evaluation import Unit

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# The colours of `plots.COLOURS` on a dark ground; the last, black, is the colour of text.
DARK_COLOURS = ("#4BA3E3", "#F0834A", "#2DBE93", "#DE9CC0", "#8CCBF2", "#EDB13C", "#E8EBEF")
COLOURS = list(zip(plots.COLOURS[:-1], DARK_COLOURS[:-1], strict=True))
FEW = 6  # findings up to which long tables are unfolded


@dataclass(frozen=True)
class GalleryItem:
    """A scan shown on the page: `right` or `wrong` as called, `truth` 1 or 0; PNG bytes without and with heat map."""

    finding: str
    kind: Literal["right", "wrong"]
    truth: int
    score: float
    scan: bytes
    heat: bytes | None = None


@dataclass(frozen=True)
class Extras:
    """What else the page shows. `course` is a run's `metrics.jsonl`; a concern has a `kind`, a `text` and a `leak`.

    `concerns` None means that no audit is known of, an empty list that one found nothing. `provenance` holds what is
    needed to make the figures again, in the order given.
    """

    course: Path | None = None
    concerns: Sequence[Any] | None = None
    remarks: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    gallery: Sequence[GalleryItem] = ()


def write(path: Path, document: Mapping[str, Any], curves: Mapping[str, Curves], extras: Extras | None = None) -> None:
    """Write the page of an evaluation to `path`, whole or not at all.

    `document` is the content of `metrics.json` (schema 2), `curves` what is drawn of each of its findings. The same
    input gives the same file. It holds no ids of scans, studies or patients, unless a text given here does.
    """
    files.write_text(path, text(document, curves, extras or Extras()))


def text(document: Mapping[str, Any], curves: Mapping[str, Curves], extras: Extras) -> str:
    """Return the page that `write` writes."""
    findings, subgroups = document["findings"], document["subgroups"]
    compared = (document["comparison"] or {}).get("findings", {})
    context = {
        "document": document,
        "title": _title(document),
        "notes": _notes(document),
        "findings": findings,
        "curves": curves,
        "extras": extras,
        "draw": Drawer(document, curves),
        "level": f"{100 * document['interval']['level']:g} %",
        "units": Unit(document["unit"]["by"]).plural,
        "scale": drawings.Scale.of([*(each["auroc"] for each in findings.values()), document["mean"]["auroc"]]),
        "difference_scale": drawings.Scale.of([each["difference"] for each in compared.values()], signed=True),
        "group_scale": drawings.Scale.of(
            each["auroc"] for part in subgroups for group in part["groups"] for each in group["findings"].values()
        ),
        "reliable": [name for name in findings if curves[name].reliability],
        "course": _course(extras.course),
        "provenance": _provenance(document, extras.provenance),
        "gallery": _gallery(extras.gallery),
        "caveats": caveats.of(document, _leaks(extras.concerns), bool(extras.gallery)),
        "few": len(findings) <= FEW,
        "colours": COLOURS,
    }
    return environment().get_template("page.html").render(context)


def environment() -> Environment:
    """Return what renders a page: nothing is taken for markup, and nothing that is missing stays silent."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "three": tables.three,
        "signed": tables.difference,
        "whole": lambda number: f"{number:,}",
        "brief": lambda number: f"{number:.4g}",
        "percent": lambda share: f"{100 * share:.3g} %",
        "p": tables.p_value,
        "data": lambda picture: f"data:image/png;base64,{base64.b64encode(picture).decode()}",
    }
    return environment


class Drawer:
    """The page's drawings by finding, each under a name of its own."""

    def __init__(self, document: Mapping[str, Any], curves: Mapping[str, Curves]) -> None:
        self._document, self._curves = document, curves
        self._drawn = 0

    def points(self, finding: str) -> dict[str, drawings.Point]:
        """Return the operating points as places beside the ROC curve."""
        return {
            name: (1 - each["specificity"]["value"], each["sensitivity"]["value"])
            for name, each in (self._document["findings"][finding]["operating"] or {}).items()
            if each["specificity"]["value"] is not None and each["sensitivity"]["value"] is not None
        }

    def readers(self, finding: str) -> dict[str, drawings.Point]:
        """Return the readers as places beside the ROC curve."""
        found = (self._document["readers"] or {}).get("findings", {}).get(finding, {})
        places = {
            name: (each["false_positive_rate"]["value"], each["sensitivity"]["value"]) for name, each in found.items()
        }
        return {name: place for name, place in places.items() if None not in place}

    def roc(self, finding: str) -> Markup:
        """Return the ROC curve of a finding."""
        points, readers = self.points(finding), self.readers(finding)
        described = f"AUROC {tables.cell(self._document['findings'][finding]['auroc'])}."
        described += "".join(
            f" {name}: 1 − specificity {across:.3f}, sensitivity {up:.3f}."
            for name, (across, up) in (points | readers).items()
        )
        title = f"ROC curve of {finding}"
        curves = self._curves[finding]
        return self._safe(drawings.roc(curves, title, described, self._name(), list(points.values()), readers.values()))

    def precision_recall(self, finding: str) -> Markup:
        """Return the precision–recall curve of a finding."""
        found = self._document["findings"][finding]
        prevalence = found["positives"] / (found["positives"] + found["negatives"])
        described = f"Average precision {tables.cell(found['average_precision'])}; chance is {prevalence:.3f}."
        title = f"Precision–recall curve of {finding}"
        return self._safe(drawings.precision_recall(self._curves[finding], prevalence, title, described, self._name()))

    def histogram(self, finding: str) -> Markup:
        """Return how the classes of a finding are spread over the scores."""
        bins = self._curves[finding].histogram
        described = f"{bins.negatives.sum():,} negatives and {bins.positives.sum():,} positives, each of the area 1."
        return self._safe(
            drawings.histogram(self._curves[finding], f"Scores of {finding} by class", described, self._name())
        )

    def reliability(self, finding: str) -> Markup:
        """Return the reliability diagram of a finding."""
        bins = self._curves[finding].reliability
        described = f"{' and '.join(bins)}; the numbers are in the table below."
        return self._safe(drawings.reliability(bins, f"Reliability of {finding}", described, self._name()))

    def bins(self, finding: str) -> Iterable[tuple[float, float, int, int]]:
        """Return the bins of a finding's histogram: from, to, negatives, positives."""
        edges, positives, negatives = (part.tolist() for part in self._curves[finding].histogram)
        return zip(edges[:-1], edges[1:], negatives, positives, strict=True)

    def rules(self) -> dict[str, str]:
        """Return the rule of every operating point."""
        found = (each["operating"] or {} for each in self._document["findings"].values())
        return {name: point["rule"] for points in found for name, point in points.items()}

    def whose(self, finding: str, point: Mapping[str, Any]) -> str:
        """Say of an operating point's prevalence whether it is that of the scans or one that was given."""
        here = self._document["findings"][finding]["prevalence"]["value"]
        return ", that of these scans" if here is not None and abs(point["prevalence"] - here) < 1e-9 else ", as given"

    def interval(self, scale: drawings.Scale, figure: Mapping[str, Any], title: str) -> Markup:
        """Return a figure's interval on the axis of its column."""
        return self._safe(scale.interval(figure, title, self._name()))

    def ruler(self, scale: drawings.Scale) -> Markup:
        """Return the axis of a column of intervals."""
        return self._safe(scale.ruler())

    def course(self, course: plots.Course) -> list[drawings.Panel]:
        """Return the drawings of a run's course."""
        return [panel._replace(drawing=self._safe(panel.drawing)) for panel in drawings.training(course, self._name())]

    def key(self, shape: str, number: int) -> Markup:
        """Return the sign of a line or mark, for a legend beside its name."""
        sign = svg.mark(12, 6, shape, number) if shape in svg.SHAPES else svg.sample(shape, number)
        return self._safe(f'<svg aria-hidden="true" viewBox="0 0 24 12" width="24" height="12">{sign}</svg>')

    def point_number(self, number: int) -> int:
        """Return the line number of an operating point."""
        return drawings.point_number(number)

    def _name(self) -> str:
        self._drawn += 1
        return f"drawing-{self._drawn}"

    @staticmethod
    def _safe(drawing: str) -> Markup:
        from markupsafe import Markup

        # `svg` and `drawings` have escaped what they were given.
        return Markup(drawing)


def _course(metrics_jsonl: Path | None) -> plots.Course | str | None:
    """Return a run's course, or in words why there is none."""
    if metrics_jsonl is None:
        return None
    try:
        return plots.read_course(metrics_jsonl)
    except DataError as error:
        return error.what


def _notes(document: Mapping[str, Any]) -> list[str]:
    """Return the notes that stand nowhere else on the page."""
    parts = [part for part in (document["comparison"], document["readers"], *document["subgroups"]) if part]
    elsewhere = {note for part in parts for note in part["notes"]}
    elsewhere |= {f"selection: {document['selection']['note']}", f"intervals: {document['interval']['others']}"}
    return [note for note in document["notes"] if note not in elsewhere]


def _title(document: Mapping[str, Any]) -> str:
    subject, truth = (PurePath(document[key]["path"]).name for key in ("subject", "truth"))
    split = document["truth"]["split"]
    return f"{subject} on {truth}" + (f", {split}" if split else "")


def _provenance(document: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return what is needed to make the figures again: what the document itself says comes first."""
    interval, truth = document["interval"], document["truth"]
    known = {
        "damcli": document["damcli"],
        "written": document["created"],
        "labels’ fingerprint": truth["fingerprint"] or "none: a table of labels",
        "bootstrap": f"{interval['draws']:,} draws, each a {interval['cluster'] or document['unit']['by']} at a time,"
        f" seed {interval['seed']}",
    }
    return known | dict(given)


def _leaks(concerns: Iterable[Any] | None) -> bool:
    return any(each["leak"] if isinstance(each, Mapping) else each.leak for each in concerns or ())


def _gallery(items: Iterable[GalleryItem]) -> dict[str, dict[str, list[GalleryItem]]]:
    """Return the scans by finding and kind, those called wrong first: there is more to learn from them."""
    found: dict[str, dict[str, list[GalleryItem]]] = {}
    for item in items:
        found.setdefault(item.finding, {"wrong": [], "right": []})[item.kind].append(item)
    return found
