"""Figures of merit as rows of text. A figure never stands without its interval, or the reason why it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from damcli.metrics import Estimate

AUROC_COLUMNS = ["finding", "n+", "n−", "AUROC", "95 % interval"]
FURTHER_COLUMNS = ["finding", "average precision", "partial AUROC, specificity ≥ 0.9", "sensitivity at specificity 0.9"]


def auroc_row(name: str, positives: int, negatives: int, estimate: Estimate) -> list[str]:
    """Return the row of a finding for a table with `AUROC_COLUMNS`.

    >>> auroc_row("Edema", 42, 160, Estimate(0.9124, 0.8843, 0.9401))
    ['Edema', '42', '160', '0.912', '0.884–0.940']
    >>> auroc_row("Fracture", 0, 202, Estimate(float("nan"), float("nan"), float("nan"), "no positives"))
    ['Fracture', '0', '202', 'n/a (no positives)', '']
    """
    return [name, str(positives), str(negatives), figure(estimate), interval(estimate)]


def mean_row(name: str, estimate: Estimate) -> list[str]:
    """Return the row of a mean over findings, which has no class sizes of its own.

    >>> mean_row("mean of 5", Estimate(0.8, 0.75, 0.85))
    ['mean of 5', '', '', '0.800', '0.750–0.850']
    """
    return [name, "", "", figure(estimate), interval(estimate)]


def figure(estimate: Estimate) -> str:
    """Return the figure with three decimals, or "n/a" with the reason."""
    return f"n/a ({estimate.why})" if estimate.why else f"{estimate.value:.3f}"


def interval(estimate: Estimate) -> str:
    """Return the interval with three decimals; empty where the figure is undefined."""
    return "" if estimate.why else f"{estimate.low:.3f}–{estimate.high:.3f}"


def in_words(estimate: Estimate) -> str:
    """Return figure and interval in one piece, for legends and sentences.

    >>> in_words(Estimate(0.9124, 0.8843, 0.9401))
    '0.912 (0.884–0.940)'
    """
    return figure(estimate) if estimate.why else f"{figure(estimate)} ({interval(estimate)})"


def document(estimate: Estimate) -> dict[str, float | str | None]:
    """Return the figure for JSON: value, low and high, null with the reason under `why` where it is undefined.

    >>> document(Estimate(0.8, 0.75, 0.85))
    {'value': 0.8, 'low': 0.75, 'high': 0.85, 'why': None}
    """
    if estimate.why:
        return {"value": None, "low": None, "high": None, "why": estimate.why}
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "why": None}


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, the smallest ones as a bound.

    >>> p_value(0.04), p_value(1e-9), p_value(None)
    ('0.040', '<0.001', 'n/a')
    """
    return "n/a" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def read_back(figure: Mapping[str, Any]) -> Estimate:
    """Return a figure from what `document` made of it.

    >>> in_words(read_back({"value": 0.8, "low": 0.75, "high": 0.85, "why": None}))
    '0.800 (0.750–0.850)'
    """
    numbers = (math.nan if figure[key] is None else figure[key] for key in ("value", "low", "high"))
    return Estimate(*numbers, figure["why"] or "")


def cell(figure: Mapping[str, Any]) -> str:
    """Return a figure of `metrics.json` in one piece, or why it is undefined.

    >>> cell({"value": None, "low": None, "high": None, "why": "no positives"})
    'n/a (no positives)'
    """
    return in_words(read_back(figure))


def signed(figure: Mapping[str, Any]) -> str:
    """Return a difference of `metrics.json` with its sign, or why it or its interval is undefined.

    >>> signed({"value": 0.05, "low": -0.01, "high": 0.11, "why": None})
    '+0.050 (−0.010 to +0.110)'
    """
    if figure["value"] is None:
        return f"n/a ({figure['why']})"
    value, low, high = (math.nan if figure[key] is None else figure[key] for key in ("value", "low", "high"))
    interval = f"n/a: {figure['why']}" if math.isnan(low) else f"{difference(low)} to {difference(high)}"
    return f"{difference(value)} ({interval})"


def three(value: float) -> str:
    """Return a number with three decimals, and a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def difference(value: float) -> str:
    """Return a difference with three decimals and its sign.

    >>> difference(0.0214), difference(-0.5), difference(-1e-9)
    ('+0.021', '−0.500', '0.000')
    """
    return "0.000" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")
