"""`damcli evaluate`: AUROC per finding, with intervals, of a run, a model or a table of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, files, project
from damcli.commands import options
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.data.images import Contract
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth

SPLIT = "valid"
TABLES = (".csv", ".tsv", ".parquet")
MODEL_BATCH = 32


def evaluate(subject: Path, against: Path, split: str | None = None, device: str = "auto") -> Evaluation:
    """Compare the scores of a run, a model or a table with the certain labels of a dataset's split, or of a table.

    `split` is `valid` unless said otherwise; on its own dataset a run also has the split `tune`. Scores in tables are
    joined to scans by their path. Writes nothing. Raises `UsageError` for what is not there, `DataError` for what does
    not fit together.
    """
    kind = check(subject, against, split)
    if not against.is_dir():
        return _table_on_labels(subject, against)
    return {"run": _run, "model": _model, "scores": _table}[kind](subject, against, split or SPLIT, device)


def check(subject: Path, against: Path, split: str | None) -> str:
    """Return the subject's kind (`kind_of`). Raises `UsageError` where it cannot be evaluated on `against`."""
    kind = kind_of(subject)
    if not against.exists():
        raise UsageError("there is no such dataset or table of labels", where=against, fix="name a DATASET or a .csv")
    if against.is_dir():
        return kind
    if kind != "scores":
        raise UsageError(
            f"a {kind} needs images to score, and a table of labels has none",
            where=against,
            fix="name a DATASET; or score the scans first (damcli predict) and evaluate these scores",
        )
    if split is not None:
        raise UsageError("a table of labels has no splits", where=against, fix="leave out --split")
    return kind


def kind_of(subject: Path) -> str:
    """Return what a path is evaluated as: `run`, `model` or `scores`. Raises `UsageError` for anything else."""
    if subject.is_dir():
        if (subject / "dataset.json").is_file():
            fix = f"name a run, a model or scores first: damcli evaluate RUN {subject}"
            raise UsageError("this is a dataset, to evaluate on", where=subject, fix=fix)
        return "run"
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


def _run(run: Path, against: Path, split: str, device: str) -> Evaluation:
    import torch

    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Truth
    from damcli.training import checkpoint, launch, scoring

    info = checkpoint.read_run(run)
    dataset = Dataset.open(against)
    own = dataset.info.fingerprint == info.facts.fingerprint
    rows = _rows(dataset, split, info.tune_ids if own else None)
    truth = Truth.of_dataset(dataset, split, rows)
    _same_contract(info.contract, dataset, run)
    findings, remarks = _shared(info.findings, truth, run)
    place = torch.device(launch.accelerator(device))
    network, _ = checkpoint.load_network(run, "best")
    batches = scoring.score(network.to(place), dataset, rows, device=place)
    scores = _gather((scored for _, scored in batches), scoring.batches_of(len(rows)))
    columns = [info.findings.index(finding) for finding in findings]
    selection = _selection("run", own, split)
    return Evaluation("run", run, truth.part(findings), scores[:, columns], selection, remarks=remarks)


def _model(path: Path, against: Path, split: str, device: str) -> Evaluation:
    from damcli.bundle.runtime import Model
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth

    dataset = Dataset.open(against)
    rows = _rows(dataset, split)
    truth = Truth.of_dataset(dataset, split, rows)
    model = Model.open(path, device)
    if model.fell_back:
        console.warn(f"scoring on the CPU: {model.provider_note}")
    _same_contract(model.info.contract, dataset, path)
    findings, remarks = _shared(model.info.findings, truth, path)
    pieces = [rows[start : start + MODEL_BATCH] for start in range(0, len(rows), MODEL_BATCH)]
    scores = _gather((model.score(dataset.read(piece)) for piece in pieces), len(pieces))
    columns = [model.info.findings.index(finding) for finding in findings]
    own = {member.dataset == dataset.info.fingerprint for member in model.info.members}
    if own == {True, False} and split != "train":
        note = "some of the model's members were trained on other datasets; whether they share patients is not known"
        selection = Selection(None, note)
    else:
        selection = _selection("model", True in own, split)
    return Evaluation("model", path, truth.part(findings), scores[:, columns], selection, remarks=remarks)


def _table(path: Path, against: Path, split: str, device: str) -> Evaluation:
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Truth

    dataset = Dataset.open(against)
    rows = _rows(dataset, split)
    files = dataset.manifest["path"].gather(rows).to_list()
    return _joined(ScanTable.read(path), Truth.of_dataset(dataset, split, rows), files)


def _table_on_labels(path: Path, labels: Path) -> Evaluation:
    from damcli.data.scores import ScanTable
    from damcli.report.evaluation import Truth

    scores, table = ScanTable.read(path), ScanTable.read(labels)
    shared = [name for name in table.names if name in scores.names]
    if not shared:
        raise _nothing_shared(scores.names, table.names, path)
    return _joined(scores, Truth.of_labels(labels, table.ids, shared, table.labels(shared), table.patients))


