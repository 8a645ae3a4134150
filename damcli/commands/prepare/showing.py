"""What is said of a dataset: before it is made, as `--dry-run` plans it, and when it is there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from damcli import console

if TYPE_CHECKING:
    from damcli.data.sources import Source
    from damcli.data.store import Counts, DatasetInfo

HEADER = ("finding", "split", "positive", "negative", "uncertain", "missing")


def say(source: Source, output: str, size: int, channels: int, fit: str) -> None:
    """Say what was found, and what is made of it."""
    for note in source.notes:
        console.note(note)
    rules = ", ".join(f"{finding} {policy.uncertain}" for finding, policy in source.policies.items())
    blanks = ", ".join(sorted({policy.blank for policy in source.policies.values()}))
    console.note(f"uncertain labels: {rules}; blank labels: {blanks}")
    console.note(f"writing {output}: {size} x {size} pixels, {'grey' if channels == 1 else 'colour'}, fit {fit}")


def plan(source: Source) -> None:
    """Show what would be made."""
    from damcli.data import audit
    from damcli.data.writer import commonest, counts

    found = counts(source.scans, source)
    concerns = audit.of_table(source.scans, source.findings)
    if console.state.json:
        console.emit_json(
            {
                "dry_run": True,
                "scans": len(source.scans),
                "refused": len(source.refused),
                "notes": source.notes,
                "counts": {split: {f: c.model_dump() for f, c in row.items()} for split, row in found.items()},
                "audit": [concern.model_dump(mode="json") for concern in concerns],
            }
        )
    console.table(f"{len(source.scans)} scans", HEADER, _rows(found))
    for concern in concerns:
        console.warn(concern.text)
    if source.refused:
        total = len(source.refused) + len(source.scans)
        common = commonest(reason for _, reason in source.refused)
        console.warn(f"{len(source.refused)} of {total} scans would be refused: {common}")
    console.note("nothing was written (--dry-run)")


def made(info: DatasetInfo, reasons: Iterable[str], output: str) -> None:
    """Show a finished dataset, and why scans of it were refused; `output` is where it lies."""
    from damcli.data.writer import commonest

    kept = ", ".join(f"{scans} {split}" for split, scans in info.splits.items())
    if console.state.json:
        console.emit_json({"dataset": output, **info.model_dump(mode="json")})
    console.table(f"{sum(info.splits.values())} scans: {kept}", HEADER, _rows(info.counts))
    for concern in info.audit:
        where = f" ({' and '.join(concern.scans)})" if concern.scans else ""
        console.warn(f"{concern.text}{where}")
    console.result(output)
    if info.rejected:
        total = info.rejected + sum(info.splits.values())
        listed = f"{commonest(reasons)}; all are in {output.rstrip('/')}/rejected.csv"
        console.warn(f"{info.rejected} of {total} scans were refused: {listed}")
    console.next_step(f"damcli train {output}" if "train" in info.splits else f"damcli evaluate RUN {output}")


def _rows(counts: dict[str, dict[str, Counts]]) -> list[list[str]]:
    """Return the label counts as rows of a table: finding, split, positive, negative, uncertain, missing."""
    findings = list(next(iter(counts.values())))
    return [
        [finding, split, *(str(number) for number in counts[split][finding].model_dump().values())]
        for finding in findings
        for split in counts
    ]
