"""What was merged as one page, `merged.html`: a forest plot for each finding, everything in the file, no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import files
from damcli.report import drawings, merging, page, svg
from damcli.report.caveats import ALWAYS, Caveat
from damcli.report.evaluation import Unit

if TYPE_CHECKING:
    from markupsafe import Markup

Document = Mapping[str, Any]
CAVEATS = (
    Caveat(
        "That it will be so at the next hospital",
        "The fixed effect is a mean of these sites, and its interval is of these. That of random effects is for the "
        "mean of hospitals like them; the prediction is for one more. None covers a hospital of another kind, and "
        "sites that chose to take part are no sample of those that did not.",
    ),
    Caveat(
        "That sites are alike because p is large or I² is small",
        "With few sites Q finds only large differences, and the interval of I² says how little is known. I² is a "
        "share: it grows with the sizes of the sites while they stay as different as they are.",
    ),
    Caveat(
        "That every site counts by its size",
        "A site's weight comes from its own interval, which on the logit scale is the wider the higher its AUROC. "
        "Where sites differ, the fixed effect therefore lies a little below their mean; and with some ten positives "
        "at each site its interval holds the truth less often than it says.",
    ),
    Caveat(
        "That no patient counts twice",
        "Files that hold no ids cannot tell whether a patient was at two sites. The same scans under other names, or "
        "a part of them, go unseen.",
    ),
)


class Forest(drawings.Scale):
    """The common axis of sites and of what was pooled of them."""

    WIDTH = 260

    def site(self, merged: Document, each: Document, title: str, name: str) -> str:
        """Draw a site's AUROC as a square as large as its weight, with its interval and, faint, the fixed effect."""
        value, low, high = (each["auroc"][key] for key in ("value", "low", "high"))
        if value is None:
            return ""
        weight = each["weight"] or 0.0
        half = 2 + 6 * math.sqrt(weight)
        corner, side = f"{self._at(value) - half:.1f} {11 - half:.1f}", f"{2 * half:.1f}"
        parts = [
            self._behind(merged),
            f'<path class="whisker c0" d="M{self._at(low):.1f} 11H{self._at(high):.1f}"/>',
            f'<path class="dot c0" d="M{corner}h{side}v{side}h-{side}z"/>',
        ]
        text = f"{value:.3f}, {low:.3f} to {high:.3f}; weight {100 * weight:.1f} %"
        return svg.document(self.WIDTH, 22, "".join(parts), title, text, name)

    def pooled(self, merged: Document, key: str, title: str, name: str) -> str:
        """Draw what was pooled as a diamond as wide as its interval; with random effects the prediction, thin."""
        value, low, high = (merged[key][end] for end in ("value", "low", "high"))
        if value is None:
            return ""
        parts, text, predicted = [self._behind(merged)], f"{value:.3f}, {low:.3f} to {high:.3f}", merged["prediction"]
        if key == "random" and predicted["value"] is not None:
            ends = [self._at(predicted[end]) for end in ("low", "high")]
            parts.append(
                f'<path class="thin c1" d="M{ends[0]:.1f} 11H{ends[1]:.1f}M{ends[0]:.1f} 7v8M{ends[1]:.1f} 7v8"/>'
            )
            text += f"; another hospital {predicted['low']:.3f} to {predicted['high']:.3f}"
        left, middle, right = (f"{self._at(each):.1f}" for each in (low, value, high))
        parts.append(
            f'<path class="diamond c{int(key == "random")}" d="M{left} 11L{middle} 4L{right} 11L{middle} 18z"/>'
        )
        return svg.document(self.WIDTH, 22, "".join(parts), title, text, name)

    def _at(self, value: float) -> float:
        # What lies beyond the axis ends at its end.
        return super()._at(min(max(value, self.low), self.high))

    def _behind(self, merged: Document) -> str:
        chance = f'<path class="reference" d="M{self._at(self.reference):.1f} 0v22"/>'
        pooled = merged["auroc"]["value"]
        return chance if pooled is None else f'{chance}<path class="grid" d="M{self._at(pooled):.1f} 0v22"/>'


class Drawer:
    """The page's drawings, each under a name of its own."""

    def __init__(self, document: Document) -> None:
        # Random effects of few sites may reach from 0 to 1; the axis is that of the sites.
        scale = drawings.Scale.of(figure for _, each in merging.parts(document) for figure in _figures(each))
        self._scale = Forest(scale.low, scale.high, scale.reference)
        self._drawn = 0

    def ruler(self) -> Markup:
        """Return the axis of the column."""
        return _safe(self._scale.ruler())

    def site(self, merged: Document, each: Document, title: str) -> Markup:
        """Return a site's row of a forest plot."""
        return _safe(self._scale.site(merged, each, title, self._name()))

    def pooled(self, merged: Document, key: str, title: str) -> Markup:
        """Return a row of what was pooled: `auroc` or `random`."""
        return _safe(self._scale.pooled(merged, key, title, self._name()))

    def _name(self) -> str:
        self._drawn += 1
        return f"drawing-{self._drawn}"


def write(path: Path, document: Document) -> None:
    """Write the page of `document`, the content of `merged.json`, to `path`, whole or not at all."""
    files.write_text(path, text(document))


def text(document: Document) -> str:
    """Return the page that `write` writes."""
    environment = page.environment()
    environment.filters |= {"share": merging.percent, "number": merging.number}
    context = {
        "document": document,
        "title": f"{len(document['sites'])} sites: {', '.join(document['sites'])}",
        "parts": merging.parts(document),
        "draw": Drawer(document),
        "level": f"{100 * document['interval']['level']:g} %",
        "units": Unit(document["unit"]["by"]).plural,
        "caveats": [*CAVEATS, *ALWAYS[1:]],
        "colours": page.COLOURS,
    }
    return environment.get_template("merged.html").render(context)


def _figures(merged: Document) -> Iterator[Document]:
    yield from (each["auroc"] for each in merged["sites"].values())
    yield merged["auroc"]


def _safe(drawing: str) -> Markup:
    from markupsafe import Markup

    # `svg` has escaped what it was given.
    return Markup(drawing)
