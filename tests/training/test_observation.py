"""What a run tells of its steps: the figures are the batch's, boundaries are where they should be, doubts are said."""

import json
from contextlib import closing

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from damcli.data.store import Dataset
from damcli.deepauc import AUCMarginLoss, CrossEntropyLoss
from damcli.errors import DataError
from damcli.training import checkpoint, loop, plan
from damcli.training.events import Boundary, Noted, Step, Warned
from damcli.training.observation import observe

NAN = float("nan")


def records(run, event):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def said(events):
    return [event.text for event in events if isinstance(event, Warned)]


def step_of(module, n=9):
    """One loss with its gradient, soft and missing targets, a finding of one class and one that is all missing."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4, generator=generator))
    targets = torch.rand(n, 4, generator=generator)
    targets[1, 0], targets[:, 2], targets[:, 3] = NAN, 0.2, NAN
    logits = torch.randn(n, 6, generator=generator) @ weight
    logits.retain_grad()
    loss, losses, present = module.detailed(logits, targets)
    loss.backward()
    return observe(module, loss, losses, present, logits, targets, [weight]), logits, targets, weight, loss


@pytest.mark.parametrize("module", [AUCMarginLoss(4), CrossEntropyLoss()], ids=["aucm", "ce"])
def test_every_figure_is_that_of_the_batch(module):
    for value, parameter in enumerate(module.parameters(), 1):
        parameter.data = torch.linspace(0.1, 0.4, 4) * value
    observed, logits, targets, weight, loss = step_of(module)
    scores, grad = logits.detach().sigmoid(), logits.grad
    assert observed.loss == pytest.approx(loss.item())
    assert observed.gradient_norm == pytest.approx(weight.grad.norm().item(), rel=1e-6)
    assert observed.logit_gradients == pytest.approx([grad[:, k].norm().item() for k in range(4)], rel=1e-6)
    for k in range(4):
        likely, unlikely = targets[:, k] >= 0.5, targets[:, k] < 0.5
        assert observed.positives[k] == likely.sum()
        assert observed.positive_scores[k] == pytest.approx(scores[likely, k].mean().item(), nan_ok=True)
        assert observed.negative_scores[k] == pytest.approx(scores[unlikely, k].mean().item(), nan_ok=True)
    if isinstance(module, AUCMarginLoss):
        assert [np.isnan(value) for value in observed.losses] == [False, False, True, True]
        assert observed.saddle == {name: pytest.approx(getattr(module, name).tolist()) for name in ("a", "b", "alpha")}
        alone = AUCMarginLoss(1)
        alone.load_state_dict({key: value[:1] for key, value in module.state_dict().items()})
        assert observed.losses[0] == pytest.approx(alone(logits[:, :1], targets[:, :1]).item())
    else:
        assert [np.isnan(value) for value in observed.losses] == [False, False, False, True]
        assert observed.saddle == {}


def test_a_step_is_observed_in_one_transfer():
    """On the meta device all but the last step works: what has to be read is one tensor."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        step_of(AUCMarginLoss(4))
    assert reads.count == 2  # the two ends of the targets, which a loss checks on the CPU alone
    with pytest.raises(NotImplementedError, match="meta"), torch.device("meta"):
        weight = torch.nn.Parameter(torch.zeros(6, 4))
        module, targets = AUCMarginLoss(4).to("meta"), torch.zeros(9, 4)
        logits = torch.zeros(9, 6) @ weight
        logits.retain_grad()
        loss, losses, present = module.detailed(logits, targets)
        loss.backward()
        observe(module, loss, losses, present, logits, targets, [weight])


@pytest.fixture(scope="module")
def dataset(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("toy") / "dataset", scans=96))


