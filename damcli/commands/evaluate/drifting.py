"""`damcli evaluate MODEL --drift SCANS`: are these scans, without labels, like those that the model was made on?"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from damcli import console, files, project
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.bundle.runtime import Model
    from damcli.data.archives import Place, Refused
    from damcli.data.inputs import Given
    from damcli.data.store import Dataset
    from damcli.metrics.drift import Reference, Shift

BATCH = 32
LISTED = 10  # failed scans, on stderr; with --json all of them
FEW = 0.2  # distances below this should be told from chance, else it is said
COLUMNS = ["", "mean before", "mean now (95 % CI)", "distance", "p (Holm)", "shifted"]
LIMITS = (
    "no shift here does not say that the AUROC holds: what a finding looks like may have changed where none of these"
    " figures sees it",
    "a shift does not say that the AUROC fails: scores also move where findings are more or less frequent; only labels"
    " tell: damcli evaluate MODEL DATASET",
    "scans are taken as independent: with several scans of a patient the p-values are too small",
)
Scored = tuple["npt.NDArray[np.uint8]", "npt.NDArray[np.float32]"]


@dataclass
class Counted:
    """How many scans were compared, what became of the others, and what is remarkable of some."""

    compared: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)  # name, and why
    skipped: int = 0
    remarks: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class DriftResult:
    """Scans compared with a model's reference; `notes` are what a reader has to know, `provider` is what scored."""

    model: Path
    scans: Path
    provider: str
    reference: Reference
    counted: Counted
    shifts: list[Shift]
    notes: tuple[str, ...]

    def rows(self) -> list[list[str]]:
        """Return the table, its cells in the order of `COLUMNS`."""
        from damcli.report import tables

        return [
            [
                f"score of {shift.name}" if shift.kind == "score" else f"pixels: {shift.name}",
                f"{shift.before:.3g}",
                f"{shift.now:.3g} ({_interval(shift)})",
                f"{shift.distance:.3f}",
                tables.p_value(shift.adjusted),
                "yes" if shift.shifted else "no",
            ]
            for shift in self.shifts
        ]

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "schema_version": 1,
            "model": str(self.model),
            "scans": str(self.scans),
            "provider": self.provider,
            "compared": self.counted.compared,
            "failed": [{"path": name, "error": error} for name, error in self.counted.failed],
            "skipped": self.counted.skipped,
            "reference_scans": self.reference.scans,
            "rule": _rule(),
            "shifts": [
                {
                    "kind": shift.kind,
                    "name": shift.name,
                    "distance": shift.distance,
                    "p": shift.p,
                    "p_holm": shift.adjusted,
                    "mean_before": shift.before,
                    "mean_now": {"value": shift.now, "low": _number(shift.low), "high": _number(shift.high)},
                    "shifted": shift.shifted,
                }
                for shift in self.shifts
            ],
            "notes": list(self.notes),
        }


