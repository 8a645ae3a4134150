"""A search: what is tried, that it is judged on the tune part alone, that it goes on, and that no trial is lost."""

import itertools
import json
from contextlib import closing

import numpy as np
import polars as pl
import pytest

from damcli import config
from damcli.data.store import Dataset
from damcli.errors import DataError, MachineError, UsageError
from damcli.metrics import auroc
from damcli.recipes import Recipe
from damcli.training import checkpoint, folder, fork, group, loop, plan, proposals, tuning
from damcli.training.events import (
    EpochDone,
    MembersFinished,
    MemberStarted,
    MemberStopped,
    Noted,
    Step,
)
from damcli.training.tuning import Choice, Range

# The first learns, the second cannot, the third breaks.
SEARCHED = "lr=0.1,1e-9,1e30 gamma=0"


@pytest.fixture(scope="module")
def dataset(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("toy") / "dataset", scans=96, folds=3))


@pytest.fixture
def quick(recipe):
    """Returns `quick(**settings)`: a recipe of one epoch a stage."""
    return lambda epochs=1: recipe({"epochs": epochs}, {"epochs": 1, "decay_epochs": []}, batch_size=32)


def new(path, text, settings, dataset, trials=None, fold=None):
    axes = tuning.parse(text, settings, ranges=trials is not None)
    planned = [] if trials else tuning.grid(axes, fold)
    made = group.describe(path, "tuning", planned, settings, dataset, tune=text, trials=trials, fold=fold)
    group.create(made)
    return made


def searched(made, dataset):
    with closing(tuning.train(made, dataset, device="cpu")) as events:
        return list(events)


def everything(run):
    """What of a run depends on its seed and its settings."""
    files = [run / "checkpoints" / which / "model.safetensors" for which in ("last", "best")]
    files += [run / "checkpoints" / "last" / "training.safetensors", run / "metrics.jsonl"]
    return [file.read_bytes() for file in files] + [pl.read_parquet(run / "scores-tune.parquet").write_csv()]


def test_short_names_mean_the_last_stage_and_values_may_be_fractions():
    found = tuning.parse("gamma=1/300,1/500 margin=0.3,1 batch_size=16,32 stage1.lr=1e-3 sampler=uniform", Recipe())
    assert found == [
        Choice("stage2.gamma", (1 / 300, 1 / 500)),
        Choice("stage2.margin", (0.3, 1)),
        Choice("batch_size", (16, 32)),
        Choice("stage1.lr", (1e-3,)),
        Choice("stage2.sampler", ("uniform",)),
    ]
    one_stage = Recipe.model_validate({"stage1": {"epochs": 3}, "stage2": {"epochs": 0}})
    assert tuning.parse("lr=0.1", one_stage) == [Choice("stage1.lr", (0.1,))]
    assert tuning.parse("lr=0.01..0.3 batch_size=8..64", Recipe(), ranges=True) == [
        Range("stage2.lr", 0.01, 0.3),
        Range("batch_size", 8, 64),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to try"),
        ("lr", "settings and the values"),
        ("lr=", "settings and the values"),
        ("lrr=0.1", "did you mean lr"),
        ("lr=0.1,0.1", "there twice"),
        ("lr=0.1 stage2.lr=0.2", "there twice"),
        ("lr=1/0", "divides by zero"),
        ("lr=0.1..0.2", "--trials N"),
        ("seed=1,2", "same in all trials"),
        ("tune_fraction=0.1,0.2", "same in all trials"),
        ("monitor=Edema", "same in all trials"),
        ("findings=Edema,Fracture", "same in all trials"),
        ("ensemble.seeds=1,2", "same in all trials"),
    ],
)
def test_what_cannot_be_tried_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        tuning.parse(text, Recipe())


def test_a_range_goes_up():
    with pytest.raises(UsageError, match="goes up"):
        tuning.parse("lr=0.3..0.01", Recipe(), ranges=True)


def test_a_grid_is_every_combination_and_a_wrong_one_is_refused_before_any_is_trained(quick, dataset, tmp_path):
    trials = tuning.grid(tuning.parse("margin=0.3,0.5 lr=0.1,0.05,0.01", Recipe()), fold=2)
    assert [trial.folder for trial in trials] == [f"trial-00{n}" for n in range(6)]
    assert trials[1].settings == {"stage2.margin": 0.3, "stage2.lr": 0.05}
    assert {trial.fold for trial in trials} == {2}
    with pytest.raises(UsageError, match="must stay below 1"):
        new(tmp_path / "run", "lr=0.1,600", quick(), dataset)
    with pytest.raises(UsageError, match="leaves the prior of each undefined"):
        tuning.check(new(tmp_path / "other", "form=conditional,prior", quick(), dataset), dataset)


@pytest.fixture(scope="module")
def search(dataset, tmp_path_factory):
    """A search that was never stopped: made on first use by the function it returns."""
    path = tmp_path_factory.mktemp("search") / "run"

    def get(settings):
        if not path.exists():
            get.events = searched(new(path, SEARCHED, settings, dataset), dataset)
        return path, get.events

    return get


