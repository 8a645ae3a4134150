"""The original DDSM: case folders with films as `.LJPEG`, case descriptions and annotations (FORMATS section 5)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from damcli.data import film
from damcli.data.film import Case, Lesion
from damcli.data.labels import Policy
from damcli.data.sources import Source, table_of
from damcli.errors import DataError

DESCRIPTION = re.compile(r"([A-D])-(\d{4})-(\d)\.ics", re.IGNORECASE)
VOLUME = re.compile(r"(?:normal|cancer|benign|benign_without_callback)_\d\d", re.IGNORECASE)
# What a lesion's pathology makes of its label; None is not known.
LABELS = {"MALIGNANT": 1.0, "BENIGN": 0.0, "BENIGN_WITHOUT_CALLBACK": 0.0, "UNPROVEN": None}


def read(root: Path, below: Sequence[Path], crops: bool) -> Source:
    """Read the films that the case descriptions among the files `below` a folder list.

    A film is malignant if a lesion annotated on it is: the other breast of a case of cancer is not. Where one view of a
    breast shows cancer, or its annotation is missing or unproven, and the other view has none, the label of the other
    is missing. `crops` takes the box around each lesion instead. The patient is the case's number; there is no official
    split. What cannot be read is refused: a case description, a film whose annotation is missing or cut off. Raises
    `DataError` if nothing is left.
    """
    # Two annotations lie in the folder of another case: by their names they are found all the same.
    named = [(found, file) for file in below if (found := film.NAME.fullmatch(file.name))]
    overlays, films = (
        {(found["case"].upper(), found["view"].upper()): file for found, file in named if file.suffix.upper() == kind}
        for kind in (".OVERLAY", ".LJPEG")
    )
    cases = sorted(file for file in below if file.suffix.lower() == ".ics")
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    ill: set[str] = set()  # breasts with a view whose lesion is malignant or not known
    for description in cases:
        try:
            name, case = _case(description)
        except DataError as error:
            refused.append((_id(description, root), error.what))
            continue
        volume = next((part.name.lower() for part in description.parents if VOLUME.fullmatch(part.name)), None)
        for view, about in case.views.items():
            breast = f"{name}_{view.partition('_')[0]}"
            lesions: list[Lesion] = []
            problem = ""
            try:
                # An annotation counts also where the case description knows of none.
                if about.overlay or (name, view) in overlays:
                    lesions = _annotated(overlays.get((name, view)))
            except DataError as error:
                problem = error.what
            if problem or _label(lesions) != 0:
                ill.add(breast)
            image = films.pop((name, view), None)
            if image is None:
                refused.append((f"{name}.{view}.LJPEG", "the film is not in this download, or is listed twice"))
                continue
            if problem:
                refused.append((_id(image, root), problem))
                continue
            row = {
                # Cases of one number are one woman's, examined again.
                "id": _id(image, root), "path": str(image.absolute()), "patient": name[:6].replace("_", "-"),
                "view": view.partition("_")[2].lower(), "study": breast,
                "volume": volume, "scanner": case.scanner or None, "age": case.age, "density": case.density,
            }  # fmt: skip
            rows += _lesions(row, lesions) if crops else [row | {"label": _label(lesions), "lesions": len(lesions)}]
    refused += [(_id(image, root), "no case description lists this film") for image in films.values()]
    if not rows:
        why = refused[0][1] if refused else "no lesion is annotated"
        raise DataError(f"nothing is left of these cases: {why}", where=root.resolve())
    unsure = [] if crops else [row for row in rows if row["study"] in ill and not row["lesions"]]
    for row in unsure:
        row["label"] = None
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    scans = table_of(columns.pop("id"), columns.pop("path"), {"malignant": columns.pop("label")}, **columns)
    notes = [f"took {len(cases)} cases of the original DDSM below {root}"]
    scanners = Counter(scans["scanner"].fill_null("unknown").to_list())
    notes.append(
        f"scanners: {', '.join(f'{name} {count}' for name, count in scanners.most_common())}; normal cases come mostly "
        "from other scanners than cancers, which a network may learn: --film density takes the difference of contrast "
        "away"
    )
    if unsure:
        notes.append(
            f"{len(unsure)} films have no annotation, while the other view of their breast shows a lesion that is "
            "malignant or not known: their label is missing, not negative"
        )
    notes.append("the paper's DDSM+ test set of 13,900 images is in no public download")
    return Source("ddsm:films", root, scans, ["malignant"], {"malignant": Policy()}, notes, refused, size=224)


def _case(description: Path) -> tuple[str, Case]:
    named = DESCRIPTION.fullmatch(description.name)
    if named is None:
        raise DataError("a case description is named like A-1614-1.ics")
    return "_".join(named.groups()).upper(), film.read_case(description)


def _annotated(overlay: Path | None) -> list[Lesion]:
    if overlay is None:
        raise DataError("its annotation (.OVERLAY) is missing")
    return film.read_overlay(overlay)


def _id(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _label(lesions: Sequence[Lesion]) -> float | None:
    labels = [LABELS.get(lesion.pathology) for lesion in lesions]
    return 1.0 if 1.0 in labels else None if None in labels else 0.0


def _lesions(row: dict[str, Any], lesions: Sequence[Lesion]) -> list[dict[str, Any]]:
    return [
        row
        | {
            "id": f"{row['id']}/{number}",
            "path": f"{row['path']}#xywh={','.join(map(str, lesion.box))}",
            "label": _label([lesion]),
            "lesions": 1,
        }
        for number, lesion in enumerate(lesions, 1)
    ]