def test_every_step_is_recorded_and_positives_are_counted_over_the_epoch(dataset, recipe, tmp_path):
    settings = recipe(stage1={"epochs": 1}, stage2={"epochs": 2})
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    steps = records(tmp_path / "run", "step")
    assert len(steps) == sum(isinstance(event, Step) for event in events)
    assert [(s["stage"], s["step"]) for s in steps] == sorted({(s["stage"], s["step"]) for s in steps})
    seen, place = np.zeros(2), None
    for step in steps:
        if (step["stage"], step["epoch"]) != place:
            place, seen = (step["stage"], step["epoch"]), np.zeros(2)
        seen += step["positives"]
        assert step["positives_seen"] == seen.tolist()
        assert ("alpha" in step) == (step["stage"] == 2)
        assert step["gradient_norm"] > 0
        assert len(step["losses"]) == len(step["positive_scores"]) == len(step["logit_gradients"]) == 2
    # a, b and α are those that the loss used: at the first step of the second stage still where they start.
    first = next(step for step in steps if step["stage"] == 2)
    assert first["a"] == first["b"] == first["alpha"] == [0.0, 0.0]
    assert not [text for text in said(events) if "no positive" in text or "sat at 0" in text]


def test_boundaries_by_iteration_and_by_epoch_and_at_the_end(dataset, recipe, tmp_path):
    settings = recipe(
        stage1={"epochs": 2, "decay_epochs": [1]},
        stage2={"epochs": 2, "decay_epochs": [1], "decay_steps": [2], "divide_lr_by": 4},
    )
    run = tmp_path / "run"
    boundaries = [e for e in loop.train(settings, dataset, run, device="cpu") if isinstance(e, Boundary)]
    per_epoch = len(plan.make(settings, dataset).stages[1].sampler)
    first = len(plan.make(settings, dataset).stages[0].sampler)
    assert [(b.stage, b.step, b.lr, b.next_lr) for b in boundaries] == [
        (1, first, pytest.approx(2e-3), pytest.approx(2e-4)),
        (1, 2 * first, pytest.approx(2e-4), None),
        (2, 2, pytest.approx(0.1), pytest.approx(0.025)),
        (2, per_epoch, pytest.approx(0.025), pytest.approx(0.1 / 16)),
        (2, 2 * per_epoch, pytest.approx(0.1 / 16), None),
    ]
    assert [b.distance is None for b in boundaries] == [True, True, False, False, False]
    assert all(b.distance > 0 for b in boundaries[2:])
    written = records(run, "boundary")
    assert [(w["lr"], w["next_lr"]) for w in written] == [(b.lr, b.next_lr) for b in boundaries]
    assert [w["distance"] for w in written[2:]] == pytest.approx([b.distance for b in boundaries[2:]], rel=1e-5)


def test_a_schedule_that_never_comes_is_said(dataset, recipe):
    settings = recipe(stage2={"epochs": 2, "decay_epochs": [1, 2], "decay_steps": [3, 2000]})
    planned = plan.make(settings, dataset)
    texts = [text for text in plan.warnings(planned, settings, dataset) if "never comes" in text]
    steps = 2 * len(planned.stages[1].sampler)
    assert texts == [
        f"stage2.decay_steps: 2000 never comes, the stage has {steps} steps",
        "stage2.decay_epochs: 2 never comes, the stage has 2 epochs",
    ]


def relabelled(dataset, **columns):
    """The dataset with other labels and targets."""
    manifest = dataset.manifest.with_columns(
        pl.Series(f"{kind}:{finding}", np.asarray(values, np.float64)).fill_nan(None)
        for finding, values in columns.items()
        for kind in ("label", "target")
    )
    return Dataset(dataset.path, dataset.info, manifest)


def test_a_finding_that_meets_no_positive_is_said(dataset, recipe, tmp_path):
    none = relabelled(dataset, Fracture=np.zeros(len(dataset.manifest)))
    events = list(loop.train(recipe(stage2={"epochs": 1}), none, tmp_path / "run", device="cpu"))
    texts = [text for text in said(events) if "no positive of Fracture was met" in text]
    assert [text.split(":")[0] for text in texts] == ["stage 1, epoch 1", "stage 1, epoch 2", "stage 2, epoch 1"]
    assert [record["text"] for record in records(tmp_path / "run", "warning")] == texts
    assert not [text for text in said(events) if "α of Fracture" in text or "a ≤ b for Fracture" in text]


def test_scores_that_do_not_separate_are_said(dataset, recipe, tmp_path):
    """A learning rate of nothing: a and b stay where they started."""
    settings = recipe(stage1={"epochs": 0}, stage2={"epochs": 2, "lr": 1e-12, "ab_start": 0.5})
    events = list(loop.train(settings, dataset, tmp_path / "run", device="cpu"))
    texts = [text for text in said(events) if "a ≤ b" in text]
    assert len(texts) == 2
    assert "Edema (a 0.500, b 0.500), Fracture (a 0.500, b 0.500)" in texts[0]


