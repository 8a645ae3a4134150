"""Runs as members of a model: their networks, and what each weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.bundle.build import Member
    from damcli.training.folder import RunInfo


def load_member(run: Path, tta: int | None = None) -> tuple[Member, RunInfo]:
    """Return the best network of a run as a member of a model, with `tta` views of each scan, and the run."""
    from damcli.bundle.build import Member, Mixed
    from damcli.training import checkpoint, metadata, scoring

    network, info = checkpoint.load_network(run)
    provenance = {
        "run": run.resolve().name,
        "recipe": info.facts.recipe_name,
        "loss": info.loss,
        "seed": info.recipe.seed,
        "dataset": info.facts.fingerprint,
        "fold": info.facts.fold,
        "weights_sha256": checkpoint.weights_sha256(run),
        "started_from": info.facts.weights_sha256,
    }
    maps = None if tta is None else scoring.views(info.recipe, tta, run)
    own = metadata.load(run, info.recipe)
    mixed = own and Mixed(own.network, own.encoding, own.weight)
    return Member(network, info.findings, info.contract, provenance, views=maps, metadata=mixed), info


def weights(given: Sequence[str], runs: Sequence[str], findings: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Return what each run weighs, by finding: the numbers of `--weights`, of which each holds one for every run.

    `given` are "2,1" for all findings and "Edema=2,1" for one, which goes first; `runs` the runs' names, `findings`
    those of each. Raises `UsageError` for what cannot be meant.

    >>> weights(["2,1", "Edema=1,0"], ["a", "b"], [["Edema"], ["Edema", "Mass"]])
    [{'Edema': 1.0}, {'Edema': 0.0, 'Mass': 1.0}]
    """
    if given and len(runs) == 1:
        raise UsageError("there is one run, and nothing to weigh it against", where="--weights", fix="leave it out")
    by_finding: dict[str, list[float]] = {}
    for text in given:
        name, _, numbers = text.rpartition("=")
        if name in by_finding:
            raise UsageError(f"weights are given twice for {name or 'all findings'}", where=f"--weights {text}")
        by_finding[name] = _numbers(text, numbers, len(runs))
    everything = by_finding.pop("", None)
    for name, values in by_finding.items():
        lacking = [run for run, has in zip(runs, findings, strict=True) if name not in has]
        if len(lacking) == len(runs):
            known = ", ".join(dict.fromkeys(finding for own in findings for finding in own))
            raise UsageError(f"no run has the finding {name!r}", where="--weights", fix=f"choose from: {known}")
        for run, has, value in zip(runs, findings, values, strict=True):
            if value and name not in has:
                raise UsageError(
                    f"{run} does not have the finding {name!r}, and cannot weigh {value:g} in it",
                    where="--weights",
                    fix="give 0 for this run",
                )
    made = [
        {name: chosen[number] for name in own if (chosen := by_finding.get(name, everything)) is not None}
        for number, own in enumerate(findings)
    ]
    for run, own, has in zip(runs, made, findings, strict=True):
        if len(own) == len(has) and not any(own.values()):
            raise UsageError(f"{run} weighs 0 in all its findings", where="--weights", fix="leave this run out")
    return made


def _numbers(text: str, numbers: str, runs: int) -> list[float]:
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) != runs or not all(value >= 0 and math.isfinite(value) for value in values):
        raise UsageError(
            f"weights are {runs} numbers of at least 0, one for each run, got {numbers!r}",
            where=f"--weights {text}",
            fix="write --weights 2,1 for all findings, or --weights FINDING=2,1 for one",
        )
    return values