def test_the_best_on_the_tune_part_wins_and_a_trial_that_broke_is_recorded(quick, dataset, search):
    path, events = search(quick())
    assert isinstance(events[-1], MembersFinished)
    found = group.read(path).group.members
    assert [trial.status for trial in found] == ["done", "done", "failed"]
    [stopped] = [event for event in events if isinstance(event, MemberStopped)]
    assert (stopped.run, stopped.status) == (path / "trial-002", "failed")
    assert "not finite" in found[2].reason or "is nan" in found[2].reason or "is inf" in found[2].reason
    for trial in found[:2]:
        scores = pl.read_parquet(path / trial.folder / "scores-tune.parquet")
        tune = dataset.manifest["id"].is_in(scores["path"].to_list()).arg_true().to_numpy().astype(np.int64)
        assert dataset.ids(tune) == scores["path"].to_list()
        aurocs = [
            auroc(dataset.truth(tune)[:, k], scores[name].to_numpy()) for k, name in enumerate(dataset.info.findings)
        ]
        assert trial.tune_auroc == np.mean(aurocs)
    tunes = {tuple(folder.read_run(path / trial.folder).tune_ids) for trial in found}
    assert len(tunes) == 1
    best, other, _ = found
    assert best.tune_auroc > other.tune_auroc
    assert (path / "winner").readlink().name == best.folder
    assert group.results(path) == [path / "winner"]
    _, info = checkpoint.load_network(path / "winner")
    assert info.recipe.stage2.lr == best.settings["stage2.lr"]
    assert info.dataset.resolve() == dataset.path.resolve()
    table = pl.read_csv(path / "trials.csv")
    assert table["trial"].to_list() == ["trial-000", "trial-001", "trial-002"]
    assert table.columns == ["trial", "stage2.lr", "stage2.gamma", "tune_auroc", "best_epoch", "status", "reason"]


def test_stage_1_is_trained_once_and_the_bits_are_those_of_runs_of_their_own(quick, dataset, search, tmp_path):
    path, events = search(quick())
    shared = [event.text for event in events if isinstance(event, Noted) and "end of stage 1" in event.text]
    assert len(shared) == 2
    assert sum(isinstance(event, EpochDone) and event.stage == 1 for event in events) == 1
    assert not list(path.glob(".stage1*"))
    recipe, origins = group.read(path).settings(group.read(path).group.members[1])
    alone = tmp_path / "alone"
    list(loop.train(recipe, dataset, alone, origins=origins, device="cpu"))
    assert everything(path / "trial-001") == everything(alone)
    assert (path / "trial-001" / "config.toml").read_text() == (alone / "config.toml").read_text()


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({"stage2": {"lr": 0.3, "margin": 0.3}}, True),
        ({"patience": 2}, True),
        ({"stage1": {"lr": 1e-3}}, False),
        ({"batch_size": 16}, False),
        ({"stage2": {"epochs": 0}}, False),
        ({"metadata": {"columns": ["age"]}}, False),
    ],
)
def test_stage_1_is_shared_only_where_nothing_of_it_differs(settings, shared):
    under = {"stage1": {"epochs": 1}}
    kept, other = (Recipe.model_validate(config.merge(under, own)) for own in ({}, settings))
    assert fork.same_until_there(other, kept) is shared


@pytest.mark.parametrize(("problem", "recorded"), [(checkpoint.NotFinite, True), (DataError, False)])
def test_of_several_processes_a_trial_fails_by_what_all_of_them_find(
    quick, dataset, tmp_path, monkeypatch, problem, recorded
):
    def failing(*_, **__):
        raise problem("a number is wrong")
        yield

    monkeypatch.setattr(tuning, "train_one", failing)
    made = new(tmp_path / "run", "lr=0.1,0.2", quick(), dataset)
    with pytest.raises(DataError, match="no trial can be chosen" if recorded else "a number is wrong"):
        list(tuning.train(made, dataset, device="cpu", devices=2))
    assert {member.status for member in made.group.members} == {"failed" if recorded else "waiting"}


def test_what_a_kill_left_half_written_is_removed_in_the_end(quick, dataset, tmp_path):
    made = new(tmp_path / "run", "lr=0.1", quick(), dataset)
    for name in (".stage1", ".stage1.7.tmp", ".trial-000.7.tmp"):
        (made.path / name).mkdir()
    fork.forget(made)
    assert sorted(entry.name for entry in made.path.iterdir()) == ["config.toml", "members.json"]


