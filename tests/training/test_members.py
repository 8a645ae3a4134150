"""Folds and ensembles: nobody is on both sides, every scan is scored once, and a killed member goes on."""

import shutil
from contextlib import closing

import numpy as np
import polars as pl
import pytest

from damcli import files
from damcli.data.store import Dataset
from damcli.errors import DataError, UsageError
from damcli.recipes import Ensemble
from damcli.training import checkpoint, folder, group, members, scoring
from damcli.training.events import (
    FoldScoring,
    MembersFinished,
    MemberStarted,
    Scored,
    Started,
    Step,
    TimeIsUp,
)

FOLDS = 2


@pytest.fixture(scope="module")
def folded(make_toy, tmp_path_factory):
    """A dataset in two folds, fold 0 its `valid` split."""
    return Dataset.open(make_toy(tmp_path_factory.mktemp("folded") / "dataset", scans=96, folds=FOLDS))


@pytest.fixture
def quick(recipe):
    """A recipe of one epoch a stage."""
    return recipe({"epochs": 1}, {"epochs": 1, "decay_epochs": []}, batch_size=32)


def new(path, kind, planned, settings, dataset):
    made = group.describe(path, kind, planned, settings, dataset)
    group.create(made)
    return made


def trained(made, dataset, **keywords):
    with closing(members.train(made, dataset, device="cpu", **keywords)) as events:
        return list(events)


def everything(path):
    """What depends on the seed, of all members and of the whole."""
    found = {
        str(file.relative_to(path)): file.read_bytes()
        for pattern in ("*/checkpoints/*/*.safetensors", "*/metrics.jsonl", "*/config.toml")
        for file in path.glob(pattern)
    }
    tables = {str(file.relative_to(path)): pl.read_parquet(file).write_csv() for file in path.rglob("*.parquet")}
    return found | tables | {"members": group.read(path).group.members}


@pytest.fixture(scope="module")
def unbroken(folded, tmp_path_factory):
    """All folds trained without a break: made on first use by the function it returns."""
    path = tmp_path_factory.mktemp("unbroken") / "run"

    def get(settings):
        if not path.exists():
            made = new(path, "folds", members.of_folds(settings, folded), settings, folded)
            get.events = trained(made, folded)
        return path, get.events

    return get


def test_every_fold_is_scored_by_the_one_run_that_has_not_seen_it(folded, quick, unbroken):
    path, events = unbroken(quick)
    assert isinstance(events[-1], MembersFinished)
    assert [event.run.name for event in events if isinstance(event, MemberStarted)] == ["fold-0", "fold-1"]
    manifest = folded.manifest
    table = pl.read_parquet(path / "scores-folds.parquet")
    assert table.columns == ["path", "fold", "Edema", "Fracture"]
    assert sorted(table["path"]) == sorted(manifest["id"])
    for fold in range(FOLDS):
        run = path / f"fold-{fold}"
        network, info = checkpoint.load_network(run)
        assert info.facts.fold == fold
        out = manifest.with_row_index().filter(pl.col("fold") == fold)
        rows = out["index"].to_numpy().astype(np.int64)
        scores = np.concatenate([part for _, part in scoring.score(network, folded, rows)])
        mine = table.filter(pl.col("fold") == fold)
        assert mine["path"].to_list() == out["id"].to_list()
        assert np.array_equal(mine.select("Edema", "Fracture").to_numpy(), scores)
        [announced] = [event for event in events if isinstance(event, FoldScoring) and event.fold == fold]
        assert announced.scans == len(rows)
        # What the epoch was chosen by, and what was learnt from: none of the fold's patients, none of one another's.
        held_out = set(out["patient"])
        tune = manifest.filter(pl.col("id").is_in(info.tune_ids))
        assert len(tune)
        assert not held_out & set(tune["patient"])
        learnt = manifest.filter((pl.col("fold") != fold) & ~pl.col("id").is_in(info.tune_ids))
        assert not (held_out | set(tune["patient"])) & set(learnt["patient"])
        started = [e for e in events if isinstance(e, Started) and e.run == run]
        assert [(e.train_scans, e.tune_scans) for e in started] == [(len(learnt), len(tune))]


