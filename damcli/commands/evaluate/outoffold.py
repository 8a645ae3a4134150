"""What `damcli evaluate` makes of folds: the scores of all members together, and a run on the fold it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from damcli.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from damcli.bundle.schema import ModelInfo
    from damcli.data.store import Dataset
    from damcli.report.evaluation import Evaluation, Selection
    from damcli.training.folder import RunInfo

SPLIT = "folds"
NOTE = "each scan was scored by a network that was neither trained nor selected on it"


def check(path: Path, split: str | None) -> None:
    """Raise `UsageError` unless the folder of members holds folds, and `split` is theirs; `DataError` if unfinished."""
    from damcli.training import group

    members = group.read(path)
    if members.group.kind == "tuning":
        fix = f"damcli evaluate {path / group.WINNER}"
        raise UsageError("this is a search: its winner can be evaluated", where=path, fix=fix)
    if members.group.kind == "ensemble":
        fix = f"damcli export {path} -o NAME.onnx, then damcli evaluate NAME.onnx"
        raise UsageError("an ensemble is evaluated as the one model that it becomes", where=path, fix=fix)
    if split not in (None, SPLIT):
        raise UsageError(
            f"folds are evaluated on what each has not seen, not on {split}",
            where=path,
            fix=f"leave out --split, or name one member: damcli evaluate {path / members.group.members[0].folder}",
        )
    if not (path / group.SCORES).is_file():
        fix = f"damcli train --resume {path}"
        raise DataError("not all folds are trained yet, so there are no scores", where=path, fix=fix)


def evaluation(path: Path, on: Path) -> Evaluation:
    """Compare the scores out of fold with the certain labels; the AUROCs within folds are among the remarks.

    Raises `DataError` for another dataset than the members' own.
    """
    import numpy as np

    from damcli.data.scores import ScanTable
    from damcli.data.store import Dataset
    from damcli.metrics import within_folds
    from damcli.report import tables
    from damcli.report.evaluation import Evaluation, Selection, Truth
    from damcli.training import group

    members = group.read(path)
    dataset = Dataset.open(on)
    if members.group.fingerprint != dataset.info.fingerprint:
        raise DataError(
            "these scores out of fold are of another dataset",
            where=on,
            fix=f"name the members' own ({members.dataset}), or evaluate one of them",
        )
    table = ScanTable.read(path / group.SCORES)
    folds = dict(zip(table.ids, table.frame["fold"].to_list(), strict=True))
    rows = np.flatnonzero(dataset.manifest["id"].is_in(list(folds)).to_numpy()).astype(np.int64)
    truth = Truth.of_dataset(dataset, SPLIT, rows)
    findings = [finding for finding in truth.findings if finding in table.names]
    truth = truth.part(findings)
    scores = table.scores(truth.ids, findings).scores
    numbers = [folds[name] for name in truth.ids]
    within, remarks = [], []
    for k, finding in enumerate(findings):
        mean, each = within_folds(truth.values[:, k], scores[:, k], numbers)
        within.append(f"{finding} {tables.in_words(mean)}")
        undefined = [f"fold {fold} ({part.undefined})" for fold, part in each.items() if part.undefined]
        if undefined:
            remarks.append(f"{finding} has no AUROC in {', '.join(undefined)}")
    remarks.insert(0, f"out of fold: {NOTE}")
    remarks.insert(1, f"mean of the AUROCs within each of {len(set(numbers))} folds, by DeLong: {', '.join(within)}")
    return Evaluation(SPLIT, path, truth, scores, Selection(False, NOTE), remarks=tuple(remarks))


def split_of(info: RunInfo) -> str | None:
    """Return what the fold that a run has not seen is called as a split; None for a run without folds.

    It is the run's default on its own dataset.
    """
    return None if info.facts.fold is None else f"fold-{info.facts.fold}"


def rows(info: RunInfo, dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the rows of the fold that a run has not seen."""
    from damcli.training import plan

    assert info.facts.fold is not None
    return plan.rows_of_folds(dataset, info.facts.fold)[1]


def of_model(info: ModelInfo, dataset: Dataset, rows: npt.NDArray[np.int64], unseen: Selection) -> Selection:
    """Return `unseen`, what is said of a model on a split that no run trains on, unless a member was trained on it.

    A member that one fold was held out of was trained on the others, `valid` among them where fold 0 is `valid`.
    """

    from damcli.report.evaluation import Selection
    from damcli.training import plan

    if unseen.used is not False:
        return unseen
    own = [member for member in info.members if member.dataset == dataset.info.fingerprint]
    folds = sorted({member.fold for member in own if member.fold is not None})
    trained_on = [set(plan.rows_of_folds(dataset, fold)[0].tolist()) for fold in folds]
    seen = sum(any(row in each for each in trained_on) for row in rows.tolist())
    if not seen:
        return unseen
    listed = ", ".join(map(str, folds))
    return Selection(
        True, f"members of the model that held out fold {listed} were trained on {seen} of these {len(rows)} scans"
    )


def selection(info: RunInfo, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Selection:
    """Say whether a run that one fold was held out of has seen some of these scans of its own dataset."""
    import numpy as np

    from damcli.report.evaluation import Selection
    from damcli.training import plan

    assert info.facts.fold is not None
    seen = int(np.isin(rows, plan.rows_of_folds(dataset, info.facts.fold)[0]).sum())
    if not seen:
        return Selection(False, "the run was neither trained nor selected on these scans")
    others = f"the run was trained on every fold but {info.facts.fold}, and its best epoch chosen on a part of them"
    return Selection(True, f"{others}: {seen} of these {len(rows)} scans, so the figures flatter it")