def run(model: Path, scans: Path, device: str = "auto") -> DriftResult:
    """Score scans with a model, and compare their scores and pixels with those of the scans that it was made on.

    `scans` is what `damcli predict` takes (a folder, a file, an archive, a table of paths), decoded as it does, or a
    prepared dataset. Raises `UsageError` for a model without a reference and where there is nothing to compare,
    `DataError` for a dataset that was prepared otherwise and where no scan could be scored.
    """
    import numpy as np

    from damcli.bundle.runtime import Model
    from damcli.metrics import drift

    opened = Model.open(model, device)
    reference = opened.info.reference
    if reference is None:
        raise UsageError(
            "this model does not hold what the scans that it was made on are like",
            where=model,
            fix="export it again: damcli export RUN; several runs only where their tune parts share scans (one seed)",
        )
    if opened.fell_back:
        console.warn(f"{opened.provider_note} (see damcli info doctor)")
    notes, counted = list(LIMITS), Counted()
    prepared = (scans / "dataset.json").is_file()
    batches, total = _of_dataset(opened, scans, counted, notes) if prepared else _of_files(opened, scans, counted)
    number = None if total is None else -(-total // BATCH)
    pixels, parts = [], []
    for images, scores in console.track(batches, number, "drift", unit="batches"):
        pixels.append(drift.pixel_statistics(images))
        parts.append(scores)
    if not counted.compared:
        name, error = counted.failed[0] if counted.failed else (str(scans), "no file is an image")
        tried = counted.skipped + len(counted.failed)
        raise DataError(f"none of the {tried} scans could be scored: {error}", where=name)
    columns = dict(zip(opened.info.findings, np.concatenate(parts).T, strict=True))
    if opened.info.encoding and not prepared:
        columns = {}
        notes.append(
            "scores are not compared: the model also takes metadata, which files do not have; prepare a dataset with it"
        )
    shifts = drift.compare(reference, columns, drift.gathered(pixels))
    least = drift.least_distance(min(sample.count for sample in reference.pixels.values()), counted.compared)
    if least > FEW:
        notes.append(f"with {counted.compared} scans a distance below {least:.2f} cannot be told from chance")
    return DriftResult(model, scans, opened.provider, reference, counted, shifts, tuple(notes))


def command(subject: Path | None, on: Path | None, drift: Path, output: Path | None, device: str) -> None:
    """Show whether scans are like those that a model was made on; with `-o FOLDER` also write `drift.json` into it.

    Scans that failed end it with exit code 4, as in `damcli predict`; a shift does not.
    """
    if on is not None:
        raise UsageError("drift needs no labels", where=on, fix="leave it out: damcli evaluate MODEL --drift SCANS")
    model = subject or project.newest_model()
    if model.suffix != ".onnx":
        fix = f"damcli export {model} -o NAME.onnx, then damcli evaluate NAME.onnx --drift {drift}"
        raise UsageError("drift is that of an exported model", where=model, fix=fix)
    if not drift.exists():
        raise UsageError("there is no such folder of scans or dataset", where=drift)
    result = run(model, drift, device)
    counted = result.counted
    if output is not None:
        files.write_json(output / "drift.json", result.document())
    if console.state.json:
        console.emit_json(result.document())
    title = f"{counted.compared} scans of {drift} beside the {result.reference.scans} kept out of training {model.name}"
    console.table(title, COLUMNS, result.rows())
    shifted = [row[0] for row, shift in zip(result.rows(), result.shifts, strict=True) if shift.shifted]
    console.result(f"{', '.join(shifted) or 'nothing'} shifted ({_rule()})")
    for text in result.notes:
        console.result(text)
    console.note(
        f"{counted.compared} scans compared, {len(counted.failed)} failed, {counted.skipped} skipped;"
        f" provider {result.provider}"
    )
    for remark, number in counted.remarks.most_common():
        console.warn(f"{number} scans: {remark}")
    for name, error in counted.failed[:LISTED]:
        console.warn(f"{name}: {error}")
    if len(counted.failed) > LISTED:
        console.warn(f"and {len(counted.failed) - LISTED} more that failed: --json lists all of them")
    console.next_step(f"damcli evaluate {model} DATASET")
    if counted.failed:
        raise typer.Exit(4)


def _of_files(opened: Model, scans: Path, counted: Counted) -> tuple[Iterator[Scored], int | None]:
    """Return what yields the images and scores of files, `BATCH` at a time, and how many files there are, if known."""
    from damcli.data import inputs

    given = inputs.given([str(scans)])
    total = given.total()
    if total == 0:
        raise UsageError("there is no file to score", where=scans, fix="give a folder with scans, or a dataset")
    return _decoded(opened, given, counted), total


def _decoded(opened: Model, given: Given, counted: Counted) -> Iterator[Scored]:
    import numpy as np

    from damcli.data.workers import batches, cores

    names: deque[str] = deque()

    def places() -> Iterator[Place | Refused]:
        for one in given.find():
            names.append(one.name)
            yield one.source

    with closing(batches(places(), opened.info.contract, cores(), BATCH)) as lots:
        for lot in lots:
            scans = [(names.popleft(), scan) for scan in lot.scans]
            good = [(name, scan.reason) for name, scan in scans if scan.status == "ok"]
            counted.failed += [(name, scan.reason) for name, scan in scans if scan.status == "failed"]
            counted.skipped += sum(scan.status == "skipped" for _, scan in scans)
            counted.remarks.update(remark for _, remark in good if remark)
            scores = opened.score(lot.images)
            finite = np.isfinite(scores).all(axis=1)
            images = lot.images[finite]  # a copy, which outlives the lot
            lot.release()
            broken = np.flatnonzero(~finite).tolist()
            counted.failed += [(good[row][0], "the model gave a score that is no number") for row in broken]
            counted.compared += len(images)
            yield images, scores[finite]


def _of_dataset(opened: Model, path: Path, counted: Counted, notes: list[str]) -> tuple[Iterator[Scored], int]:
    """Return what yields the images and scores of all scans of a dataset, and how many there are."""
    from damcli.data.store import Dataset

    dataset = Dataset.open(path)
    if dataset.info.contract != opened.info.contract:
        raise DataError(
            f"this dataset was decoded otherwise ({dataset.info.contract}) than the model's ({opened.info.contract})",
            where=path,
            fix="give the folder of its scans instead, or prepare it again in the model's way",
        )
    if dataset.info.fingerprint in {member.dataset for member in opened.info.members}:
        notes.append(
            "these are scans of the dataset that the model was trained on: what it has seen, it scores otherwise"
        )
    return _prepared(opened, dataset, counted), len(dataset.manifest)


def _prepared(opened: Model, dataset: Dataset, counted: Counted) -> Iterator[Scored]:
    import numpy as np

    rows, encoding = np.arange(len(dataset.manifest)), opened.info.encoding
    cells = None if encoding is None else encoding.encode(dataset.manifest, dataset.path)
    for start in range(0, len(rows), BATCH):
        piece = rows[start : start + BATCH]
        images = dataset.read(piece)
        scores = opened.score(images, None if cells is None else cells[piece])
        counted.compared += len(piece)
        yield images, scores


def _rule() -> str:
    from damcli.metrics import drift

    return f"p after Holm below {drift.ALPHA:g}, and a distance (Kolmogorov–Smirnov) of {drift.FAR:g} or more"


def _interval(shift: Shift) -> str:
    return "n/a: one scan" if math.isnan(shift.low) else f"{shift.low:.3g} to {shift.high:.3g}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