def test_the_events_say_how_many_batches_a_fold_takes(quick, unbroken):
    _, events = unbroken(quick)
    for number, event in enumerate(events):
        if isinstance(event, FoldScoring):
            after = events[number + 1 : number + 1 + event.batches]
            assert all(isinstance(one, Scored) for one in after)
            assert sum(one.scans for one in after) == event.scans
            assert not isinstance(events[number + 1 + event.batches], Scored)


STOPS = {
    "at once": lambda event: isinstance(event, MemberStarted),
    "in the second fold": lambda event: isinstance(event, Step) and event.stage == 2,
    "trained, not yet scored": lambda event: isinstance(event, FoldScoring),
}


@pytest.mark.parametrize("stop", list(STOPS))
def test_a_killed_fold_goes_on_and_those_before_it_are_left_alone(folded, quick, unbroken, tmp_path, stop):
    whole, _ = unbroken(quick)
    path = tmp_path / "run"
    made = new(path, "folds", members.of_folds(quick, folded), quick, folded)
    shutil.copytree(whole / "fold-0", path / "fold-0")
    made.note(made.group.members[0], **group.read(whole).group.members[0].model_dump())
    with closing(members.train(made, folded, device="cpu")) as events:
        # Dropped as a killed process is.
        assert any(map(STOPS[stop], events))
    first = {file: file.stat().st_mtime_ns for file in (path / "fold-0").rglob("*") if file.is_file()}
    events = trained(group.read(path), folded)
    started = [event.run.name for event in events if isinstance(event, MemberStarted)]
    assert started == ["fold-1"]
    assert first == {file: file.stat().st_mtime_ns for file in (path / "fold-0").rglob("*") if file.is_file()}
    found, expected = everything(path), everything(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_some_folds_only_and_a_fold_that_is_not_there(folded, toy, quick):
    assert [member.folder for member in members.of_folds(quick, folded, [1])] == ["fold-1"]
    with pytest.raises(UsageError, match="no fold 7"):
        members.of_folds(quick, folded, [7])
    with pytest.raises(UsageError, match="--folds 5"):
        members.of_folds(quick, Dataset.open(toy))


def test_a_time_limit_stops_all_members_and_they_can_go_on(folded, quick, tmp_path):
    made = new(tmp_path / "run", "folds", members.of_folds(quick, folded, [0]), quick, folded)
    events = trained(made, folded, time_limit=1e-6)
    assert isinstance(events[-1], TimeIsUp)
    assert [member.status for member in group.read(tmp_path / "run").group.members] == ["waiting"]
    assert isinstance(trained(group.read(tmp_path / "run"), folded)[-1], MembersFinished)


@pytest.fixture
def ensemble(quick):
    """Returns `ensemble(**wanted)`: the quick recipe with an ensemble."""
    return lambda **wanted: quick.model_copy(update={"ensemble": Ensemble(**wanted)})


def test_an_ensemble_is_every_backbone_with_every_seed(toy, ensemble, tmp_path):
    dataset = Dataset.open(toy)
    settings = ensemble(backbones=("test_resnet", "test_vit"), seeds=(0, 3))
    planned = members.of_ensemble(settings, dataset)
    assert [member.folder for member in planned] == [
        "test_resnet-seed0", "test_resnet-seed3", "test_vit-seed0", "test_vit-seed3",
    ]  # fmt: skip
    made = group.describe(tmp_path / "run", "ensemble", planned, settings, dataset)
    own, origins = made.settings(planned[3])
    assert (own.backbone, own.seed, own.ensemble) == ("test_vit", 3, Ensemble())
    assert origins["backbone"] == "ensemble"
    assert own.stage2 == settings.stage2
    assert not (tmp_path / "run").exists()
    alone = members.of_ensemble(ensemble(seeds=(5,)), dataset)
    assert [(member.settings["backbone"], member.settings["seed"]) for member in alone] == [("test_resnet", 5)]


def test_one_stage_1_for_all_findings_then_a_stage_2_for_each_from_its_network(folded, ensemble, tmp_path):
    dataset = folded
    settings = ensemble(per_finding=True)
    path = tmp_path / "run"
    made = new(path, "ensemble", members.of_ensemble(settings, dataset), settings, dataset)
    assert isinstance(trained(made, dataset)[-1], MembersFinished)
    names = [member.folder for member in made.group.members]
    assert names == ["test_resnet-seed0-stage1", "test_resnet-seed0-edema", "test_resnet-seed0-fracture"]
    assert group.results(path) == [path / names[1], path / names[2]]
    infos = [folder.read_run(path / name) for name in names]
    assert [info.findings for info in infos] == [("Edema", "Fracture"), ("Edema",), ("Fracture",)]
    assert infos[0].tune_ids == infos[1].tune_ids == infos[2].tune_ids
    last = files.sha256(path / names[0] / "checkpoints" / "last" / "model.safetensors")
    assert infos[1].facts.weights_sha256 == infos[2].facts.weights_sha256 == last
    stages = [[number for number, _ in info.recipe.stages()] for info in infos]
    assert stages == [[1], [2], [2]]


def test_stage_2_for_each_finding_needs_both_stages(toy, ensemble):
    settings = ensemble(per_finding=True)
    without = settings.model_copy(update={"stage1": settings.stage1.model_copy(update={"epochs": 0})})
    with pytest.raises(UsageError, match="both stages"):
        members.of_ensemble(without, Dataset.open(toy))


def test_an_ensemble_in_folds_scores_each_scan_by_all_that_have_not_seen_it(folded, ensemble, tmp_path):
    settings = ensemble(seeds=(0, 1))
    path = tmp_path / "run"
    made = new(path, "folds", members.of_folds(settings, folded, [1]), settings, folded)
    trained(made, folded)
    table = pl.read_parquet(path / "scores-folds.parquet")
    assert set(table["fold"]) == {1}
    runs = [path / f"fold-1-test_resnet-seed{seed}" for seed in (0, 1)]
    first, second = (pl.read_parquet(run / "scores-fold.parquet") for run in runs)
    assert first["path"].equals(second["path"])
    assert not first["Edema"].equals(second["Edema"])
    assert np.allclose(table["Edema"], (first["Edema"] + second["Edema"]) / 2, rtol=1e-6)


def test_what_is_not_finished_cannot_be_exported_and_says_how_to_go_on(folded, quick, tmp_path):
    new(tmp_path / "run", "folds", members.of_folds(quick, folded), quick, folded)
    with pytest.raises(DataError, match="2 of 2 members are not trained yet"):
        group.results(tmp_path / "run")


def test_a_start_that_was_killed_starts_anew_and_a_folder_in_use_is_refused(folded, quick, tmp_path):
    path = tmp_path / "run"
    planned = members.of_folds(quick, folded)
    new(path, "folds", planned, quick, folded)
    with pytest.raises(UsageError, match="holds a run already"):
        new(path, "folds", planned, quick, folded)
    (path / "config.toml").unlink()
    new(path, "folds", planned, quick, folded)
    assert group.are_in(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ('{"schema_version": 9}', "format 9"),
        ('{"schema_version": 1}', "damaged: kind"),
        ("[]", "damaged"),
    ],
)
def test_a_damaged_list_of_members_is_refused(folded, quick, tmp_path, content, message):
    path = tmp_path / "run"
    new(path, "folds", members.of_folds(quick, folded), quick, folded)
    (path / "members.json").write_text(content)
    with pytest.raises(DataError, match=message):
        group.read(path)


def test_members_go_on_with_their_own_dataset_and_settings_only(folded, make_toy, quick, tmp_path):
    path = tmp_path / "run"
    made = new(path, "folds", members.of_folds(quick, folded), quick, folded)
    other = Dataset.open(make_toy(tmp_path / "other", scans=96, seed=1, folds=FOLDS))
    with pytest.raises(DataError, match="fingerprint differs"):
        trained(made, other)
    with (path / "config.toml").open("a") as file:
        file.write("\n# touched\n")
    with pytest.raises(DataError, match="settings were changed"):
        trained(made, folded)
