"""What the options of `damcli evaluate` ask for, read and checked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.metrics.operating import Rule
    from damcli.report.gates import Gate

UNITS = ("scan", "study", "patient")
CLUSTERS = ("patient", "study", "none")
METHODS = ("none", "temperature", "platt", "isotonic")
DRAWS = 2000


@dataclass(frozen=True)
class Asked:
    """What to judge by and how; None and empty: by the default, or not at all.

    `reduce` is the text of `--reduce` until the findings are known; `prevalence` is by finding, "" for all others.
    """

    by: str = "scan"
    reduce: str = "mean"
    cluster: str | None = None
    draws: int = DRAWS
    seed: int = 0
    against: Path | None = None
    readers: tuple[Path, ...] = ()
    rules: tuple[Rule, ...] = ()
    prevalence: dict[str, float] | None = None
    calibrate: str | None = None
    subgroups: tuple[str, ...] = ()
    gallery: bool = False
    gates: tuple[Gate, ...] = ()

    def prevalence_of(self, finding: str) -> float | None:
        """Return the prevalence that the user gave for a finding."""
        given = self.prevalence or {}
        return given.get(finding, given.get(""))

    def named(self, findings: Sequence[str]) -> Asked:
        """Return the same, `--prevalence` spelled with these findings. Raises `UsageError` for another one."""
        from damcli.data.labels import choose

        given = self.prevalence or {}
        spelled = {name and choose([name], findings, "finding", "--prevalence")[0]: p for name, p in given.items()}
        return replace(self, prevalence=spelled or None)


def read(
    *,
    by: str | None,
    reduce: str | None,
    cluster: str | None,
    draws: int,
    seed: int | None,
    against: Path | None,
    readers: Sequence[Path],
    operating: Sequence[str],
    prevalence: str | None,
    calibrate: str | None,
    subgroups: str | None,
    gallery: bool,
    require: Sequence[str],
) -> Asked:
    """Read the options as they were typed. Raises `UsageError` for what does not mean anything.

    Readers call studies, not images: with them the unit is the study unless said otherwise.
    """
    from damcli.report.gates import Gate

    by = by or ("study" if readers else "scan")
    _one_of("--by", by, UNITS)
    if reduce and by == "scan":
        raise UsageError("scans are not reduced to anything", where="--reduce", fix="say to what: --by study")
    if cluster:
        _one_of("--cluster", cluster, CLUSTERS)
    if calibrate:
        _one_of("--calibrate", calibrate, METHODS)
    missing = [path for path in readers if not path.exists()]
    if missing:
        raise UsageError("there is no such file or folder of readers", where=missing[0])
    return Asked(
        by=by,
        reduce=reduce or "mean",
        cluster=cluster,
        draws=draws,
        seed=seed or 0,
        against=against,
        readers=tuple(readers),
        rules=_rules(operating) if operating else (),
        prevalence=None if prevalence is None else prevalences(prevalence),
        calibrate=calibrate,
        subgroups=tuple(dict.fromkeys(name.strip() for name in (subgroups or "").split(",") if name.strip())),
        gallery=gallery,
        gates=tuple(Gate.parse(text) for text in require),
    )


def _rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    from damcli.metrics.operating import Rule

    try:
        return tuple(dict.fromkeys(Rule.parse(text) for text in texts))
    except ValueError as error:
        fix = "like youden, sensitivity=0.9, specificity=0.95 or cost=5"
        raise UsageError(str(error), where="--operating", fix=fix) from error


def prevalences(text: str) -> dict[str, float]:
    """Read `--prevalence`: a number for all findings, numbers for some, or both.

    >>> prevalences("0.02"), prevalences("0.1, Pleural Effusion=0.3")
    ({'': 0.02}, {'': 0.1, 'Pleural Effusion': 0.3})
    """
    found = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1
        if not 0 < value < 1:
            fix = "--prevalence 0.02, or --prevalence 'Edema=0.02,Fracture=0.1'"
            raise UsageError(f"a prevalence lies between 0 and 1: {part.strip()!r}", where="--prevalence", fix=fix)
        found[name.strip()] = value
    return found


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{value!r} means nothing here", where=option, fix=f"choose from: {', '.join(known)}")
