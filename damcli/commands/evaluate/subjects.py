"""What `damcli evaluate` compares with labels: the scores of a run, of a model, or of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from damcli import console
from damcli.commands import views
from damcli.commands.evaluate import outoffold
from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.data.images import Contract
    from damcli.data.metadata import Encoding
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth

MODEL_BATCH = 32
SPLIT = "valid"
TABLES = (".csv", ".tsv", ".parquet")


def evaluate(
    subject: Path, on: Path, split: str | None = None, device: str = "auto", tta: int | None = None
) -> Evaluation:
    """Compare the scores of a run, a model or a table with the certain labels of a dataset's split, or of a table.

    `split` is `valid` unless said otherwise; on its own dataset a run also has the split `tune`, and one that fold k
    was held out of has `fold-k`, which is then what it is evaluated on; folds trained together are, out of fold, on
    all of them. Scores in tables are joined to scans by their path. With `tta` a run's score is the mean over so many
    views of a scan (`training.scoring.views`). Writes nothing. Raises `UsageError` for what is not there, `DataError`
    for what does not fit together.
    """
    kind = check(subject, on, split, tta)
    if not on.is_dir():
        return _table_on_labels(subject, on)
    if kind == "folds":
        return outoffold.evaluation(subject, on)
    split = split or default_split(kind, subject, on)
    if kind == "run":
        return _run(subject, on, split, device, tta)
    if kind == "model":
        return _model(subject, on, split, device)
    return _table(subject, on, split)


def default_split(kind: str, subject: Path, on: Path) -> str:
    """Return what a subject of this kind is evaluated on unless said otherwise."""
    if kind == "folds":
        return outoffold.SPLIT
    if kind == "run" and is_own(subject, on):
        from damcli.training.checkpoint import read_run

        return outoffold.split_of(read_run(subject)) or SPLIT
    return SPLIT


def check(subject: Path, on: Path, split: str | None, tta: int | None = None) -> str:
    """Return the subject's kind (`kind_of`). Raises `UsageError` where it cannot be evaluated on `on`."""
    kind = kind_of(subject)
    if not on.exists():
        raise UsageError("there is no such dataset or table of labels", where=on, fix="name a DATASET or a .csv")
    if kind == "folds":
        outoffold.check(subject, split)
    views.check(tta, kind)
    if on.is_dir():
        return kind
    if kind != "scores":
        raise UsageError(
            f"a {'run' if kind == 'folds' else kind} needs images to score, and a table of labels has none",
            where=on,
            fix="name a DATASET; or score the scans first (damcli predict) and evaluate these scores",
        )
    if split is not None:
        raise UsageError("a table of labels has no splits", where=on, fix="leave out --split")
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


def _run(path: Path, on: Path, split: str, device: str, tta: int | None) -> Evaluation:
    """Score a dataset's split with a run's best network, over `tta` views of each scan."""
    import torch

    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Truth
    from damcli.training import checkpoint, launch, metadata, scoring

    info = checkpoint.read_run(path)
    dataset = Dataset.open(on)
    own = dataset.info.fingerprint == info.facts.fingerprint
    if own and split == outoffold.split_of(info):
        rows = outoffold.rows(info, dataset)
    else:
        rows = rows_of(dataset, split, info.tune_ids if own else None)
    truth = Truth.of_dataset(dataset, split, rows)
    _same_contract(info.contract, dataset, path)
    findings, remarks = _shared(info.findings, truth, path)
    remarks += views.remark([tta])
    maps = None if tta is None else scoring.views(info.recipe, tta, path)
    place = torch.device(launch.accelerator(device))
    network, _ = checkpoint.load_network(path, "best")
    batches = scoring.score(network.to(place), dataset, rows, device=place, views=maps)
    scores = _gather((scored for _, scored in batches), scoring.batches_of(len(rows)))
    if own_metadata := metadata.load(path, info.recipe):
        scores = own_metadata.mixed(scores, dataset, rows)
        remarks += _metadata_remarks(own_metadata.encoding, dataset)
    columns = [info.findings.index(finding) for finding in findings]
    folded = own and info.facts.fold is not None
    selection = outoffold.selection(info, dataset, rows) if folded else _selection("run", own, split)
    return Evaluation("run", path, truth.part(findings), scores[:, columns], selection, remarks=remarks, views=tta or 1)


