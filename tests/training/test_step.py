"""One batch: in pieces it has the loss and the gradients of the whole; fp16 keeps its gradients, or says so."""

import copy

import pytest
import torch

from damcli.data.store import Dataset
from damcli.deepauc import AUCMarginLoss, CrossEntropyLoss
from damcli.deepauc.network import Classifier
from damcli.errors import UsageError
from damcli.training import checkpoint, launch, loop, step
from damcli.training.events import Finished, Step


@pytest.fixture(scope="module")
def dataset(make_toy, tmp_path_factory):
    return Dataset.open(make_toy(tmp_path_factory.mktemp("small") / "dataset", scans=96))


def losses():
    yield "ce", CrossEntropyLoss()
    for form in ("conditional", "prior"):
        for score in ("sigmoid", "bsn"):
            prior = 0.3 if form == "prior" else None
            yield f"{form}-{score}", AUCMarginLoss(2, form=form, prior=prior, score=score)


@pytest.mark.parametrize(("name", "loss"), list(losses()))
@pytest.mark.parametrize("pieces", [2, 3])
def test_a_batch_in_pieces_has_the_loss_and_gradients_of_the_whole(name, loss, pieces):
    torch.manual_seed(0)
    network = Classifier("test_convnext", 2).double()  # no batch normalisation
    images, targets = torch.rand(7, 1, 32, 32).double(), (torch.rand(7, 2) < 0.4).double()
    targets[0], targets[1] = 1, 0
    targets[2, 1] = float("nan")
    machine, found = launch.start("cpu", "32"), []
    for number in (1, pieces):
        twin, own = copy.deepcopy(network), copy.deepcopy(loss).double()
        outcome = step.backward(machine, machine.setup(twin), own, images, targets, number, seed=1)
        gradients = [p.grad for p in (*twin.parameters(), *own.parameters())]
        found.append([outcome.loss, outcome.losses, outcome.logits, outcome.logits.grad, *gradients])
    for whole, pieced in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieced, rtol=1e-9, atol=1e-12)


def test_pieces_count_once_in_batch_normalisation_and_draw_one_dropout():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), Dropout())
    machine = launch.start("cpu", "32")
    images = torch.rand(8, 1, 6, 6)
    twin = copy.deepcopy(network)
    for piece in images.tensor_split(2):
        twin(piece)
    model = machine.setup(network)
    step.backward(machine, model, AUCMarginLoss(2), images, torch.eye(2).repeat(4, 1), 2, seed=1)
    torch.testing.assert_close(network[1].running_mean, twin[1].running_mean)
    assert network[1].num_batches_tracked == 2
    first, second, again, and_again = network[3].masks
    assert torch.equal(first, again), "the graph is that of the scores"
    assert torch.equal(second, and_again)
    assert not torch.equal(first, second)


class Dropout(torch.nn.Module):
    """Keeps two of its inputs, and the masks that it drew."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __deepcopy__(self, memo):
        return Dropout()

    def forward(self, values):
        self.masks.append(torch.rand_like(values[:, :2]) < 0.5)
        return values[:, :2] * self.masks[-1]


def test_a_run_in_pieces_ends_as_one_in_whole_batches(dataset, recipe, tmp_path):
    for pieces in (1, 3):
        settings = recipe({"epochs": 1}, {"epochs": 1}, backbone="test_convnext", accumulate=pieces)
        list(loop.train(settings, dataset, tmp_path / str(pieces), device="cpu"))
    one, three = (checkpoint.load_weights(tmp_path / name, "last") for name in "13")
    for name, weights in one.items():
        torch.testing.assert_close(weights, three[name], rtol=1e-3, atol=1e-4)


def test_more_pieces_than_a_batch_has_pairs_are_refused(dataset, recipe, tmp_path):
    with pytest.raises(UsageError, match="a batch of 15 is too small for 1 processes and 9 pieces"):
        list(loop.train(recipe(accumulate=9), dataset, tmp_path / "run", device="cpu"))


def test_fp16_gradients_are_scaled_and_brought_back():
    torch.manual_seed(0)
    network, images, targets = torch.nn.Linear(4, 2), torch.rand(8, 4), torch.eye(2).repeat(4, 1)
    found = {}
    for precision in ("32", "fp16"):
        twin, loss = copy.deepcopy(network), AUCMarginLoss(2)
        machine = launch.start("cpu", precision)
        optimizer = torch.optim.SGD([*twin.parameters(), *loss.parameters()], lr=0.1)
        for pieces in (1, 2):
            optimizer.zero_grad()
            outcome = step.backward(machine, machine.setup(twin), loss, images, targets, pieces, seed=0)
            scale = machine.scaler.get_scale()
            assert scale == (65536 if precision == "fp16" else 1)
            machine.unscale(optimizer)
            gradients = [outcome.logits.grad / scale, twin.weight.grad.clone(), loss.a.grad.clone()]
            found[precision, pieces] = gradients
            machine.scaler.update()
    for key in found:
        for expected, got in zip(found["32", 1], found[key], strict=True):
            torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-3)


def test_fp16_trains_and_records_the_steps_it_could_not_make(dataset, recipe, tmp_path, monkeypatch):
    small = torch.amp.GradScaler
    # So high that the first gradients overflow, as they may on a GPU.
    monkeypatch.setattr(torch.amp, "GradScaler", lambda kind, enabled: small(kind, init_scale=2.0**40, enabled=enabled))
    run = tmp_path / "run"
    settings = recipe({"epochs": 2}, {"epochs": 1}, precision="fp16")
    events = list(loop.train(settings, dataset, run, device="cpu"))
    assert isinstance(events[-1], Finished)
    skipped = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"skipped"' in line]
    assert skipped
    assert not all(event.observed.finite for event in events if isinstance(event, Step))
    assert checkpoint.load_state(run)["scaler"]["scale"] < 2.0**40
    assert all(torch.isfinite(weights).all() for weights in checkpoint.load_weights(run, "last").values())
