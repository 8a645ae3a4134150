"""What goes wrong in training, in words: doubts after an epoch, and a step whose numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from damcli import files
from damcli.deepauc import AUCMarginLoss
from damcli.deepauc.losses import Loss
from damcli.training.checkpoint import NotFinite, Progress
from damcli.training.observation import Observation
from damcli.training.plan import StagePlan

REPORT = "nonfinite.json"
# Of a stage's steps: a scale of fp16 that is found once costs a few.
MANY_SKIPPED = 0.1


def doubts(progress: Progress, planned: StagePlan, loss: Loss) -> Iterator[str]:
    """Yield what went wrong for a finding in the epoch whose steps are done, and what to do about it."""
    findings = planned.findings
    where = f"stage {progress.stage}, epoch {progress.epoch + 1}"
    unseen = [name for name, count in zip(findings, progress.seen, strict=True) if not count]
    if unseen:
        yield f"{where}: no positive of {', '.join(unseen)} was met: a balanced sampler or more scans are needed"
    if progress.skipped > MANY_SKIPPED * progress.steps:
        yield f"{where}: fp16 could not make {progress.skipped} of {progress.steps} steps: take bf16, or 32"
    if not isinstance(loss, AUCMarginLoss):
        return
    pairs = zip(findings, loss.a.tolist(), loss.b.tolist(), strict=True)
    level = [f"{name} (a {a:.3f}, b {b:.3f})" for name, a, b in pairs if a <= b and name not in unseen]
    if level:
        yield (
            f"{where}: a ≤ b for {', '.join(level)}: its positives do not yet score above its negatives; train "
            f"longer, or try another stage{progress.stage}.lr or ab_start"
        )
    last = zip(findings, progress.risen, loss.alpha.tolist(), strict=True)
    flat = [name for name, risen, alpha in last if not (risen or alpha > 0) and name not in unseen]
    if flat and loss.projected and progress.epoch == 0:
        yield (
            f"{where}: α of {', '.join(flat)} sat at 0 from the start: the margin {loss.margin:g} was met all "
            f"along, and AUC-M only drew scores to their class means; raise stage{progress.stage}.margin"
        )


def nonfinite(
    progress: Progress, planned: StagePlan, observed: Observation, scans: Sequence[str], run: Path | None
) -> NotFinite:
    """Return the error of a step that must not be made; its report with the ids of its scans is written into `run`.

    `run` is None on the processes that follow.
    """
    what = "loss" if not math.isfinite(observed.loss) else "gradient's norm"
    value = observed.loss if what == "loss" else observed.gradient_norm
    named = [name for name, bad in zip(planned.findings, observed.broken, strict=True) if bad] or planned.findings
    if run:
        files.write_json(
            run / REPORT,
            {
                "stage": progress.stage,
                "epoch": progress.epoch + 1,
                "step": progress.steps + 1,
                "loss": str(observed.loss),
                "gradient_norm": str(observed.gradient_norm),
                "findings": named,
                "scans": list(scans),
            },
        )
    return NotFinite(
        f"the {what} is {value} at stage {progress.stage}, epoch {progress.epoch + 1}, "
        f"step {progress.step + 1}: {', '.join(named)}",
        where=run / REPORT if run else None,
        fix=f"train again with a lower learning rate: --set stage{progress.stage}.lr=…",
    )
