"""Conditions on the figures of `metrics.json`."""

from __future__ import annotations

from typing import Any

import pytest

from damcli.errors import UsageError
from damcli.report import gates
from damcli.report.gates import Gate

E = {"value": 0.9, "low": 0.8, "high": 0.95, "why": None}
NOTHING = {"value": None, "low": None, "high": None, "why": "no positives"}
DOCUMENT: dict[str, Any] = {
    "mean": {"findings": 2, "auroc": {**E, "value": 0.85}},
    "findings": {
        "Edema": {"positives": 7, "auroc": E, "operating": {"sensitivity-0.9": {"threshold": 0.3, "specificity": E}}},
        "A.B auroc": {"auroc": NOTHING, "operating": None},
        "A": {"auroc": E},
    },
    "readers": {"nrbc": {**E, "value": 2.5}},
}


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("auroc>=0.85", 0.85, True),
        ("auroc>0.85", 0.85, False),
        ("auroc.low >= 0.8", 0.8, True),
        (" Edema.auroc.low>=8.1e-1 ", 0.8, False),
        ("Edema.auroc.high<=.95", 0.95, True),
        ("Edema.auroc<0.9", 0.9, False),
        ("Edema.positives>=5", 7, True),
        ("Edema.operating.sensitivity-0.9.specificity.low>=0.8", 0.8, True),
        ("Edema.operating.sensitivity-0.9.threshold<0.5", 0.3, True),
        ("A.auroc>=0.5", 0.9, True),
        ("A.B auroc.auroc>=0", None, False),
        ("A.B auroc.auroc.low>=-1", None, False),
        ("nrbc>=2", 2.5, True),
    ],
)
def test_a_condition_finds_its_figure(text: str, value: float | None, met: bool) -> None:
    result = Gate.parse(text).result(DOCUMENT)
    assert (result["value"], result["met"]) == (value, met)
    assert (result["why"] == "no positives") == (value is None)
    assert bool(gates.failed([result])) != met


@pytest.mark.parametrize("text", ["", "auroc", "auroc=0.8", "auroc>=", ">=0.8", "auroc>=0.8.1", "auroc>=nan", "a>=b"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="this is no condition"):
        Gate.parse(text)


@pytest.mark.parametrize(
    "text", ["Edma.auroc>=0.8", "Edema>=0.8", "Edema.auroc.middle>0", "A.B auroc.operating.youden>0", "findings.x>1"]
)
def test_a_figure_that_is_not_there_is_refused_and_never_counts_as_met(text: str) -> None:
    with pytest.raises(UsageError, match="there is no figure"):
        Gate.parse(text).value(DOCUMENT)
    assert not Gate.parse(text).result(DOCUMENT)["met"]


def test_a_number_that_has_no_dots_is_a_condition_on_the_mean() -> None:
    assert Gate.parse("findings>=2").result(DOCUMENT)["met"]
