"""`damcli train` of several runs, to the end of what is done with them: evaluated, exported, gone on with."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from damcli.bundle.runtime import Model
from damcli.data.store import Dataset
from damcli.metrics import auroc, bootstrap_interval
from damcli.recipes import Recipe
from damcli.training import checkpoint, folder, group, members, scoring

QUICK = (
    "--recipe", "demo", "--precision", "32", "--device", "cpu", "--set", "batch_size=32",
    "--set", "stage1.epochs=1", "--set", "stage2.epochs=1",
)  # fmt: skip
# Draws of the bootstrap, where no figure depends on how many they are.
FEW = ("--draws", 200)


@pytest.fixture(scope="module")
def folded(make_toy, tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("folded") / "dataset", scans=96, folds=2)


def test_folds_are_trained_evaluated_and_gone_on_with(run_here, folded, tmp_path):
    run = tmp_path / "run"
    code, out, err = run_here("train", folded, "--folds", "all", "-o", run, *QUICK)
    assert code == 0, err
    assert f"{run}/fold-1: 2 of 2, without fold 1" in err
    assert (run / "fold-0" / "curves.png").is_file()
    dataset = Dataset.open(folded)
    table = pl.read_parquet(run / "scores-folds.parquet")
    truth = dict(zip(dataset.manifest["id"], dataset.truth(np.arange(96)), strict=True))
    targets = np.array([truth[name] for name in table["path"]])
    pooled = auroc(targets[:, 0], table["Edema"].to_numpy())
    assert f"{pooled:.3f}" in out
    assert "neither trained nor selected" in out
    assert "mean of the AUROCs within each of 2 folds, by DeLong: Edema" in out
    assert err.splitlines()[-1] == f"next: damcli evaluate {run} {folded}"

    code, out, err = run_here("evaluate", *FEW, run, "--json")
    assert code == 0, err
    document = json.loads(out)
    rows, scores = np.arange(96), dict(zip(table["path"], table["Edema"], strict=True))
    edema = [scores[name] for name in dataset.ids(rows)]
    expected = bootstrap_interval(dataset.truth(rows)[:, 0], edema, dataset.patients(rows), draws=200)
    shown = document["findings"]["Edema"]["auroc"]
    assert (shown["value"], shown["low"], shown["high"]) == (pooled, *map(pytest.approx, expected[1:3]))
    assert document["selection"]["used"] is False
    assert (document["scans"], document["truth"]["split"]) == (96, "folds")
    assert (run / "evaluation-folds" / "scores-folds.parquet").is_file()

    other = tmp_path / "other.csv"
    table.with_columns(-pl.col("Edema"), pl.col("Fracture")).write_csv(other)
    code, out, err = run_here("evaluate", *FEW, run, "--against", other, "--json", "-o", tmp_path / "compared")
    assert code == 0, err
    compared = json.loads(out)["comparison"]["findings"]["Edema"]
    assert compared["other_auroc"] == pytest.approx(1 - pooled)
    code, _, err = run_here("evaluate", *FEW, run, "--against", run / "fold-0", "-o", tmp_path / "refused")
    assert (code, "FOLDS --against" in err) == (2, True)

    for split, used in (None, False), ("valid", True), ("tune", True):
        given = ("--split", split) if split else ()
        code, out, err = run_here("evaluate", *FEW, run / "fold-1", folded, "--json", *given)
        assert code == 0, err
        document = json.loads(out)
        assert (document["selection"]["used"], document["truth"]["split"]) == (used, split or "fold-1")
    code, _, err = run_here("evaluate", *FEW, run, folded, "--split", "valid")
    assert (code, "folds are evaluated on what each has not seen" in err) == (2, True)

    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    code, _, err = run_here("train", "--resume", run, "--device", "cpu")
    assert code == 0, err
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}


def test_one_fold_alone_is_an_ordinary_run(run_here, folded, tmp_path):
    code, _, err = run_here("train", folded, "--fold", 1, "-o", tmp_path / "run", *QUICK, "--set", "stage1.epochs=0")
    assert code == 0, err
    assert folder.read_run(tmp_path / "run").facts.fold == 1


@pytest.mark.slow
def test_a_stage_2_for_each_finding_becomes_one_model(run_here, folded, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model.onnx"
    per_finding = ("--set", "ensemble.per_finding=true", "--set", "ensemble.seeds=[0,1]")
    code, out, err = run_here("train", folded, "-o", run, *QUICK, *per_finding)
    assert code == 0, err
    assert out.count("others start from it") == 2
    assert err.splitlines()[-1] == f"next: damcli export {run}"
    code, _, err = run_here("evaluate", *FEW, run, folded)
    assert (code, f"damcli export {run}" in err) == (2, True)

    code, _, err = run_here("export", run, "-o", model)
    assert code == 0, err
    code, out, err = run_here("evaluate", *FEW, model, folded, "--json", "-o", tmp_path / "evaluation")
    assert code == 0, err
    assert json.loads(out)["selection"]["used"] is False, "valid is fold 0, and no member held another one out"
    opened = Model.open(model, "cpu")
    names = [f"test_resnet-seed{seed}-{finding}" for seed in (0, 1) for finding in ("edema", "fracture")]
    assert [member.run for member in opened.info.members] == names
    assert opened.info.findings == ("Edema", "Fracture")
    dataset = Dataset.open(folded)
    rows = dataset.rows("valid")[:8]
    got = opened.score(dataset.read(rows))
    for k, finding in enumerate(("edema", "fracture")):
        networks = [checkpoint.load_network(run / f"test_resnet-seed{seed}-{finding}")[0] for seed in (0, 1)]
        parts = [next(scoring.score(network, dataset, rows))[1][:, 0] for network in networks]
        assert np.allclose(got[:, k], np.mean(parts, axis=0), atol=1e-5)


def test_a_search_leaves_a_table_and_its_winner(run_here, folded, tmp_path):
    run = tmp_path / "run"
    tune = ("--tune", "lr=0.1,1e30 gamma=0", "--fold", "0", "--set", "stage1.epochs=0")
    code, out, err = run_here("train", folded, "-o", run, *QUICK, *tune)
    assert code == 0, err
    assert "trial-001: failed" in err
    assert out.splitlines()[-1] == str(run / "winner")
    assert err.splitlines()[-1] == f"next: damcli evaluate {run}/winner {folded}"
    assert {member.fold for member in group.read(run).group.members} == {0}
    code, out, err = run_here("evaluate", *FEW, run / "winner", folded, "--json")
    assert code == 0, err
    assert json.loads(out)["truth"]["split"] == "fold-0"
    code, _, err = run_here("evaluate", *FEW, run, folded)
    assert (code, f"damcli evaluate {run}/winner" in err) == (2, True)
    code, _, err = run_here("export", run, "-o", tmp_path / "model.onnx", "--dry-run")
    assert (code, "with 1 network(s)" in err) == (0, True)


def test_a_dry_run_lists_the_members_and_writes_nothing(run_here, folded, tmp_path):
    seeds = ("--set", "ensemble.seeds=[0,1]")
    dry = ("--folds", "all", "--dry-run", "--json", "-o", tmp_path / "run")
    code, out, err = run_here("train", folded, *dry, *QUICK, *seeds)
    assert code == 0, err
    listed = json.loads(out)["members"]
    assert [one["folder"] for one in listed] == [f"fold-{k}-test_resnet-seed{seed}" for k in (0, 1) for seed in (0, 1)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "3"], "--fold 3"),
        (["--folds", "all", "--fold", "1"], "contradict"),
        (["--fold", "7"], "no fold 7"),
        (["--trials", "3"], "add --tune"),
        (["--tune", "lr=0.1", "--folds", "all"], "do not go together"),
        (["--tune", "lr=0.1", "--set", "ensemble.seeds=[1,2]"], "an ensemble do not go together"),
        (["--tune", "lr=0.1..0.3"], "--trials N"),
        (["--tune", " "], "names no setting"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run_here, folded, tmp_path, arguments, message):
    code, _, err = run_here("train", folded, "-o", tmp_path / "run", *QUICK, *arguments)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_folds_says_how_to_make_them(run_here, toy, tmp_path):
    code, _, err = run_here("train", toy, "--folds", "all", "-o", tmp_path / "run", *QUICK)
    assert (code, "--folds 5" in err) == (2, True)


def test_a_fold_without_positives_is_said(run_here, make_toy, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=96, folds=2, positives=0.03))
    folds = dataset.manifest["fold"].to_numpy()
    rows = np.arange(96)
    positives = {name: dataset.truth(rows)[:, k] == 1 for k, name in enumerate(dataset.info.findings)}
    few = {name: np.bincount(folds[positive], minlength=2) for name, positive in positives.items()}
    assert few["Edema"].tolist() == [2, 1], "what this test is made for"
    # The folder as training leaves it, the runs aside.
    run = tmp_path / "run"
    made = group.describe(run, "folds", members.of_folds(Recipe(), dataset), Recipe(), dataset)
    group.create(made)
    scores = {name: np.linspace(0, 1, 96) for name in dataset.info.findings}
    folder.write_table(run / group.SCORES, {"path": dataset.ids(rows), "fold": folds, **scores})
    code, out, err = run_here("evaluate", *FEW, run, tmp_path / "dataset")
    assert code == 0, err
    assert "Edema has no AUROC in fold 1 (only 1 positive)" in out


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("asked", [("--folds", "all"), ("--tune", "lr=1e30,0.1 gamma=0")])
def test_two_processes_train_the_members_in_turn(folded, tmp_path, asked):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "damcli", "train", folded, "-o", run, *QUICK, "--devices", "2", *asked]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    status = [member.status for member in group.read(run).group.members]
    assert status == (["done", "done"] if asked[0] == "--folds" else ["failed", "done"])
    if asked[0] == "--folds":
        assert sorted(pl.read_parquet(run / "scores-folds.parquet")["path"]) == [f"scan{n:04}.png" for n in range(96)]


def test_trials_are_not_drawn_by_several_processes(run_here, folded, tmp_path):
    tune = ("--tune", "lr=0.01..0.3", "--trials", "2", "--devices", "2", "-o", tmp_path / "run")
    code, _, err = run_here("train", folded, *QUICK, *tune)
    assert (code, "one process" in err) == (2, True)
