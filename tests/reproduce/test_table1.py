"""Table 1 in small: its figures are those of its runs, the test split chooses nothing, and it can be killed."""

import json
from contextlib import closing

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from damcli.cli import main
from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.reproduce import cells, table1
from damcli.training.events import Step

GRID = {**table1.GRID, "gamma": (0.01, 0.002), "margin": (0.3,), "focal_alpha": (0.5,), "focal_gamma": (1.0, 2.0)}
LOSSES = ("ce", "focal", "aucs", "aucm")


@pytest.fixture(scope="module")
def make(benchmark, small):
    def experiment(output, dataset=benchmark, losses=LOSSES, seeds=(0, 1), imratio=0.2, grid=GRID):
        recipes = {loss: small(loss) for loss in losses}
        return table1.Experiment(dataset, output, recipes, "benchmark", imratio, seeds, grid)

    return experiment


def finish(experiment):
    rows = [event for event in table1.run(experiment, "cpu") if isinstance(event, table1.Row)]
    return table1.write(experiment, rows)


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    experiment = make(tmp_path_factory.mktemp("whole"))
    return experiment, finish(experiment)


def test_every_figure_is_that_of_its_runs(whole, benchmark):
    experiment, document = whole
    rows = benchmark.rows("test")
    truth = benchmark.truth(rows)[:, 0]
    text = (experiment.output / "table1.md").read_text(encoding="utf-8")
    for row in document["rows"]:
        tuned = [
            (cell.tuned, -n)
            for n, cell in enumerate(c for c in experiment.searched() if f"/{row['loss']}/" in str(c.run))
        ]
        best = -max(tuned)[1]
        assert row["chosen"] == experiment.points(row["loss"])[best]
        aurocs = []
        for cell in row["cells"]:
            scores = pl.read_parquet(f"{cell['run']}/scores-test.parquet")
            assert scores["path"].to_list() == benchmark.ids(rows)
            aurocs.append(roc_auc_score(truth, scores["pneumonia"].to_numpy()))
            assert cell["test_auroc"]["value"] == pytest.approx(aurocs[-1], abs=1e-12)
            assert cell["test_auroc"]["low"] <= aurocs[-1] <= cell["test_auroc"]["high"]
        expected = f"| {table1.LOSSES[row['loss']]} | {np.mean(aurocs):.3f} ± {np.std(aurocs, ddof=1):.3f} | – |"
        assert expected in text


def test_the_baselines_train_by_sgd_and_the_auc_losses_by_pesg(make, tmp_path):
    experiment = make(tmp_path)
    optimizers = {
        loss: [stage.optimizer for _, stage in experiment.cell(loss, 0, experiment.points(loss)[0]).recipe.stages()]
        for loss in LOSSES
    }
    assert optimizers == {"ce": ["sgd"], "focal": ["sgd"], "aucs": ["pesg"], "aucm": ["pesg"]}
    full = table1.Experiment(experiment.dataset, tmp_path, experiment.recipes, "", None, (0,), table1.GRID)
    assert {loss: len(full.points(loss)) for loss in LOSSES} == {"ce": 1, "focal": 9, "aucs": 5, "aucm": 25}


def test_the_test_split_chooses_nothing(whole, make, benchmark, tmp_path):
    """With other labels on the test scans the same points are chosen, from the same runs."""
    experiment, _ = whole
    manifest = benchmark.manifest
    other = pl.when(pl.col("split") == "test").then(1 - pl.col("label:pneumonia")).otherwise(pl.col("label:pneumonia"))
    flipped = Dataset(benchmark.path, benchmark.info, manifest.with_columns(other.alias("label:pneumonia")))
    again = make(tmp_path, flipped, losses=("aucs",))
    for event in table1.run(again, "cpu"):
        if isinstance(event, table1.Row):
            assert event.point == experiment.chosen("aucs")
    for one, two in zip(again.searched(), [c for c in experiment.searched() if "/aucs/" in str(c.run)], strict=True):
        assert one.tuned == two.tuned


