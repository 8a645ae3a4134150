"""Where the images of a CheXpert table lie: every tree that the set is handed round in (FORMATS section 1.5)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

# A Path starts with the folder of its release, whatever the user's is called: what counts begins at the split.
SPLIT_SUFFIX = re.compile(r"^(?:.*/)?((?:train|valid|val|test)/.+)$", re.DOTALL)
SPLIT_FOLDERS = ("train", "valid", "val", "test")
SAMPLE = 200  # scans that are looked for to find out which tree it is
MOST_FOLDERS = 64  # a folder of more is one of patients, not of a tree's parts

Way = Callable[[str], str]


def place(
    root: str | os.PathLike[str], names: Sequence[str], suffixes: Sequence[str] = ("",)
) -> tuple[list[str | None], str]:
    """Return where each scan lies, None for `root`/name, and how the tree differs in words ("" if it does not).

    `names` begin at the split (train/patient00001/…). A tree may have folders between `root` and the split or none at
    all, no split folder, `val` for `valid`, patients spread over several folders, or flattened names; `suffixes` are
    other endings that files may have in place of their own. Absolute names and such with .. are left alone: they are
    refused elsewhere.
    """
    safe = [name for name in names if not name.startswith("/") and ".." not in name.split("/")]
    sample = safe[:: max(1, len(safe) // SAMPLE)]
    best, best_way, best_said = 0, None, ""
    for way, said in _ways(os.path.abspath(root), suffixes):  # noqa: PTH100  (symlinks stay as they are)
        found = sum(os.path.isfile(way(name)) for name in sample)  # noqa: PTH113  (quick, for many)
        if found > best:
            best, best_way, best_said = found, way, said
        if found == len(sample):
            break
    if best_way is None or not best_said:
        return [None] * len(names), ""
    known = set(safe)
    return [best_way(name) if name in known else None for name in names], best_said


def _ways(top: str, suffixes: Sequence[str]) -> Iterator[tuple[Way, str]]:
    """Yield ways from a name to a file, the usual one first, and what to say of each."""
    yield (lambda name: f"{top}/{name}"), ""
    parts = [folder for folder in _folders(top) if folder not in SPLIT_FOLDERS]
    below = {part: _folders(f"{top}/{part}") for part in (parts if len(parts) <= MOST_FOLDERS else ())}
    # An archive that was unpacked into a folder of its own name lies one level deeper.
    bases = ["", *below, *(f"{part}/{part}" for part, folders in below.items() if part in folders)]
    for suffix in suffixes:
        for base in bases:
            where = f"lie in {base}" if base else "lie here"
            for shape, said in _SHAPES:
                yield _way(f"{top}/{base}" if base else top, shape, suffix), where + said
    patients = {folder: part for part, folders in below.items() for folder in folders if folder.startswith("patient")}

    def spread(name: str) -> str:
        patient, _, rest = _without_split(name).partition("/")
        return f"{top}/{patients[patient]}/{patient}/{rest}" if patient in patients else f"{top}/{name}"

    if patients:
        yield spread, f"are spread over the folders of {os.path.basename(top)}, by patient"  # noqa: PTH119


def _folders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, sorted; one that cannot be looked into has none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _way(base: str, shape: Way, suffix: str) -> Way:
    def way(name: str) -> str:
        shaped = shape(name)
        return f"{base}/{os.path.splitext(shaped)[0] + suffix if suffix else shaped}"  # noqa: PTH122

    return way


def _as_val(name: str) -> str:
    return "val/" + name.removeprefix("valid/") if name.startswith("valid/") else name


def _without_split(name: str) -> str:
    return name.partition("/")[2]


def _flat(name: str) -> str:
    return name.replace("/", "_")


def _flat_below_split(name: str) -> str:
    return f"{name.partition('/')[0]}/{_flat(_without_split(name))}"


_SHAPES: tuple[tuple[Way, str], ...] = (
    (str, ""),
    (_as_val, " under val/"),
    (_without_split, " without a folder of the split"),
    (_flat_below_split, " flattened"),
    (lambda name: _flat(_without_split(name)), " flattened, without a folder of the split"),
)
