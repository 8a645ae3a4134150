"""Figures as text: never a number without its interval or the reason why it has none."""

from __future__ import annotations

import math

import pytest

from damcli.metrics import Estimate, components, estimate
from damcli.report import tables


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        ([0, 0, 1, 1], ["0.750", "0.069–0.992"]),
        ([0, 0, 0, 0], ["n/a (no positives)", ""]),
        ([0, 1, 1, 1], ["n/a (only 1 negative)", ""]),
        ([math.nan] * 4, ["n/a (no labelled scans)", ""]),
    ],
)
def test_row_has_figure_and_interval_or_the_reason(targets: list[float], shown: list[str]) -> None:
    part = components(targets, [1.0, 3.0, 2.0, 4.0])
    row = tables.auroc_row("Edema", part.positives, part.negatives, estimate([part]))
    assert row == ["Edema", str(targets.count(1)), str(targets.count(0)), *shown]
    assert len(row) == len(tables.AUROC_COLUMNS) == len(tables.mean_row("mean", estimate([part])))


def test_in_words() -> None:
    assert tables.in_words(Estimate(1.0, 0.9, 1.0)) == "1.000 (0.900–1.000)"
    assert tables.in_words(Estimate(math.nan, math.nan, math.nan, "no positives")) == "n/a (no positives)"
