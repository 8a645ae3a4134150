"""Ablations in small: what is easy and what is mislabelled is as said, and the table is that of its runs."""

import json

import numpy as np
import pytest

from damcli.cli import main
from damcli.data import splits
from damcli.reproduce import ablations, cells
from damcli.training import checkpoint, loop, plan, scoring


@pytest.fixture(scope="module")
def experiment(benchmark, small, tmp_path_factory):
    recipes = {loss: small(loss) for loss in ("ce", "aucs", "aucm")}
    return ablations.Experiment(benchmark, tmp_path_factory.mktemp("out"), recipes, "benchmark", 0.3, (0, 1))


@pytest.fixture(scope="module")
def rows(experiment):
    return [event for event in ablations.run(experiment, "cpu") if isinstance(event, ablations.Row)]


def test_noise_exchanges_labels_in_train_and_nowhere_else(benchmark):
    noisy = ablations.mislabelled(benchmark, seed=3)
    for kind in ("targets", "truth"):
        before, after = (getattr(d, kind)(np.arange(len(d.manifest)))[:, 0] for d in (benchmark, noisy))
        changed = np.flatnonzero(before != after)
        assert set(benchmark.manifest["split"].gather(changed)) == {"train"}
        assert len(changed) == 12
        assert (before[changed] == 1).sum() == 6  # a tenth of 60 positives
        assert before.sum() == after.sum()
    other = ablations.mislabelled(benchmark, seed=4)
    assert not np.array_equal(other.truth(other.rows("train")), noisy.truth(noisy.rows("train")))


@pytest.mark.slow
def test_easy_scans_are_those_ranked_most_surely_and_stay_on_one_side(experiment, rows, benchmark):
    seed, ranking = 1, experiment.ranking(1)
    plain = cells.thinned(benchmark, 0.3, seed)
    easy = ablations.with_easy(plain, ranking)
    again = [name for name in easy.manifest["id"].to_list() if name.endswith(" (again)")]
    assert len(easy.manifest) == len(plain.manifest) + len(again)
    trained = plan.make(ranking.recipe, plain).train
    network, _ = checkpoint.load_network(ranking.run, "best")
    scores = np.concatenate([part for _, part in scoring.score(network, plain, trained)])[:, 0]
    truth, ids = plain.truth(trained)[:, 0], np.array(plain.ids(trained))
    for label, sign in ((1, 1), (0, -1)):
        members = truth == label
        count = round(0.1 * members.sum())
        surest = set(ids[members][np.argsort(-sign * scores[members])][:count])
        assert surest == {name.removesuffix(" (again)") for name in again} & set(ids[members])
        assert len(surest) == count
    # Each copy has its own pixels' twin, and no twin is trained on while the other chooses the epoch.
    where = {name: row for row, name in enumerate(easy.manifest["id"].to_list())}
    for name in again:
        pair = np.array([where[name], where[name.removesuffix(" (again)")]])
        one, two = easy.read(pair)
        assert np.array_equal(one, two)
    train = easy.rows("train")
    for other in range(5):
        tune = splits.part(easy.patients(train), easy.truth(train), 0.1, other)
        kept = dict(zip(easy.ids(train), tune.tolist(), strict=True))
        assert all(kept[name] == kept[name.removesuffix(" (again)")] for name in again)


@pytest.mark.slow
def test_the_table_is_that_of_its_runs(experiment, rows):
    document = ablations.write(experiment, rows)
    assert [row["arm"] for row in document["rows"]] == [arm.name for arm in ablations.ARMS]
    recipes = {
        row["arm"]: checkpoint.load_network(row_.runs[0])[1].recipe.stage2
        for row, row_ in zip(document["rows"], rows, strict=True)
    }
    assert recipes["AUC-M, BSN off"].score == "sigmoid"
    assert recipes["AUC-M"].score == "bsn"
    assert (recipes["AUC-M, α unconstrained"].nonnegative, recipes["AUC-M"].nonnegative) == (False, True)
    assert recipes["AUC-S, noisy data"].loss == "aucs"
    text = (experiment.output / "ablations.md").read_text(encoding="utf-8")
    values = {row.arm.name: [e.value for e in row.test] for row in rows}
    for row in rows:
        mine = values[row.arm.name]
        assert f"| {row.arm.name} | {np.mean(mine):.3f} ± {np.std(mine, ddof=1):.3f} |" in text
        if row.arm.against:
            drops = np.subtract(values[row.arm.against], mine)
            assert ablations.drop(row, rows) == f"{drops.mean():+.3f} ± {drops.std(ddof=1):.3f}"
    again = [event for event in ablations.run(experiment, "cpu") if not isinstance(event, ablations.Row)]
    assert not again, "all was trained"


@pytest.mark.slow
def test_alpha_is_free_where_it_is_unconstrained(benchmark, small, tmp_path):
    """With a margin that is soon met α turns negative; constrained it stops at 0."""
    lowest = {}
    for nonnegative in (True, False):
        recipe = small("aucm").value
        stage = recipe.stage2.model_copy(
            update={"nonnegative": nonnegative, "margin": 0.01, "score": "sigmoid", "form": "conditional", "epochs": 6}
        )
        run = tmp_path / str(nonnegative)
        list(loop.train(recipe.model_copy(update={"stage2": stage}), benchmark, run, device="cpu"))
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        lowest[nonnegative] = min(r["alpha"][0] for r in records if r["event"] == "step")
    assert lowest[True] == 0
    assert lowest[False] < 0


def test_from_the_command_line(benchmark, tmp_path, capsys):
    arguments = ["reproduce", "ablations", str(benchmark.path), "-o", str(tmp_path / "out"), "--seeds", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run", "--json"])
    assert not ended.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["arms"] == [arm.name for arm in ablations.ARMS]
    assert document["steps"] == 9 * 100  # nine runs of 100 epochs of one batch
    assert not (tmp_path / "out").exists()