def test_each_seed_draws_another_training_set_and_leaves_the_test_set(benchmark):
    drawn = [cells.thinned(benchmark, 0.2, seed) for seed in (0, 0, 1)]
    ids = [view.ids(view.rows("train")) for view in drawn]
    assert ids[0] == ids[1] != ids[2]
    for view in drawn:
        truth = view.truth(view.rows("train"))[:, 0]
        assert (truth == 0).sum() == 60
        assert (truth == 1).sum() == 15
        for split in ("valid", "test"):
            assert view.ids(view.rows(split)) == benchmark.ids(benchmark.rows(split))
        assert np.array_equal(view.read(view.rows("test")), benchmark.read(benchmark.rows("test")))


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 20])
def test_killed_and_called_again_it_ends_with_the_same_table(whole, make, tmp_path, after):
    experiment, document = whole
    broken = make(tmp_path)
    steps = 0
    with closing(table1.run(broken, "cpu")) as events:
        for event in events:
            steps += isinstance(event, Step)
            if steps == after:
                break
    again = finish(broken)
    assert json.dumps(again).replace(str(tmp_path), "X") == json.dumps(document).replace(str(experiment.output), "X")
    assert (tmp_path / "table1.md").read_bytes() == (experiment.output / "table1.md").read_bytes()
    assert not [event for event in table1.run(broken, "cpu") if isinstance(event, Step)], "all was done"


def test_other_settings_in_the_same_folder_are_refused_by_name(whole, make):
    experiment, _ = whole
    with pytest.raises(UsageError, match="another imratio, seeds"):
        next(table1.run(make(experiment.output, imratio=0.1, seeds=(0,)), "cpu"))


def test_a_dataset_that_is_no_benchmark_is_refused(make, toy, tmp_path):
    with pytest.raises(UsageError, match="this has 2 and train, valid"):
        next(table1.run(make(tmp_path, Dataset.open(toy)), "cpu"))


def test_the_papers_figures_stand_where_set_network_and_share_are_its_own(make, benchmark, tmp_path):
    named = Dataset(
        benchmark.path, benchmark.info.model_copy(update={"source": "benchmark:cifar10"}), benchmark.manifest
    )
    from damcli.commands.train import resolve

    recipes = {loss: resolve("benchmark", loss) for loss in LOSSES}
    figures = {
        imratio: [
            table1.paper(table1.Experiment(named, tmp_path, recipes, "benchmark", imratio, (0,), GRID), loss)
            for loss in LOSSES
        ]
        for imratio in (0.01, 0.1)
    }
    assert figures[0.01] == ["0.690 ± 0.011", "0.681 ± 0.011", "0.702 ± 0.015", "0.715 ± 0.008"]
    assert figures[0.1] == ["–"] * 4


def test_from_the_command_line(benchmark, tmp_path, capsys):
    arguments = ["reproduce", "table1", str(benchmark.path), "-o", str(tmp_path / "out"), "--losses", "ce,aucm"]
    arguments += ["--seeds", "1", "--grid", "gamma=0.002", "--grid", "margin=0.5", "--set", "backbone=test_resnet"]
    arguments += ["--set", "stage2.epochs=1", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run", "--json"])
    assert not ended.value.code
    assert len(json.loads(capsys.readouterr().out)["searched"]) == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    said = capsys.readouterr()
    assert "AUC-M" in said.out
    assert str(tmp_path / "out" / "table1.md") in said.out
    assert said.err.splitlines()[-1] == "next: damcli reproduce ablations"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--losses", "ce,hinge"], "no loss 'hinge'"),
        (["--grid", "depth=3"], "no setting 'depth'"),
        (["--grid", "margin=a"], "takes numbers"),
        (["--imratio", "0.9"], "imratio must not exceed the share"),
    ],
)
def test_bad_input_is_named(benchmark, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "table1", str(benchmark.path), "-o", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_validation_part_of_one_class_chooses_nothing(make, benchmark, tmp_path):
    """Three positives in all: whole patients, so that the tune part may go without."""
    with pytest.raises(DataError, match="does not hold both classes"):
        for seed in range(8):
            experiment = make(tmp_path / str(seed), losses=("aucs",), seeds=(seed,), imratio=0.02)
            for _ in table1.run(experiment, "cpu"):
                pass
