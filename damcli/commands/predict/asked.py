"""What the options of `damcli predict` ask for, checked before any scan is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from damcli.errors import UsageError

if TYPE_CHECKING:
    from damcli.bundle.schema import ModelInfo
    from damcli.bundle.table import Columns
    from damcli.data.units import Reduce

FORMATS = ("csv", "json", "jsonl", "parquet")
UNITS = ("scan", "study", "patient")


@dataclass(frozen=True)
class Target:
    """Where the table goes, None for stdout, and in which format; with `scans`, that of the scans beside it."""

    path: Path | None
    form: str
    scans: Path | None = None

    @property
    def own(self) -> tuple[Path, ...]:
        """The files that are written, which are no inputs."""
        return tuple(path for path in (self.path, self.scans) if path is not None)


def target(output: Path | None, form: str | None, by: str) -> Target:
    """Return where to write; without `--export` the file's suffix decides. Raises `UsageError`.

    By study and by patient there are two tables: of the units, and under a name of its own that of the scans.
    """
    if by not in UNITS:
        raise UsageError(f"there is no unit {by!r}", where="--by", fix=f"choose one of: {', '.join(UNITS)}")
    suffix = output.suffix.removeprefix(".") if output else ""
    form = form or (suffix if suffix in FORMATS else "csv")
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", where="--export", fix=f"choose one of: {', '.join(FORMATS)}")
    if output == Path("-"):
        return Target(None, form)
    path = output or Path(f"scores.{form}")
    if path.is_dir():
        raise UsageError("this is a folder", where=path, fix=f"name a file: -o {path / f'scores.{form}'}")
    scans = None if by == "scan" else path.with_name(f"{path.stem}-scans{path.suffix}")
    if scans and scans.is_dir():
        raise UsageError("the table of scans would go there, and it is a folder", where=scans, fix="name another -o")
    for each in (path, scans):
        if each is not None and each.exists() and each.suffix.removeprefix(".") not in FORMATS:
            # It may be a scan: `-o scans/*.dcm` would put the table in the place of the first.
            raise UsageError("this file is there already and is no table by its name", where=each, fix="name another")
    return Target(path, form, scans)


@dataclass(frozen=True)
class Asked:
    """What is asked of a model: by which unit, how its scans' scores become one, and the thresholds to call it by."""

    by: Literal["scan", "study", "patient"]
    reduce: Mapping[str, Reduce]
    thresholds: Mapping[str, float] | None
    keep_ids: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """The columns of ids in the table of scans."""
        return ("patient", "study") if self.by != "scan" or self.keep_ids else ()

    def columns(self, findings: Sequence[str]) -> Columns:
        """Return the columns of the table that is asked for."""
        from damcli.bundle.table import Columns

        if self.by == "scan":
            return Columns(tuple(findings), thresholds=self.thresholds, ids=self.ids)
        ids = ("patient",) if self.by == "study" else ()
        return Columns(tuple(findings), key=self.by, thresholds=self.thresholds, ids=ids, counts=True)

    def scan_columns(self, findings: Sequence[str]) -> Columns:
        """Return the columns of the table of scans beside one of units; thresholds are for the units."""
        from damcli.bundle.table import Columns

        return Columns(tuple(findings), ids=self.ids)


def of(info: ModelInfo, by: str, reduce: str | None, threshold: str | None, keep_ids: bool) -> Asked:
    """Return what is asked of this model. Raises `UsageError` for what it cannot give.

    Where nothing else is said, scores are reduced as they were when the model's thresholds were chosen.
    """
    from damcli.data.units import parse_reduce

    made = info.decisions
    usual = made.reduce if made is not None and made.by == by else {}
    rules: dict[str, Reduce] = {}
    if by == "scan":
        if reduce is not None:
            fix = "add --by study or --by patient, or leave it out"
            raise UsageError("by scan there is nothing to reduce", where="--reduce", fix=fix)
    elif reduce is not None:
        rules = parse_reduce(reduce, info.findings)
    else:
        rules = {finding: cast("Reduce", usual.get(finding, "mean")) for finding in info.findings}
    thresholds = None if threshold is None else _thresholds(info, by, rules, threshold)
    return Asked(cast('Literal["scan", "study", "patient"]', by), rules, thresholds, keep_ids)


def _thresholds(info: ModelInfo, by: str, rules: Mapping[str, Reduce], name: str) -> dict[str, float]:
    """Return the thresholds of an operating point by finding, as far as the model has them."""
    from damcli.data.labels import choose

    made = info.decisions
    if made is None or not any(made.points.values()):
        fix = "damcli evaluate RUN --operating RULE, then damcli export RUN"
        raise UsageError("this model has no operating points", where="--threshold", fix=fix)
    known = [rule for rule, points in made.points.items() if points]
    points = made.points[choose([name], known, "operating point", "--threshold")[0]]
    if made.by != by:
        what = f"the operating points of this model are for each {made.by}, not for each {by}"
        raise UsageError(what, where="--threshold", fix=f"add --by {made.by}, or leave out --threshold")
    other = [finding for finding in points if by != "scan" and rules[finding] != made.reduce.get(finding)]
    if other:
        rule = made.reduce.get(other[0])
        what = f"the operating point was chosen for the {rule} of the scans' scores of {other[0]}"
        raise UsageError(what, where="--reduce", fix="leave it out, or leave out --threshold")
    return {finding: point.threshold for finding, point in points.items()}