def test_a_search_that_was_killed_ends_as_if_it_had_not(quick, dataset, search, tmp_path):
    whole, _ = search(quick())
    path = tmp_path / "run"
    made = new(path, SEARCHED, quick(), dataset)
    with closing(tuning.train(made, dataset, device="cpu")) as events:
        # In stage 2 of the second trial, which has its stage 1 from the first.
        seconds = (event for event in events if isinstance(event, Step) and event.stage == 2)
        steps = len(plan.make(quick(), dataset).stages[1].sampler)
        assert next(itertools.islice(seconds, steps, None))
    assert [trial.status for trial in group.read(path).group.members] == ["done", "waiting", "waiting"]
    first = everything(path / "trial-000")
    events = searched(group.read(path), dataset)
    assert [event.run.name for event in events if isinstance(event, MemberStarted)] == ["trial-001", "trial-002"]
    assert group.read(path).group.members == group.read(whole).group.members
    assert first == everything(path / "trial-000") == everything(whole / "trial-000")
    assert everything(path / "trial-001") == everything(whole / "trial-001")
    assert (path / "winner").readlink() == (whole / "winner").readlink()


def test_where_no_trial_can_be_chosen_it_is_said(quick, dataset, tmp_path):
    made = new(tmp_path / "run", "lr=1e30,1e31 gamma=0", quick(epochs=0), dataset)
    with pytest.raises(DataError, match="none was trained to its end"):
        searched(made, dataset)
    assert not (tmp_path / "run" / "winner").exists()
    assert len(pl.read_csv(tmp_path / "run" / "trials.csv")) == 2


def test_the_winner_is_replaced_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tuning._point(tmp_path / "winner", name)
        assert (tmp_path / "winner").resolve() == (tmp_path / name).resolve()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "winner"]


def test_drawing_trials_without_optuna_says_how_to_get_it(quick, dataset, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    made = new(tmp_path / "run", "lr=0.01..0.3", quick(), dataset, trials=2)
    with pytest.raises(MachineError, match=r"damcli\[tune\]") as refused:
        searched(made, dataset)
    assert refused.value.exit_code == 5


class Drawn:
    """A search by Optuna whose trials are not trained: a made-up AUROC, and metrics as a run writes them."""

    def __init__(self, path, settings, dataset, trials):
        self.made = new(path, "lr=0.01..0.3 margin=0.3,0.5 batch_size=16..64", settings, dataset, trials)
        self.search = proposals.Proposals(tuning.parse(self.made.group.tune, settings, ranges=True), self.made)

    def run(self, curve):
        """Make one more trial with the tune AUROCs `curve`; return the epoch after which it was given up, or None."""
        number = len(self.made.group.members)
        member = tuning._trial(number, self.search.settings(number), None)
        self.made.add(member)
        judge, run = self.search.judge(member), self.made.run(member)
        run.mkdir()
        for epoch, value in enumerate(curve, 1):
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"event": "epoch", "stage": 2, "epoch": epoch, "mean_tune_auroc": value}) + "\n")
            if judge(run):
                self.made.note(member, status="pruned")
                return epoch
        self.made.note(member, status="done", tune_auroc=max(curve), best_epoch=1)
        return None


def test_optuna_draws_within_the_bounds_and_gives_up_what_falls_behind(quick, dataset, tmp_path):
    pytest.importorskip("optuna")
    drawn = Drawn(tmp_path / "run", quick(), dataset, 8)
    assert [drawn.run([0.6, 0.7 + n / 100]) for n in range(5)] == [None] * 5
    assert drawn.run([0.5, 0.9]) == 1
    assert drawn.run([0.9, 0.5]) is None
    tried = [member.settings for member in drawn.made.group.members]
    assert all(0.01 <= one["stage2.lr"] <= 0.3 and one["stage2.margin"] in (0.3, 0.5) for one in tried)
    assert all(isinstance(one["batch_size"], int) and 16 <= one["batch_size"] <= 64 for one in tried)
    assert len({one["stage2.lr"] for one in tried}) == len(tried)


def test_what_optuna_draws_does_not_depend_on_breaks(quick, dataset, tmp_path):
    pytest.importorskip("optuna")
    drawn = Drawn(tmp_path / "run", quick(), dataset, 15)
    for n in range(12):
        drawn.run([0.5 + (n * 7 % 12) / 30])
    tried = [member.settings for member in drawn.made.group.members]
    again = group.read(tmp_path / "run")
    search = proposals.Proposals(tuning.parse(again.group.tune, quick(), ranges=True), again)
    assert [search.settings(number) for number in range(12)] == tried


def test_a_search_by_optuna_goes_on_after_a_kill_with_the_trials_it_would_have_made(quick, dataset, tmp_path):
    pytest.importorskip("optuna")
    path = tmp_path / "run"
    made = new(path, "lr=0.01..0.3 margin=0.3,0.5", quick(epochs=0), dataset, trials=2)
    with closing(tuning.train(made, dataset, device="cpu")) as events:
        assert next(event for event in events if isinstance(event, Step))
    begun = group.read(path).group.members
    events = searched(group.read(path), dataset)
    assert isinstance(events[-1], MembersFinished)
    found = group.read(path)
    assert [trial.status for trial in found.group.members] == ["done", "done"]
    search = proposals.Proposals(tuning.parse(made.group.tune, quick(epochs=0), ranges=True), found)
    assert [search.settings(number) for number in range(2)] == [trial.settings for trial in found.group.members]
    assert begun[0].settings == found.group.members[0].settings