def _model(path: Path, on: Path, split: str, device: str) -> Evaluation:
    """Score a dataset's split with an exported model."""
    from damcli.bundle.runtime import Model
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection, Truth

    dataset = Dataset.open(on)
    rows = rows_of(dataset, split)
    truth = Truth.of_dataset(dataset, split, rows)
    opened = Model.open(path, device)
    if opened.fell_back:
        console.warn(f"{opened.provider_note} (see damcli info doctor)")
    _same_contract(opened.info.contract, dataset, path)
    findings, remarks = _shared(opened.info.findings, truth, path)
    remarks += views.remark(member.views for member in opened.info.members)
    seen = max(member.views for member in opened.info.members)
    pieces = [rows[start : start + MODEL_BATCH] for start in range(0, len(rows), MODEL_BATCH)]
    encoding = opened.info.encoding
    cells = encoding and encoding.encode(dataset.manifest, on)
    remarks += _metadata_remarks(encoding, dataset) if encoding else ()
    batches = (opened.score(dataset.read(piece), None if cells is None else cells[piece]) for piece in pieces)
    scores = _gather(batches, len(pieces))
    columns = [opened.info.findings.index(finding) for finding in findings]
    own = {member.dataset == dataset.info.fingerprint for member in opened.info.members}
    if own == {True, False} and split != "train":
        note = "some of the model's members were trained on other datasets; whether they share patients is not known"
        selection = Selection(None, note)
    else:
        selection = outoffold.of_model(opened.info, dataset, rows, _selection("model", True in own, split))
    return Evaluation("model", path, truth.part(findings), scores[:, columns], selection, remarks=remarks, views=seen)


def _metadata_remarks(encoding: Encoding, dataset: Dataset) -> tuple[str, ...]:
    names = list(dict.fromkeys(encoding.names))
    absent = [name for name in names if name not in dataset.manifest.columns]
    missing = (f"the dataset has no {', '.join(absent)}: it counted as missing for all scans",) if absent else ()
    return (f"the scores are those of the images mixed with those of {', '.join(names)}", *missing, *encoding.leaks)


def _table(path: Path, on: Path, split: str) -> Evaluation:
    """Join a table of scores to a dataset's split by the scans' paths."""
    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Truth

    dataset = Dataset.open(on)
    rows = rows_of(dataset, split)
    files = dataset.manifest["path"].gather(rows).to_list()
    truth = Truth.of_dataset(dataset, split, rows)
    return joined(ScanTable.read(path).named(truth.findings), truth, files)


def _table_on_labels(path: Path, labels: Path) -> Evaluation:
    """Join a table of scores to a table of labels by the scans' paths, or by the studies that they are of."""
    from damcli.data.scores import ScanTable
    from damcli.data.studies import StudyTable, read_labels
    from damcli.report.evaluation import Truth

    table = read_labels(labels)
    scores = ScanTable.read(path).named(table.names)
    shared = [name for name in table.names if name in scores.names]
    if not shared:
        raise _nothing_shared(scores.names, table.names, path)
    raw, frame = table.labels(shared), table.frame
    others = frame.select(name for name in table.names if name not in shared)
    if isinstance(table, StudyTable):
        ids, studies, patients, rows = table.scans(scores)
        raw, others = raw[rows], others[rows] if others.width else others
    else:
        ids = table.ids
        patients, studies = (_units(column, table, scores) for column in ("patient", "study"))
    metadata = others if others.width else None
    return joined(scores, Truth.of_labels(labels, ids, shared, raw, patients, studies, metadata))


def _units(column: str, labels: ScanTable, scores: ScanTable) -> list[str] | None:
    """Return whose the labels' scans are, as the labels say, else the scores (predict writes such columns)."""
    from damcli.data.scores import id_column, spelled

    own, theirs = (id_column(table.frame, column, table.path) for table in (labels, scores))
    if own is not None or theirs is None:
        return own
    named = dict(zip(map(spelled, scores.ids), theirs, strict=True))
    return [named.get(spelled(scan), "") for scan in labels.ids]


def joined(table: ScanTable, truth: Truth, files: Sequence[str] = ()) -> Evaluation:
    """Return a table's scores of the scans of `truth`, which are joined by path, or by that of their `files`."""
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


def rows_of(dataset: Dataset, split: str, tune: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
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
