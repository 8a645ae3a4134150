"""Which reader reads a download, and what it reads made ready to be written."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from damcli.data.sources import Source

# The sources by the names that the command line has for them, and the rooms of their readers in `data.sources`.
SOURCES = {
    "chexpert": "chexpert",
    "mimic-cxr-jpg": "mimic",
    "nih": "nih",
    "padchest": "padchest",
    "vindr-cxr": "vindr_cxr",
    "rsna-pneumonia": "rsna_pneumonia",
    "ddsm": "ddsm",
    "rsna-mammography": "rsna_mammography",
    "vindr-mammo": "vindr_mammo",
    "pcam": "pcam",
    "melanoma": "melanoma",
    "ham10000": "ham10000",
    "benchmark": "benchmark",
    "table": "table",
}


def read(
    kind: str,
    path: Path | None = None,
    *,
    uncertain: str | None = None,
    blank: str | None = None,
    valid_fraction: float | None = None,
    folds: int | None = None,
    allow_leaks: bool = False,
    seed: int = 0,
    **special: Any,
) -> Source:
    """Read a download, ready to be written: labels with their policies, and a split for every scan.

    `special` are the arguments of the source's own `read`, None for what was not asked for. Raises `UsageError` for
    what the source does not understand, `DataError` for a table that cannot be used or, unless leaks are allowed, a
    patient in two splits.
    """
    from damcli.data import audit, labels, parts
    from damcli.data.sources import table
    from damcli.data.writer import commonest

    if kind not in SOURCES:
        *others, last = SOURCES
        raise UsageError(f"there is no source {kind!r}", where="SOURCE", fix=f"choose {', '.join(others)} or {last}")
    reader = _reader(kind)
    given = {name: value for name, value in special.items() if value is not None}
    takes = inspect.signature(reader).parameters
    for name, value in given.items():
        if value == []:
            raise UsageError(f"--{name.replace('_', '-')} names nothing", fix="name one or more, or leave it out")
        if name not in takes:
            raise UsageError(f"--{name.replace('_', '-')} belongs to {_owners(name)}", fix="leave it out")
    if kind == "table" and path is None and table.find(Path.cwd()) is None:
        raise UsageError("which table? there is none here", where=Path.cwd(), fix="damcli prepare table FILE_OR_FOLDER")
    path = path or Path.cwd()
    if "seed" in takes:
        given["seed"] = seed
    try:
        source = reader(path, **given)
    except OSError as error:  # a folder or file without permission, or on a disk that fails
        raise UsageError(f"this cannot be read: {error.strerror}", where=error.filename or path) from error
    if not len(source.scans):
        why = f": {commonest(reason for _, reason in source.refused)}" if source.refused else ""
        raise DataError(f"no scan is left to prepare{why}", where=source.root)
    labels.check_findings(source.findings)
    source = replace(source, policies=labels.with_rules(source.policies, uncertain, blank))
    source = parts.assign(source, valid_fraction, folds, seed)
    audit.stop(audit.of_table(source.scans, source.findings), allow_leaks)
    return source


def _reader(kind: str) -> Callable[..., Source]:
    reader: Callable[..., Source] = importlib.import_module(f"damcli.data.sources.{SOURCES[kind]}").read
    return reader


def _owners(option: str) -> str:
    """Return, in words, the sources that understand an option."""
    owners = [kind for kind in SOURCES if option in inspect.signature(_reader(kind)).parameters]
    *others, last = (f"`damcli prepare {kind}`" for kind in owners)
    return f"{', '.join(others)} and {last}" if others else last
