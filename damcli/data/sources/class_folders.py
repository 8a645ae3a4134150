"""A folder of images per class: ROOT/CLASS/…, or ROOT/train/CLASS/… with valid and test beside it.

The classes are the findings, but for those whose name says that there is none ("normal"). How deep the images lie below
their class does not matter, nor what their names end in: what is no image is refused when it is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from damcli.data.labels import Policy, choose
from damcli.data.sources import Source, as_text, files_below, table_of
from damcli.errors import UsageError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "validate"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Names of classes without a finding, whatever their case.
WITHOUT_FINDING = frozenset(
    ("normal", "negative", "neg", "benign", "healthy", "control", "no finding", "no_finding", "none", "0", "no")
)
WITHOUT_FINDING_PREFIXES = ("non", "no ", "no_", "no-", "not ", "not_", "not-")
# What lies beside images without being one.
NO_IMAGE_NAMES = ("thumbs.db", "desktop.ini")
NO_IMAGE_SUFFIXES = (".txt", ".csv", ".json", ".md", ".xml")


def read(root: Path, findings: Sequence[str] = ()) -> Source:
    """Read a folder of classes. A scan's label is 1 for its own class and 0 for the others; `findings` are classes.

    Where `root` has folders train, valid or test, the classes lie in these, and the split is kept. Hidden files and
    folders, texts and tables are passed over, and so are classes without files and files without a class, which is
    said. Raises `UsageError` where there are fewer than two classes, where it is open which one is the finding, or for
    a finding that is no class.
    """
    top = _folders(root)
    parts = [folder for folder in top if folder.name.casefold() in SPLITS]
    places: list[tuple[str | None, Path]] = [(None, folder) for folder in top]
    if parts:
        _refuse_beside(root, parts, top)
        places = [(SPLITS[part.name.casefold()], folder) for part in parts for folder in _folders(part)]
    spelled: dict[str, str] = {}  # two splits may differ in the case of a class
    ids, paths, classes, splits = [], [], [], []
    refused = []
    for split, folder in places:
        for file in _candidates(folder):
            scan = as_text(file.relative_to(root).as_posix())
            name = spelled.setdefault(as_text(folder.name).casefold(), as_text(folder.name))
            if not file.is_file():
                refused.append((scan, "this is no file, or a link that leads nowhere"))
                continue
            ids.append(scan)
            paths.append(as_text(os.path.abspath(file)))  # noqa: PTH100  (symlinks stay as they are)
            classes.append(name)
            splits.append(split)
    names = sorted(spelled.values())
    if len(names) < 2:
        raise _too_few(root, names, [folder for _, folder in places])
    findings = choose(findings, names, "class", root) if findings else _findings(root, names)

    notes = [f"took {root}: {len(ids)} files in {len(names)} classes, each a folder"]
    notes.append(f"findings: {_listed(findings)}; other classes: {_listed(set(names) - set(findings)) or 'none'}")
    if parts:
        notes.append(f"splits from the folders {_listed(part.name for part in parts)}")
    notes.append("no patients are known: each scan counts as a patient of its own, so leakage cannot be excluded")
    empty = {as_text(folder.name) for _, folder in places if as_text(folder.name).casefold() not in spelled}
    if empty:
        notes.append(f"left out, as no image lies in it: {_listed(empty)}")
    entries = [entry for folder in (root, *parts) for entry in _entries(folder)]
    loose = [entry for entry in entries if entry.is_file() and _may_be_image(entry.name)]
    if loose:
        notes.append(f"left out, as they lie in no class: {len(loose)} files, such as {as_text(loose[0].name)}")
    labels = {finding: [float(name == finding) for name in classes] for finding in findings}
    scans = table_of(ids, paths, labels, split=splits)
    return Source("table", root, scans, findings, {name: Policy() for name in findings}, notes, refused)


def means_no_finding(name: str) -> bool:
    """Tell whether the name of a class says that there is no finding.

    >>> [means_no_finding(name) for name in ("Normal", "NonDemented", "no_tumor", "nodule")]
    [True, True, True, False]
    """
    name = name.strip().casefold()
    return name in WITHOUT_FINDING or name.startswith(WITHOUT_FINDING_PREFIXES)


def _findings(root: Path, classes: list[str]) -> list[str]:
    findings = [name for name in classes if not means_no_finding(name)]
    if not findings or len(findings) == len(classes) == 2:
        raise UsageError(
            f"which of {' and '.join(classes)} is the finding?",
            where=root.resolve(),
            fix=f"--label-columns {classes[-1]}",
        )
    return findings


def _refuse_beside(root: Path, parts: list[Path], top: list[Path]) -> None:
    beside = [folder.name for folder in top if folder not in parts and any(_candidates(folder))]
    if beside:
        raise UsageError(
            f"{_listed(part.name for part in parts)} is a split, and {_listed(beside)} beside it is none",
            where=root.resolve(),
            fix="move the one into the other, or away; no class can have the name of a split",
        )


def _too_few(root: Path, classes: list[str], folders: list[Path]) -> UsageError:
    looked = _listed(folder.name for folder in folders[:10]) or "it has no folders"
    found = f"images in one class only, {classes[0]!r}" if classes else "no folders of images, one per class"
    one_down = len(folders) == 1 and len(_folders(folders[0])) > 1
    return UsageError(
        f"which table? there is no CSV or Parquet file, and {found} ({looked})",
        where=root.resolve(),
        fix=f"damcli prepare table {folders[0] if one_down else 'FILE.csv'}",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(as_text(name) for name in names))


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    """Return the folders directly in one, without links that lead back to it or above it."""
    here = folder.resolve()
    return [
        entry
        for entry in _entries(folder)
        if entry.is_dir() and not (entry.is_symlink() and here.is_relative_to(entry.resolve()))
    ]


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield what may be an image below a folder, but nothing hidden: .ipynb_checkpoints holds copies."""
    for file in files_below(folder):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and _may_be_image(file.name):
            yield file


def _may_be_image(name: str) -> bool:
    return name.casefold() not in NO_IMAGE_NAMES and not name.casefold().endswith(NO_IMAGE_SUFFIXES)
