"""Gates: conditions like `Edema.auroc.low>=0.8` on the figures of `metrics.json`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from damcli.errors import UsageError

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
CONDITION = re.compile(rf"\s*(?P<path>\S.*?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>{NUMBER})\s*")
EXAMPLES = "auroc>=0.85, Edema.auroc.low>=0.8, Edema.operating.youden.sensitivity.low>=0.7 or nrbc>=2"


@dataclass(frozen=True)
class Gate:
    """A condition on one figure: `path` leads to it in `metrics.json`, from a finding on or else from the mean."""

    text: str
    path: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a condition. Raises `UsageError` for one that is none.

        >>> Gate.parse("Edema.auroc.low >= 0.8").path
        'Edema.auroc.low'
        """
        found = CONDITION.fullmatch(text)
        if not found:
            raise UsageError(f"this is no condition: {text!r}", where="--require", fix=f"like {EXAMPLES}")
        return cls(text.strip(), found["path"], found["sign"], float(found["bound"]))

    def value(self, document: Mapping[str, Any]) -> tuple[float | None, str]:
        """Return the figure, or None and why it is undefined. Raises `UsageError` where there is no such figure.

        >>> figures = {"findings": {"Edema": {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95, "why": None}}}}
        >>> Gate.parse("Edema.auroc>=0.8").value(figures), Gate.parse("Edema.auroc.low>=0.8").value(figures)
        ((0.9, ''), (0.8, ''))
        """
        readers = document.get("readers") or {}
        start = {**document.get("mean", {}), "nrbc": readers.get("nrbc"), **document["findings"]}
        here, left = start, self.path
        while left:
            if not isinstance(here, Mapping):
                raise self._unknown(left, {})
            # Names of findings and of operating points may hold a dot: the longest one that fits is meant.
            key = max((k for k in here if left == k or left.startswith(f"{k}.")), key=len, default=None)
            if key is None or (here[key] is None and "why" not in here):
                raise self._unknown(left, here)
            why, here, left = here.get("why"), here[key], left[len(key) + 1 :]
            if here is None:
                return None, str(why)
        if isinstance(here, Mapping) and "value" in here:
            return here["value"], here["why"] or ""
        if isinstance(here, (int, float)):
            return float(here), ""
        raise self._unknown("", here if isinstance(here, Mapping) else {})

    def result(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `metrics.json` says of the gate; a figure that is undefined or not there does not meet it."""
        try:
            value, why = self.value(document)
        except UsageError as unknown:
            value, why = None, unknown.what
        met = value is not None and COMPARISONS[self.sign](value, self.bound)
        return {"require": self.text, "value": value, "why": why or None, "met": bool(met)}

    def _unknown(self, left: str, here: Mapping[str, Any]) -> UsageError:
        known = ", ".join(str(key) for key, value in here.items() if value is not None)
        return UsageError(
            f"there is no figure {self.path!r}" + (f": nothing here is called {left!r}" if left else ": it goes on"),
            where="--require",
            fix=f"go on with one of: {known}" if known else f"like {EXAMPLES}",
        )


def failed(results: list[dict[str, Any]]) -> list[str]:
    """Return, in words, the gates that are not met.

    >>> failed([{"require": "auroc>=0.9", "value": 0.84321, "why": None, "met": False}])
    ['auroc>=0.9 (it is 0.843)']
    """
    return [
        f"{each['require']} (it is {'n/a, ' + each['why'] if each['value'] is None else format(each['value'], '.3f')})"
        for each in results
        if not each["met"]
    ]
