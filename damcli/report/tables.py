"""Figures of merit as rows of text. A figure never stands without its interval, or the reason why it has none."""

from __future__ import annotations

from damcli.metrics import Estimate

AUROC_COLUMNS = ["finding", "n+", "n−", "AUROC", "95 % interval"]


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
