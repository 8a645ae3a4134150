"""What other hospitals' `metrics.json` say of their AUROCs: read as untrusted, and whether they may be pooled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from damcli.errors import DataError, UsageError
from damcli.metrics import Estimate
from damcli.metrics.pooling import logit_deviation
from damcli.report import tables
from damcli.report.judgement import SCHEMA_VERSION

FILE = "metrics.json"
MOST_BYTES = 32 * 2**20
# Nothing that moves a terminal's cursor or turns the direction of writing.
SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+$"
Text = Annotated[str, StringConstraints(max_length=300, pattern=SHOWN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of the file; what is not of use here is left out."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Figure(Part):
    """A figure with its interval, or why it has none."""

    value: Share | None
    low: Share | None
    high: Share | None
    why: Text | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        known = [each for each in (self.low, self.value, self.high) if each is not None]
        if len(known) not in (0, 3) or (not known) != bool(self.why) or known != sorted(known):
            raise ValueError("a figure has a value within its interval, or the reason why it has none")
        return self

    @property
    def estimate(self) -> Estimate:
        """The same as other figures are."""
        return tables.read_back(self.model_dump())

    @property
    def poolable(self) -> bool:
        """Whether it has a place on the logit scale: there is one, and it is not exactly 0 or 1."""
        return self.value is not None and 0 < self.value < 1


class Finding(Part):
    """A finding's AUROC and the sizes of its classes."""

    positives: Count
    negatives: Count
    auroc: Figure


class Subject(Part):
    """What was evaluated; `networks` are the SHA-256 of the weights of a run, or of a model's members."""

    kind: Text
    path: Text
    networks: tuple[Text, ...] | None = None

    @property
    def name(self) -> str:
        """The last part of its path, wherever that was."""
        return self.path.replace("\\", "/").rstrip("/").rpartition("/")[2] or self.path


class Truth(Part):
    """What it was evaluated on; `ids_sha256` is of the rows' names."""

    split: Text | None
    fingerprint: Text | None
    ids_sha256: Sha256 | None = None


class Selection(Part):
    """Whether the scans had a part in making the model; None where that is not known."""

    used: bool | None


class Unit(Part):
    """What was judged."""

    by: Literal["scan", "study", "patient"]
    reduce: dict[Text, Text] = {}


class Method(Part):
    """How the intervals were made."""

    level: float = Field(ge=0.5, lt=1)
    cluster: Literal["patient", "study"] | None


class Mean(Part):
    """The mean over a site's findings."""

    auroc: Figure


class Version(Part):
    """What kind of file it is: `sites` are in what was merged."""

    schema_version: int
    sites: dict[str, object] | None = None


class Metrics(Part):
    """What is read of a `metrics.json`."""

    subject: Subject
    truth: Truth
    selection: Selection
    unit: Unit
    scans: Count
    units: Count
    patients: Count | None
    views: Count = 1
    interval: Method
    findings: dict[Text, Finding] = Field(min_length=1, max_length=1000)
    mean: Mean

    @property
    def defined(self) -> list[str]:
        """The findings that have an AUROC."""
        return [name for name, each in self.findings.items() if each.auroc.value is not None]


class Site(NamedTuple):
    """A hospital's figures under the name of their file or folder."""

    name: str
    path: Path
    metrics: Metrics


def read(paths: Sequence[Path]) -> list[Site]:
    """Read every site's `metrics.json`, or that of its folder, and refuse what must not be pooled.

    Raises `UsageError` for fewer than two, for one that is not there or named twice; `DataError` for a file that is no
    `metrics.json` of a schema that is known, for the same scans twice, and for figures of different units.
    """
    if len(paths) < 2:
        fix = f"damcli evaluate --merge SITE-A.json SITE-B.json: each the {FILE} that damcli evaluate wrote there"
        raise UsageError("two sites or more are needed to merge", where="--merge", fix=fix)
    files = [path / FILE if path.is_dir() else path for path in paths]
    for first, again in combinations(files, 2):
        if first.resolve() == again.resolve():
            raise UsageError("this file is named twice", where=again, fix="name each site once")
    sites = [Site(name, path, _read(path)) for name, path in zip(_names(files), files, strict=True)]
    for one, other in combinations(sites, 2):
        _refuse(one, other)
    return sites