def _joined(table: ScanTable, truth: Truth, files: Sequence[str] = ()) -> Evaluation:
    from damcli.report.evaluation import Evaluation, Selection

    findings, remarks = _shared(table.names, truth, table.path)
    scores, failed, unused = table.scores(truth.ids, findings, files)
    if unused:
        remarks += (f"{unused} rows of {table.path.name} belong to none of these scans and are left out",)
    return Evaluation(
        "scores",
        table.path,
        truth.part(findings, ~failed),
        scores[~failed],
        Selection(None, "how these scores came about, and on which scans, is not known"),
        failed=int(failed.sum()),
        remarks=remarks,
    )


def _rows(dataset: Dataset, split: str, tune: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
    """Return the rows of a split; `tune` are the ids of the run's own part, where it has one in this dataset."""
    import numpy as np

    if split == "tune" and tune is not None:
        return np.flatnonzero(dataset.manifest["id"].is_in(list(tune)).to_numpy()).astype(np.int64)
    known = [*dataset.info.splits, *(["tune"] if tune is not None else [])]
    if split not in known:
        raise UsageError(
            f"the dataset has no split {split!r}", where=dataset.path, fix=f"--split takes: {', '.join(known)}"
        )
    return dataset.rows(split)


def _same_contract(contract: Contract, dataset: Dataset, where: Path) -> None:
    """Raise `DataError` unless the scans were decoded and resized as in training."""
    if contract != dataset.info.contract:
        raise DataError(
            f"it was trained on scans prepared otherwise ({contract}) than this dataset's ({dataset.info.contract})",
            where=where,
            fix="prepare the dataset again with"
            f" --size {contract.size} --channels {contract.channels} --fit {contract.fit}"
            + ("" if contract.frame is None else f" --frame {contract.frame}")
            + ("" if contract.film == "grey" else f" --film {contract.film}"),
        )


def _shared(names: Sequence[str], truth: Truth, where: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the findings that both have, in the truth's order, and a remark on those that go without scores."""
    shared = [finding for finding in truth.findings if finding in names]
    if not shared:
        raise _nothing_shared(names, truth.findings, where)
    missing = [finding for finding in truth.findings if finding not in names]
    return shared, (f"there are no scores of {', '.join(missing)}",) if missing else ()


def _nothing_shared(names: Sequence[str], findings: Sequence[str], where: Path) -> DataError:
    scores, labels = (", ".join(columns) or "nothing" for columns in (names, findings))
    return DataError(
        f"no finding is in both: scores of {scores}; labels of {labels}",
        where=where,
        fix="give the columns of scores the names of the findings",
    )


def _gather(batches: Iterable[npt.NDArray[np.float32]], total: int) -> npt.NDArray[np.float32]:
    import numpy as np

    return np.concatenate(list(console.track(batches, total, "scoring", unit="batches")))


def _selection(kind: str, own: bool, split: str) -> Selection:
    from damcli.report.evaluation import Selection

    if not own:
        return Selection(None, f"the {kind} was trained on another dataset; whether they share patients is not known")
    if split == "tune":
        return Selection(True, f"the {kind}'s best epoch was chosen on these scans, so the figures flatter it")
    if split == "train":
        return Selection(True, f"the {kind} was trained on these scans, so the figures flatter it")
    return Selection(False, f"the {kind} was neither trained nor selected on these scans")


def _default_dataset(subject: Path) -> Path:
    from damcli.training.checkpoint import read_run

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


def _default_folder(kind: str, subject: Path, against: Path, split: str) -> Path:
    if kind != "run":
        return Path("evaluation")
    # Figures on another dataset do not take the place of those on the run's own.
    return subject / (f"evaluation-{split}" if is_own(subject, against) else f"evaluation-{against.name}-{split}")


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
        str | None, typer.Option("--split", help="Of the dataset; for a run also tune. [default: valid]")
    ] = None,
    output: options.Output = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """AUROC per finding, with 95 % intervals, and ROC curves.

    Writes metrics.json, roc.png and the scores into RUN/evaluation-SPLIT, else into ./evaluation. Tables of scores
    (csv, parquet) and of labels (csv) are joined by their column `path`, other columns by name.

    Example: damcli evaluate runs/aucm data/chexpert --split valid
    """
    options.apply(quiet, verbose, json)
    options.check_device(device)
    if subject is None:
        subject = project.newest_run()
        console.note(f"took the run {subject}, the newest")
    against = against or _default_dataset(subject)
    kind = check(subject, against, split)
    folder = output or _default_folder(kind, subject, against, split or SPLIT)
    existed = folder.exists()
    try:
        with files.only_writer(folder):
            evaluation = evaluate(subject, against, split, device)
            save(evaluation, folder)
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise
    _show(evaluation)
    console.note(f"wrote {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    then = {"run": f"damcli export {subject}", "model": f"damcli predict SCANS --model {subject}"}
    console.next_step(then.get(kind, "damcli info runs"))


def _show(evaluation: Evaluation) -> None:
    from damcli.report import tables

    if console.state.json:
        console.emit_json(evaluation.document())
    console.table(evaluation.title, tables.AUROC_COLUMNS, evaluation.rows())
    for note in evaluation.notes:
        console.result(note)
