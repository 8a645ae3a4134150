"""From inputs to the table: what is done with the rows of a prediction, kept where they go to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from damcli import console, files
from damcli.errors import DamcliError

if TYPE_CHECKING:
    from damcli.bundle.journal import Journal
    from damcli.bundle.pipeline import Draw, Pipeline, Whose
    from damcli.bundle.table import Columns, Row
    from damcli.cluster.scoring import Scoring
    from damcli.commands.predict.about import About
    from damcli.commands.predict.asked import Asked, Target
    from damcli.commands.predict.tally import Tally
    from damcli.data.inputs import Given, Input

    Shown = Callable[[str], str]


@dataclass(frozen=True)
class Job:
    """A prediction to be run: `total` inputs (None: not known before), `columns` those of the table asked for."""

    given: Given
    total: int | None
    target: Target
    working: Pipeline | Scoring
    want: Asked
    columns: Columns
    tally: Tally
    shown: Shown

    def rows(self, inputs: Iterator[Input], kept: Journal | None = None) -> Iterator[Row]:
        """Score the inputs and yield their rows, each once its lot is in the journal."""
        for scored in self.working.rows(inputs):
            rows = [row._replace(path=self.shown(row.path)) for row in scored.rows]
            if kept:
                kept.append(scored.inputs, rows)
            yield from self.tally.counted(rows)


def shown(hide_paths: bool) -> Shown:
    """Return what makes of a scan's name the one that is written."""
    if not hide_paths:
        return str
    from damcli.dicom import privacy

    secret = privacy.secret()
    return lambda name: f"scan-{privacy.pseudonym(secret, 'path', name)}"


def whose(known: About, keep_ids: bool) -> Whose:
    """Return what tells the patient and study of a scan, as pseudonyms unless the ids are kept."""
    from damcli.bundle import by_unit
    from damcli.dicom import privacy

    secret = b"" if keep_ids else privacy.secret()

    def whose(one: Input, decoded: Any) -> tuple[str, str]:
        patient, study = by_unit.ids_of(one, decoded, known.ids.get(one.name))
        if keep_ids:
            return patient, study
        return privacy.pseudonym(secret, "patient", patient), privacy.pseudonym(secret, "study", study)

    return whose


def key_check() -> str:
    """Return what tells one secret from another: rows with pseudonyms of both would make two patients of one."""
    from damcli.dicom import privacy

    return privacy.pseudonym(privacy.secret(), "secret", "check")


def draw(folder: Path, findings: Sequence[str], shown: Shown) -> Draw:
    """Return what writes the heat maps of a scan."""
    from damcli.bundle import heatmaps

    return lambda one, pixels, cams: heatmaps.write(folder, shown(one.name), findings, pixels, cams)


def stream(job: Job) -> None:
    """Write the table to stdout as the rows come; nothing is kept of it."""
    from damcli.bundle import table

    rows = console.track(job.rows(job.given.find()), job.total, "predict")
    table.write(None, job.target.form, job.columns, _by(job.want, rows))


def keep(job: Job, settings: dict[str, Any]) -> None:
    """Write the table, or those of units and scans; every lot that was scored is kept until then."""
    from damcli.bundle import journal, table

    target, want = job.target, job.want
    assert target.path is not None
    with journal.open(target.path, settings) as kept, _said(kept):
        for own in target.own:
            files.remove_drafts(own)
        rest = kept.resume(job.given.find(*target.own), job.shown)
        if kept.note:
            console.note(kept.note)
        if kept.done:
            console.note(f"{kept.done} inputs were done before: going on behind them")
            job.tally.before = kept.done
            for row in kept.rows():
                job.tally.add([row])
        left = None if job.total is None else job.total - kept.done
        for _ in console.track(job.rows(rest, kept), left, "predict"):
            pass
        if target.scans is not None:
            table.write(target.scans, target.form, want.scan_columns(job.columns.findings), kept.rows())
        table.write(target.path, target.form, job.columns, _by(want, kept.rows()))
        kept.finish()


@contextmanager
def _said(kept: Journal) -> Iterator[None]:
    """Say, of a run that is cut off, that it can go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, DamcliError):
        if kept.holds:
            console.note(f"{kept.holds} scored inputs are kept: the same command goes on from there")
        raise


def _by(want: Asked, rows: Iterable[Row]) -> Iterable[Row]:
    """Return the rows of what is asked for, from those of scans; what has no id is said."""
    from damcli.bundle import by_unit

    if want.by == "scan":
        return rows
    made = by_unit.rows(want.by, rows, want.reduce)
    if made.alone:
        fix = f"--metadata CSV may name it in a column {want.by}"
        console.warn(f"{made.alone} scans have no {want.by} id: each has a row of its own ({fix})")
    if made.skipped:
        console.note(f"{made.skipped} files are no image and of no {want.by}: they have no row in this table")
    return made