def alike(sites: Sequence[Site]) -> Iterator[str]:
    """Say which sites may be no two hospitals: parts of one dataset, or of scans that are named alike."""
    for one, other in combinations(sites, 2):
        a, b = one.metrics, other.metrics
        if a.truth.fingerprint and a.truth.fingerprint == b.truth.fingerprint:
            yield f"{one.name} and {other.name} are parts of one dataset, and no two hospitals"
        elif _same_ids(a, b):
            yield f"{one.name} and {other.name} name their scans alike: where they are the same, they count twice"


def _names(files: Sequence[Path]) -> list[str]:
    """Return what tells the files apart: the name of file or folder, or of one above where these are all the same.

    >>> _names([Path("north/evaluation/metrics.json"), Path("south/evaluation/metrics.json")])
    ['north', 'south']
    >>> _names([Path("sites/north.json"), Path("a/south/metrics.json"), Path("b/south/metrics.json")])
    ['sites/north', 'a/south', 'b/south']
    """
    full = [file.resolve() for file in files]
    parts = [(file.parent if file.name == FILE else file.with_suffix("")).parts for file in full]
    while len({each[-1] for each in parts}) == 1 and all(len(each) > 2 for each in parts):
        parts = [each[:-1] for each in parts]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(each[1:][-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(map(str, full))


def _read(path: Path) -> Metrics:
    fix = f"give the {FILE} that damcli evaluate wrote, or the folder that holds it"
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(f"this is no {FILE}: it has {size:,} bytes", where=path, fix=fix)
        text = path.read_bytes()
        _known(Version.model_validate_json(text), path)
        metrics = Metrics.model_validate_json(text)
        for figure in (*(each.auroc for each in metrics.findings.values()), metrics.mean.auroc):
            if figure.poolable:
                logit_deviation(figure.estimate, metrics.interval.level)
    except OSError as error:
        raise UsageError(f"this cannot be read: {error.strerror}", where=path, fix=fix) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ascii(".".join(map(str, first["loc"])))[1:-1][:80]
        what = f"this is no {FILE} that can be merged: {f'{place}: ' if place else ''}{first['msg']}"
        raise DataError(what, where=path, fix=fix) from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"an AUROC of this file cannot be pooled: {error}", where=path, fix=fix) from error
    return metrics


def _known(version: Version, path: Path) -> None:
    if version.sites is not None:
        fix = f"give the sites' own {FILE}: what was merged cannot be taken apart, and would count twice"
        raise DataError("this is a merged result", where=path, fix=fix)
    if version.schema_version != SCHEMA_VERSION:
        fix = "evaluate there again with the damcli that is used here"
        what = f"this {FILE} has schema {version.schema_version}, this damcli merges {SCHEMA_VERSION}"
        raise DataError(what, where=path, fix=fix)


def _refuse(one: Site, other: Site) -> None:
    """Raise `DataError` for two sites that must not be pooled."""
    a, b = one.metrics, other.metrics
    pair = f"{one.name} and {other.name}"
    if a.unit.by != b.unit.by:
        what = f"{one.name} is judged by {a.unit.by}, {other.name} by {b.unit.by}"
        raise DataError(what, where="--merge", fix="evaluate all sites with the same --by")
    if a.findings == b.findings and a.defined:
        raise DataError(f"{pair} hold the same figures to the last digit", where="--merge", fix="name each site once")
    dataset = a.truth.fingerprint and a.truth.fingerprint == b.truth.fingerprint
    apart = {a.truth.split, b.truth.split} == {"valid", "test"}
    if (dataset and not apart) or (_same_ids(a, b) and _same_counts(a, b)):
        fix = "name each site once; two models on the same scans are compared with --against"
        raise DataError(f"{pair} are of the same scans, which would count twice", where="--merge", fix=fix)


def _same_ids(a: Metrics, b: Metrics) -> bool:
    return a.truth.ids_sha256 is not None and a.truth.ids_sha256 == b.truth.ids_sha256


def _same_counts(a: Metrics, b: Metrics) -> bool:
    # Two hospitals may both number their scans from 1 on; that they have as many of each class is no accident.
    common = a.findings.keys() & b.findings.keys()
    counts = (
        [(each.positives, each.negatives) for each in map(m.findings.__getitem__, sorted(common))] for m in (a, b)
    )
    return bool(common) and next(counts) == next(counts)
