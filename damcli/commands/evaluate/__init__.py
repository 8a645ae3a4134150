"""`damcli evaluate`: AUROC per finding, with intervals, of a run, a model or a table of scores."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, files, project
from damcli.commands import options, views
from damcli.commands.evaluate import outoffold, subjects
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from damcli.report.evaluation import Evaluation

SPLIT = "valid"
TABLES = (".csv", ".tsv", ".parquet")


def evaluate(
    subject: Path, against: Path, split: str | None = None, device: str = "auto", tta: int | None = None
) -> Evaluation:
    """Compare the scores of a run, a model or a table with the certain labels of a dataset's split, or of a table.

    `split` is `valid` unless said otherwise; on its own dataset a run also has the split `tune`, and one that fold k
    was held out of has `fold-k`, which is then what it is evaluated on; folds trained together are, out of fold, on
    all of them. Scores in tables are joined to scans by their path. With `tta` a run's score is the mean over so many
    views of a scan (`training.scoring.views`). Writes nothing. Raises `UsageError` for what is not there, `DataError`
    for what does not fit together.
    """
    kind = check(subject, against, split, tta)
    if not against.is_dir():
        return subjects.table_on_labels(subject, against)
    if kind == "folds":
        return outoffold.evaluation(subject, against)
    split = split or default_split(kind, subject, against)
    if kind == "run":
        return subjects.run(subject, against, split, device, tta)
    if kind == "model":
        return subjects.model(subject, against, split, device)
    return subjects.table(subject, against, split)


def default_split(kind: str, subject: Path, against: Path) -> str:
    """Return what a subject of this kind is evaluated on unless said otherwise."""
    if kind == "folds":
        return outoffold.SPLIT
    if kind == "run" and is_own(subject, against):
        from damcli.training.checkpoint import read_run

        return outoffold.split_of(read_run(subject)) or SPLIT
    return SPLIT


def check(subject: Path, against: Path, split: str | None, tta: int | None = None) -> str:
    """Return the subject's kind (`kind_of`). Raises `UsageError` where it cannot be evaluated on `against`."""
    kind = kind_of(subject)
    if not against.exists():
        raise UsageError("there is no such dataset or table of labels", where=against, fix="name a DATASET or a .csv")
    if kind == "folds":
        outoffold.check(subject, split)
    views.check(tta, kind)
    if against.is_dir():
        return kind
    if kind != "scores":
        raise UsageError(
            f"a {'run' if kind == 'folds' else kind} needs images to score, and a table of labels has none",
            where=against,
            fix="name a DATASET; or score the scans first (damcli predict) and evaluate these scores",
        )
    if split is not None:
        raise UsageError("a table of labels has no splits", where=against, fix="leave out --split")
    return kind


def kind_of(subject: Path) -> str:
    """Return what a path is evaluated as: `run`, `folds`, `model` or `scores`. Raises `UsageError` for others."""
    if subject.is_dir():
        if (subject / "dataset.json").is_file():
            fix = f"name a run, a model or scores first: damcli evaluate RUN {subject}"
            raise UsageError("this is a dataset, to evaluate on", where=subject, fix=fix)
        return "folds" if (subject / "members.json").is_file() else "run"
    if not subject.exists():
        raise UsageError("there is no such run, model or table of scores", where=subject)
    if subject.suffix == ".onnx":
        return "model"
    if subject.suffix in TABLES:
        return "scores"
    raise UsageError("this cannot be evaluated", where=subject, fix="name a run's folder, a .onnx, .csv or .parquet")


def is_own(run: Path, dataset: Path) -> bool:
    """Return whether a run was trained on this dataset, as it now is. Raises `DataError` if `run` is no run."""
    from damcli.data.store import read_info
    from damcli.training.checkpoint import read_run

    with suppress(DataError):
        return read_info(dataset).fingerprint == read_run(run).facts.fingerprint
    return False


def save(evaluation: Evaluation, folder: Path) -> None:
    """Write the scores, the ROC curves and, last, `metrics.json` into `folder`, each whole or not at all."""
    from damcli.data import scores
    from damcli.report import plots

    truth = evaluation.truth
    name = f"scores-{truth.split}.parquet" if truth.split else "scores.parquet"
    scores.write(folder / name, truth.ids, truth.findings, evaluation.scores)
    title = f"{evaluation.subject.name} on {truth.path.name}" + (f", {truth.split}" if truth.split else "")
    plots.roc({title: evaluation.lines()}, folder / "roc.png")
    files.write_json(folder / "metrics.json", evaluation.document())


def _default_dataset(subject: Path) -> Path:
    from damcli.training import group
    from damcli.training.checkpoint import read_run

    if kind_of(subject) == "folds":
        dataset = group.read(subject).dataset
        console.note(f"took the dataset {dataset}, which the members were trained on")
        return dataset
    if kind_of(subject) == "run":
        dataset = read_run(subject).dataset
        if is_own(subject, dataset):
            with suppress(ValueError):
                dataset = dataset.relative_to(Path.cwd())
            console.note(f"took the dataset {dataset}, which the run was trained on")
            return dataset
    newest = project.newest_dataset()
    console.note(f"took the dataset {newest}, the newest")
    return newest


def _default_folder(kind: str, subject: Path, against: Path, split: str, tta: int | None) -> Path:
    if kind == "folds":
        return subject / f"evaluation-{split}"
    if kind != "run":
        return Path("evaluation")
    # Figures on another dataset, or over several views, do not take the place of the run's own.
    dataset = "" if is_own(subject, against) else f"{against.name}-"
    return subject / (f"evaluation-{dataset}{split}" + ("" if tta is None else f"-tta{tta}"))


def command(
    subject: Annotated[
        Path | None, typer.Argument(metavar="RUN|MODEL|SCORES", help="Default: the newest run under runs/.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATASET|LABELS",
            help="Default: the dataset the run was trained on, else the newest under data/.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Of the dataset; of a run also tune. [default: valid, or the fold held out]"),
    ] = None,
    tta: views.Number = None,
    output: options.Output = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """AUROC per finding, with 95 % intervals, and ROC curves.

    Writes metrics.json, roc.png and the scores into RUN/evaluation-SPLIT (with --tta N: SPLIT-ttaN), else into
    ./evaluation. Tables of scores (csv, parquet) and of labels (csv) are joined by their column `path`, other columns
    by name.

    Example: damcli evaluate runs/aucm data/chexpert --split valid
    """
    options.apply(quiet, verbose, json)
    options.check_device(device)
    if subject is None:
        subject = project.newest_run()
        console.note(f"took the run {subject}, the newest")
    against = against or _default_dataset(subject)
    kind = check(subject, against, split, tta)
    shown = split or default_split(kind, subject, against)
    folder = output or _default_folder(kind, subject, against, shown, tta)
    existed = folder.exists()
    try:
        with files.only_writer(folder):
            evaluation = evaluate(subject, against, split, device, tta)
            save(evaluation, folder)
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise
    show(evaluation)
    console.note(f"wrote {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    onwards = dict.fromkeys(("run", "folds"), f"damcli export {subject}" + (f" --tta {tta}" if tta else ""))
    then = {**onwards, "model": f"damcli predict SCANS --model {subject}"}
    console.next_step(then.get(kind, "damcli info runs"))


def show(evaluation: Evaluation) -> None:
    """Show the figures and what a reader of them has to know."""
    from damcli.report import tables

    if console.state.json:
        console.emit_json(evaluation.document())
    console.table(evaluation.title, tables.AUROC_COLUMNS, evaluation.rows())
    for note in evaluation.notes:
        console.result(note)
