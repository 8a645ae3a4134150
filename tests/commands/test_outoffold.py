"""What is said of a model whose members each held out another fold, on scans that some of them were trained on."""

from types import SimpleNamespace

import pytest

from damcli.commands.evaluate import outoffold
from damcli.data.store import Dataset
from damcli.report.evaluation import Selection

UNSEEN = Selection(False, "the model was neither trained nor selected on these scans")


@pytest.fixture(scope="module")
def folded(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("folded") / "dataset", scans=60, folds=3))


@pytest.mark.parametrize(
    ("folds", "seen"),
    [([None], False), ([1], False), ([0], True), ([1, 2], True)],
    ids=["no fold held out", "held out", "another one held out", "held out by one of two"],
)
def test_a_member_that_was_trained_on_a_fold_is_said(folded, folds, seen):
    rows = (folded.manifest["fold"] == 1).arg_true().to_numpy()
    members = [SimpleNamespace(dataset=folded.info.fingerprint, fold=fold) for fold in folds]
    found = outoffold.of_model(SimpleNamespace(members=members), folded, rows, UNSEEN)
    assert found.used is seen
    if seen:
        assert f"were trained on {len(rows)} of these {len(rows)} scans" in found.note
