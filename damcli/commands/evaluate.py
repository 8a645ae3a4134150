"""`damcli evaluate`: AUROC per finding, with intervals, of a run, a model or a table of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damcli import console, files, project
from damcli.commands import options, outoffold, views
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.data.images import Contract
    from damcli.data.metadata import Encoding
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth

SPLIT = "valid"
TABLES = (".csv", ".tsv", ".parquet")
MODEL_BATCH = 32


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
        return _table_on_labels(subject, against)
    if kind == "folds":
        return outoffold.evaluation(subject, against)
    split = split or default_split(kind, subject, against)
    if kind == "run":
        return _run(subject, against, split, device, tta)
    return {"model": _model, "scores": _table}[kind](subject, against, split, device)


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


def _run(run: Path, against: Path, split: str, device: str, tta: int | None) -> Evaluation:
    import torch

    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Truth
    from damcli.training import checkpoint, launch, metadata, scoring

    info = checkpoint.read_run(run)
    dataset = Dataset.open(against)
    own = dataset.info.fingerprint == info.facts.fingerprint
    if own and split == outoffold.split_of(info):
        rows = outoffold.rows(info, dataset)
    else:
        rows = _rows(dataset, split, info.tune_ids if own else None)
    truth = Truth.of_dataset(dataset, split, rows)
    _same_contract(info.contract, dataset, run)
    findings, remarks = _shared(info.findings, truth, run)
    remarks += views.remark([tta])
    maps = None if tta is None else scoring.views(info.recipe, tta, run)
    place = torch.device(launch.accelerator(device))
    network, _ = checkpoint.load_network(run, "best")
    batches = scoring.score(network.to(place), dataset, rows, device=place, views=maps)
    scores = _gather((scored for _, scored in batches), scoring.batches_of(len(rows)))
    if own_metadata := metadata.load(run, info.recipe):
        scores = own_metadata.mixed(scores, dataset, rows)
        remarks += _metadata_remarks(own_metadata.encoding, dataset)
    columns = [info.findings.index(finding) for finding in findings]
    folded = own and info.facts.fold is not None
    selection = outoffold.selection(info, dataset, rows) if folded else _selection("run", own, split)
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
    remarks += views.remark(member.views for member in model.info.members)
    pieces = [rows[start : start + MODEL_BATCH] for start in range(0, len(rows), MODEL_BATCH)]
    encoding = model.info.encoding
    table = encoding and encoding.encode(dataset.manifest, against)
    remarks += _metadata_remarks(encoding, dataset) if encoding else ()
    batches = (model.score(dataset.read(piece), None if table is None else table[piece]) for piece in pieces)
    scores = _gather(batches, len(pieces))
    columns = [model.info.findings.index(finding) for finding in findings]
    own = {member.dataset == dataset.info.fingerprint for member in model.info.members}
    if own == {True, False} and split != "train":
        note = "some of the model's members were trained on other datasets; whether they share patients is not known"
        selection = Selection(None, note)
    else:
        selection = outoffold.of_model(dataset, rows, _selection("model", True in own, split))
    return Evaluation("model", path, truth.part(findings), scores[:, columns], selection, remarks=remarks)


def _metadata_remarks(encoding: Encoding, dataset: Dataset) -> tuple[str, ...]:
    names = list(dict.fromkeys(encoding.names))
    absent = [name for name in names if name not in dataset.manifest.columns]
    missing = (f"the dataset has no {', '.join(absent)}: it counted as missing for all scans",) if absent else ()
    return (f"the scores are those of the images mixed with those of {', '.join(names)}", *missing)


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
    onwards = dict.fromkeys(("run", "folds"), f"damcli export {subject}")
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
