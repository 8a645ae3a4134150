"""What the tune part decided: how scores become probabilities, and the thresholds that scans are called positive by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from damcli.config import Strict
from damcli.metrics import calibration as _calibration
from damcli.metrics import operating as _operating
from damcli.metrics.calibration import Calibration
from damcli.metrics.operating import Point, Rule

SCHEMA_VERSION = 1
Method = Literal["none", "temperature", "platt", "isotonic"]
Unit = Literal["scan", "study", "patient"]
Floats = NDArray[np.float64]
Reduce = Callable[[Floats], tuple[Floats, Floats]]


class Decisions(Strict):
    """What was decided on the scans kept out of training, by `method` and `rules`; thresholds are of calibrated scores.

    A finding that nothing could be decided for is in no mapping, and `notes` says why.
    """

    schema_version: int = SCHEMA_VERSION
    tune_scans: int = Field(description="how many scans decided")
    by: Unit = Field(default="scan", description="what a threshold calls positive")
    reduce: dict[str, str] = Field(default={}, description="by finding, how scans' scores became one; {} for scans")
    views: int = Field(default=1, description="of a scan, its score being their mean")
    weights_sha256: str | None = Field(default=None, description="of the network that scored; None in a model")
    method: Method = Field(default="none", description="of calibration, as it was asked for")
    rules: tuple[Rule, ...] = Field(default=(), description="of the operating points, as they were asked for")
    prevalence: dict[str, float] = Field(default={}, description="given for the rules that weigh costs; '': all others")
    calibration: dict[str, Calibration] = Field(default={}, description="by finding, of a scan's score")
    points: dict[str, dict[str, Point]] = Field(default={}, description="by name of the rule and finding")
    notes: tuple[str, ...] = Field(default=(), description="what could not be decided, and why")

    def calibrated(self, findings: Sequence[str], scores: NDArray[np.floating]) -> Floats:
        """Return scores (N,K), columns in the order of `findings`, each calibrated where its finding is; float64."""
        return _calibration.calibrated(self.calibration, findings, scores)


def decide(
    findings: Sequence[str],
    targets: NDArray[np.floating],
    scores: NDArray[np.floating],
    rules: Sequence[Rule] = (),
    method: Method = "none",
    *,
    prevalence: Mapping[str, float] | None = None,
    by: Unit = "scan",
    reduce: Mapping[str, str] | None = None,
    units: Reduce | None = None,
    views: int = 1,
    weights_sha256: str | None = None,
) -> Decisions:
    """Calibrate the scores of the tune scans, then choose a threshold of them by every rule.

    `targets` and `scores` are (N,K): 1, 0 or nan, and numbers in [0, 1]. Where a threshold is not one for scans (`by`),
    `units` takes the calibrated scores and returns targets and scores (M,K) of the studies or patients. A finding that
    lacks a class, or whose fit would reverse its ranking, is left out with a note. Raises `ValueError` for what does
    not fit together.

    >>> found = decide(["Edema", "Mass"], np.array([[0, 0], [0, 0], [1, 0]]), np.array([[0], [0.25], [0.75]]) * [1, 1],
    ...     [Rule.parse("youden")])
    >>> found.points["youden"]["Edema"].threshold, "Mass" in found.points["youden"], len(found.notes)
    (0.75, False, 1)
    """
    truth, values = np.asarray(targets, np.float64), np.asarray(scores, np.float64)
    if truth.ndim != 2 or truth.shape != values.shape or truth.shape[1] != len(findings):
        raise ValueError(f"targets and scores must be (N,{len(findings)}); got {truth.shape} and {values.shape}")
    made = Decisions(
        tune_scans=len(truth),
        by=by,
        reduce=dict(reduce or {}),
        views=views,
        weights_sha256=weights_sha256,
        method=method,
        rules=tuple(rules),
        prevalence=dict(prevalence or {}),
    )
    notes: list[str] = []
    fitted: dict[str, Calibration] = {}
    for k, finding in enumerate(findings):
        try:
            if method != "none":
                fitted[finding] = _calibration.fit(truth[:, k], values[:, k], method)
        except ValueError as error:
            notes.append(f"{finding} is not calibrated: {error}")
    made = made.model_copy(update={"calibration": fitted})
    # As a model gives them: a threshold must call the same scans in its float32.
    values = made.calibrated(findings, values).astype(np.float32).astype(np.float64)
    if units is not None:
        truth, values = units(values)
    points: dict[str, dict[str, Point]] = {rule.name: {} for rule in rules}
    for rule in rules:
        for k, finding in enumerate(findings):
            given = made.prevalence.get(finding, made.prevalence.get(""))
            try:
                points[rule.name][finding] = _operating.point(truth[:, k], values[:, k], rule, given)
            except ValueError as error:
                notes.append(f"{finding} has no operating point {rule.name}: {error}")
    return made.model_copy(update={"points": points, "notes": tuple(notes)})
