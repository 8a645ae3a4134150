"""What `damcli export` puts into a model beside its networks: what its runs decided, and what their scans are like."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from damcli.bundle.runtime import Model
from damcli.data.store import Dataset


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TUNE = {"tune_fraction": 0.45}


@pytest.fixture(scope="session")
def alike(toy, tmp_path_factory, train):
    """Two runs of one seed, and so of one tune part; copy before anything is decided for them."""
    folder = tmp_path_factory.mktemp("alike")
    networks = {"a": "test_resnet", "b": "test_efficientnet"}
    return [train(toy, folder / name, network, epochs=6, **TUNE) for name, network in networks.items()]


@pytest.fixture
def undecided(alike, toy, tmp_path):
    """Copies of `alike` that find their dataset."""
    copies = [tmp_path / "runs" / run.name for run in alike]
    for run, copy in zip(alike, copies, strict=True):
        shutil.copytree(run, copy)
        facts = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(facts | {"dataset": str(toy)}))
    return copies


def decide(run, rules=("youden",), method="none", **of):
    """Decide for a run on its tune scores, as they were when it ended, and keep it."""
    import polars as pl

    from damcli.metrics import decisions
    from damcli.metrics.operating import Rule
    from damcli.training import checkpoint
    from damcli.training.decisions import write

    info = checkpoint.read_run(run)
    dataset = Dataset.open(info.dataset)
    table = pl.read_parquet(run / "scores-tune.parquet")
    rows = [dataset.manifest["id"].to_list().index(name) for name in table["path"]]
    truth, scores = dataset.truth(np.array(rows)), table.select(info.findings).to_numpy()
    parsed = [Rule.parse(rule) for rule in rules]
    weights = {"weights_sha256": checkpoint.weights_sha256(run)}
    made = decisions.decide(info.findings, truth, scores, parsed, method, **weights | of)
    write(run, made)
    return made


def test_what_a_run_decided_is_carried_as_it_is_and_its_calibration_is_in_the_scores(
    undecided, toy, capfd, export, by_torch
):
    from damcli.training.decisions import read_reference

    run, images = undecided[0], Dataset.open(toy).read(np.arange(40))
    made = decide(run, ("youden", "sensitivity=0.9"), "platt")
    export(run, "-o", "cxr.onnx", "--json")
    streams = capfd.readouterr()
    model = Model.open(Path("cxr.onnx"), "cpu")
    assert model.info.decisions == made.model_copy(update={"weights_sha256": None})
    by_hand = by_torch(run, images)
    expected = np.column_stack([made.calibration[f].apply(by_hand[:, k]) for k, f in enumerate(model.info.findings)])
    np.testing.assert_allclose(model.score(images), expected, atol=1e-5)
    assert np.abs(expected - by_hand).max() > 0.01
    kept = read_reference(run)
    assert model.info.reference.pixels == kept.pixels
    assert model.info.reference.scores == kept.calibrated(made.calibration).scores
    assert "scoring" not in streams.err, "nothing is made anew"
    assert "operating points: youden for Edema, Fracture; sensitivity-0.9 for Edema, Fracture" in streams.err
    assert "calibration: platt for Edema, Fracture" in streams.err
    threshold = json.loads(streams.out)["points"]["youden"]["Edema"]["threshold"]
    assert threshold == made.points["youden"]["Edema"].threshold


def test_for_runs_of_one_tune_part_it_is_decided_anew_on_the_weighted_mean_of_their_scores(
    undecided, toy, capfd, export, by_torch
):
    from damcli.metrics import decisions
    from damcli.metrics.drift import BOUND
    from damcli.metrics.operating import Rule
    from damcli.training import checkpoint

    decide(undecided[0], ["youden"], "temperature")
    decide(undecided[1], ["specificity=0.8"], "temperature")
    export(*undecided, "-o", "both.onnx", "--weights", "Edema=3,1")
    assert "decided anew, on " in capfd.readouterr().err
    info = Model.open(Path("both.onnx"), "cpu").info
    dataset = Dataset.open(toy)
    tune = checkpoint.read_run(undecided[0]).tune_ids
    rows = np.flatnonzero(dataset.manifest["id"].is_in(tune).to_numpy())
    scores = np.stack([by_torch(run, dataset.read(rows)) for run in undecided])
    scores = np.stack([scores[:, :, 0].T @ [0.75, 0.25], scores[:, :, 1].mean(0)], axis=1)
    rules = [Rule.parse("youden"), Rule.parse("specificity=0.8")]
    expected = decisions.decide(info.findings, dataset.truth(rows), scores, rules, "temperature")
    assert info.decisions.tune_scans == len(tune) == len(rows) > 50
    assert info.decisions.rules == expected.rules
    for finding in info.findings:
        assert info.decisions.calibration[finding].slope == pytest.approx(expected.calibration[finding].slope, rel=1e-3)
        for rule in rules:
            found, wanted = info.decisions.points[rule.name][finding], expected.points[rule.name][finding]
            assert found.threshold == pytest.approx(wanted.threshold, abs=1e-4)
            assert found.chosen_on == wanted.chosen_on
    assert info.reference.scans == len(rows)
    calibrated = info.decisions.calibrated(info.findings, scores)
    for k, finding in enumerate(info.findings):
        assert info.reference.scores[finding].distance(calibrated[:, k]) <= BOUND


def test_runs_that_were_calibrated_differently_are_refused(undecided, tmp_path, capfd, export):
    decide(undecided[0], method="platt")
    decide(undecided[1], method="temperature")
    export(*undecided, "-o", "m.onnx", code=2)
    assert "calibrated differently: platt and temperature" in capfd.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_with_views_it_is_decided_anew_on_their_mean(undecided, toy, export):
    import torch

    from damcli.data import augment
    from damcli.training import checkpoint, scoring

    run = undecided[0]
    single = decide(run)
    export(run, "--tta", 3, "-o", "views.onnx")
    info = Model.open(Path("views.onnx"), "cpu").info
    assert (info.decisions.views, info.decisions.tune_scans) == (3, single.tune_scans)
    assert info.decisions.points != single.points
    assert info.reference.views == 3
    network, read = checkpoint.load_network(run)
    dataset = Dataset.open(toy)
    rows = np.flatnonzero(dataset.manifest["id"].is_in(read.tune_ids).to_numpy())
    pixels = network.as_input(torch.from_numpy(dataset.read(rows)))
    with torch.no_grad():
        seen = augment.seen(pixels, scoring.views(read.recipe, 3, run))
        scores = torch.stack([network(view).sigmoid() for view in seen]).mean(0).numpy()
    threshold = info.decisions.points["youden"]["Edema"].threshold
    assert np.abs(scores[:, 0] - threshold).min() < 1e-5, "a threshold is the score of a scan"
    kept = decide(run, views=3)
    export(run, "--tta", 3, "-o", "views.onnx")
    carried = Model.open(Path("views.onnx"), "cpu").info.decisions
    assert carried.points == kept.points, "decided for as many views, so carried as it is"


def test_folds_have_no_scans_to_decide_on_and_the_card_says_so(make_toy, tmp_path, capfd, train, export):
    folded = make_toy(tmp_path / "folded", scans=120, folds=2)
    runs = [train(folded, tmp_path / f"fold-{fold}", fold=fold, **TUNE) for fold in (0, 1)]
    for run in runs:
        decide(run)
    export(*runs, "-o", "folds.onnx")
    err = capfd.readouterr().err
    why = "no scan is in the tune part of every run, as with folds or other seeds"
    assert why in err
    assert f"nothing to tell drift by: {why}" in err
    info = Model.open(Path("folds.onnx"), "cpu").info
    assert info.reference is None
    assert (info.decisions.points, info.decisions.notes) == ({}, (why,))
    assert f"Thresholds: none.\n- {why}." in (tmp_path / "folds.onnx.md").read_text(encoding="utf-8")


def test_decisions_that_were_changed_or_are_of_other_weights_are_refused(undecided, capfd, export):
    first, second = undecided
    decide(first)
    shutil.copy(first / "decisions.json", second / "decisions.json")
    text = (first / "decisions.json").read_text()
    (first / "decisions.json").write_text(text.replace('"threshold": 0.', '"threshold": 0.0'))
    for run, message in (
        (first, "decisions.json was changed or damaged since it was written"),
        (second, "decisions.json was made with other weights than those of the best checkpoint"),
    ):
        export(run, "-o", "m.onnx", code=3)
        shown = capfd.readouterr().err
        assert message in shown
        assert f"damcli evaluate {run} --operating RULE" in shown
    (first / "decisions.json").write_text("{")
    export(first, "-o", "m.onnx", code=3)


def test_a_run_from_before_has_its_reference_made_and_no_thresholds(undecided, toy, capfd, export):
    from damcli.training.decisions import read_reference

    run = undecided[0]
    kept = read_reference(run)
    (run / "reference.json").unlink()
    export(run, "-o", "m.onnx")
    assert "damcli evaluate RUN --operating RULE chooses them" in capfd.readouterr().err
    info = Model.open(Path("m.onnx"), "cpu").info
    assert info.decisions is None
    assert info.reference.pixels == kept.pixels
    np.testing.assert_allclose(info.reference.scores["Edema"].quantiles, kept.scores["Edema"].quantiles, atol=1e-4)


def test_thresholds_of_patients_are_chosen_anew_on_patients(undecided, toy, by_torch):
    from damcli.commands import carrying
    from damcli.commands.export import load_member
    from damcli.data.units import Units
    from damcli.metrics import operating

    dataset = Dataset.open(toy)
    reduce = {"Edema": "max", "Fracture": "mean"}
    for run in undecided:
        decide(run, by="patient", reduce=reduce, units=lambda scores: (scores > 0.5, scores))
    members, runs = zip(*(load_member(run) for run in undecided), strict=True)
    carried = carrying.of(members, runs, dataset)
    rows = np.flatnonzero(dataset.manifest["id"].is_in(runs[0].tune_ids).to_numpy())
    units = Units.of("patient", dataset.patients(rows), None, dataset.ids(rows))
    scores = np.mean([by_torch(run, dataset.read(rows)) for run in undecided], axis=0)
    expected = units.scores(scores, ["max", "mean"]).scores
    truth = units.labels(dataset.truth(rows)).labels
    assert (carried.decisions.by, carried.decisions.tune_scans) == ("patient", len(rows))
    for k, finding in enumerate(carried.decisions.reduce):
        found, rule = carried.decisions.points["youden"][finding], operating.Rule.parse("youden")
        wanted = operating.point(truth[:, k], expected[:, k], rule)
        assert found.chosen_on == wanted.chosen_on
        assert found.threshold == pytest.approx(wanted.threshold, abs=1e-5)
        assert found.chosen_on.positives + found.chosen_on.negatives == len(units) < len(rows)


def test_runs_of_other_findings_are_decided_together_and_of_other_datasets_not(undecided, make_toy, tmp_path):
    from damcli.commands import carrying
    from damcli.commands.export import load_member

    for run, finding in zip(undecided, ("Edema", "Fracture"), strict=True):
        decide(run, by="patient", reduce={finding: "max"}, units=lambda scores: (scores > 0.5, scores))
    members, runs = zip(*(load_member(run) for run in undecided), strict=True)
    other = Dataset.open(make_toy(tmp_path / "other", scans=60, seed=3))
    carried = carrying.of(members, runs, other)
    assert carried.decisions.reduce == {"Edema": "max", "Fracture": "max"}
    assert carried.decisions.points == {}
    # Of the one run alone there are decisions: the other's finding is reduced as --reduce does unless said otherwise.
    (undecided[1] / "decisions.json").unlink()
    both = carrying.of(members, runs, Dataset.open(runs[0].dataset))
    assert {"Edema", "Fracture"} == both.decisions.reduce.keys() == both.decisions.points["youden"].keys()
    assert both.decisions.reduce["Fracture"] == "mean"
    [why] = carried.decisions.notes
    assert why == "the dataset given is not the one trained on, so the tune part is not at hand"