def test_alpha_at_zero_from_the_start_is_said_once(dataset, recipe, tmp_path):
    """A margin that is met before the first step: the classes lie apart by what an untrained network sees of them."""
    hinge_off = recipe(stage1={"epochs": 0}, stage2={"epochs": 2, "margin": 1e-9, "lr": 1e-3}, seed=0)
    found = None
    for seed in range(6):
        run = tmp_path / f"run{seed}"
        settings = hinge_off.model_copy(update={"seed": seed})
        events = list(loop.train(settings, dataset, run, device="cpu"))
        alphas = np.array([step["alpha"] for step in records(run, "step") if step["epoch"] == 1])
        flat = [text for text in said(events) if "sat at 0 from the start" in text]
        names = [name for k, name in enumerate(("Edema", "Fracture")) if not alphas[:, k].any()]
        assert len(flat) <= 1
        for name in ("Edema", "Fracture"):
            if flat and name in flat[0]:
                assert name in names
                found = flat[0]
    assert found
    assert "margin 1e-09" in found
    assert "stage2.margin" in found


@pytest.mark.parametrize("stop", [1, 3])
def test_doubts_survive_a_resume_in_the_middle_of_an_epoch(dataset, recipe, tmp_path, stop):
    none = relabelled(dataset, Fracture=np.zeros(len(dataset.manifest)))
    settings = recipe(stage1={"epochs": 1}, stage2={"epochs": 1, "lr": 1e-12}, checkpoint_every="1 step")
    whole = list(loop.train(settings, none, tmp_path / "whole", device="cpu"))
    with closing(loop.train(settings, none, tmp_path / "run", device="cpu")) as events:
        assert any(isinstance(event, Step) and event.stage == 2 and event.step == stop for event in events)
    rest = list(loop.train(settings, none, tmp_path / "run", device="cpu", resume=True))
    late = [text for text in said(whole) if text.startswith("stage 2, epoch")]
    assert late
    assert [text for text in said(rest) if text.startswith("stage 2, epoch")] == late
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_the_samplers_prior_is_said_beside_the_training_sets(make_toy, recipe, tmp_path):
    dataset = Dataset.open(make_toy(tmp_path / "dataset", scans=96))
    one = Dataset(dataset.path, dataset.info.model_copy(update={"findings": ("Edema",)}), dataset.manifest)
    settings = recipe(stage1={"epochs": 0}, stage2={"form": "prior", "epochs": 1})
    planned = plan.make(settings, one)
    [text] = plan.notes(planned, one)
    share = np.nanmean(one.targets(planned.train))
    assert text == (
        f"stage 2: p is {planned.stages[0].prior[0]:.3g}, the balanced sampler's share of positives; the training "
        f"set's is {share:.3g}"
    )
    events = list(loop.train(settings, one, tmp_path / "run", device="cpu"))
    assert [event.text for event in events if isinstance(event, Noted)] == [text]


def test_a_gradient_that_is_not_finite_is_refused_before_anything_moves(dataset, recipe, tmp_path, monkeypatch):
    """The loss is finite, and one weight's gradient overflows on the way back."""
    settings = recipe(stage2={"epochs": 0}, checkpoint_every="1 step")
    run = tmp_path / "run"
    with closing(loop.train(settings, dataset, run, device="cpu")) as events, pytest.raises(DataError) as raised:
        for event in events:
            if isinstance(event, Step) and event.step == 2:
                monkeypatch.setattr(CrossEntropyLoss, "detailed", _overflowing(CrossEntropyLoss.detailed))
    assert "the gradient's norm is" in str(raised.value)
    report = json.loads((run / "nonfinite.json").read_text())
    assert report["step"] == 3
    assert report["scans"]
    assert checkpoint.read_progress(run).steps == 2
    kept = checkpoint.load_weights(run, "last").values()
    assert all(value.isfinite().all() for value in kept if value.is_floating_point())


def _overflowing(detailed):
    def wrapped(self, logits, targets):
        logits.register_hook(lambda gradient: gradient * float("inf"))
        return detailed(self, logits, targets)

    return wrapped
