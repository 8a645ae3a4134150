"""PESG against Algorithm 1 in plain NumPy, its state, and the defects it must not have."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from damcli.deepauc import PESG, AUCMarginLoss, AUCSquareLoss, CrossEntropyLoss

STEPS = [("plain", 0.0), ("plain", 0.9), ("adam", 0.0), ("libauc", 0.0), ("libauc", 0.9)]  # update, momentum
CLIPPED_STEPS = [(*s, None) for s in STEPS] + [(*s, 2.0) for s in STEPS if s[0] != "libauc"]  # LibAUC's clamps


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def algorithm_1(x, y, w, p, m, lr, gamma, decay, projected, ends, steps):
    """Algorithm 1 for h = sigmoid(x·w), the prior form, one finding, the gradients as ALGORITHM section 2 has them."""
    v = np.concatenate([w, [0.0, 0.0]])
    alpha, reference, visited = 0.0, v.copy(), []
    for step in range(steps):
        batch = slice(8 * (step % 4), 8 * (step % 4) + 8)
        xs, ys = x[batch], y[batch]
        h, (a, b) = sigmoid(xs @ v[:-2]), v[-2:]
        d_h = 2 * (1 - p) * ys * (h - a - alpha) + 2 * p * (1 - ys) * (h - b + alpha)
        gradient = np.concatenate(
            [
                (d_h * h * (1 - h)) @ xs / len(xs),
                [np.mean(-2 * (1 - p) * (h - a) * ys), np.mean(-2 * p * (h - b) * (1 - ys))],
            ]
        )
        d_alpha = np.mean(2 * (p * (1 - p) * m + p * h * (1 - ys) - (1 - p) * h * ys)) - 2 * p * (1 - p) * alpha
        v = v - lr * (gradient + gamma * (v - reference) + decay * v)
        alpha = alpha + lr * d_alpha
        alpha = max(alpha, 0.0) if projected else alpha
        visited.append(v)
        if step in ends:
            reference, visited, lr = np.mean(visited, axis=0), [], lr / 3
    return v, alpha, reference


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", [AUCMarginLoss, AUCSquareLoss])
def test_is_algorithm_1(kind, decay):
    rng = np.random.default_rng(0)
    x, w = 3 * rng.normal(size=(32, 5)), rng.normal(size=5)
    y = (x @ rng.normal(size=5) > 0).astype(float)  # separable: a − b passes the small margin, α is projected
    margin = 0.2 if kind is AUCMarginLoss else 1.0
    settings = {"lr": 0.9, "gamma": 0.3, "decay": decay, "ends": (6, 12), "steps": 25}
    expected = algorithm_1(x, y, w, 0.25, margin, projected=kind is AUCMarginLoss, **settings)

    network = nn.Linear(5, 1, bias=False).double()
    network.weight.data = torch.from_numpy(w)[None].clone()
    loss = (AUCMarginLoss(1, 0.2, "prior", 0.25) if kind is AUCMarginLoss else AUCSquareLoss(1, "prior", 0.25)).double()
    optimizer = PESG(network.parameters(), loss, lr=0.9, gamma=0.3, weight_decay=decay)
    alphas = []
    for step in range(25):
        rows = slice(8 * (step % 4), 8 * (step % 4) + 8)
        optimizer.zero_grad()
        loss(network(torch.from_numpy(x[rows])), torch.from_numpy(y[rows, None])).backward()
        optimizer.step()
        alphas.append(loss.alpha.item())
        if step in (6, 12):
            optimizer.end_stage(divide_lr_by=3)
    v = torch.cat([network.weight.flatten(), loss.a, loss.b]).detach().numpy()
    reference = torch.cat([optimizer.reference(q).flatten() for q in (network.weight, loss.a, loss.b)])
    np.testing.assert_allclose(v, expected[0], rtol=1e-12)
    np.testing.assert_allclose(alphas[-1], expected[1], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(reference.numpy(), expected[2], rtol=1e-12)
    if kind is AUCMarginLoss:
        assert min(alphas) == 0


def network_and_loss(seed: int = 0, kind: type = AUCMarginLoss) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 3)), kind(3)


def train(network: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator)
        y = (x[:, :3] > 0).float()
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(("update", "momentum"), STEPS)
@pytest.mark.parametrize("saved_at", [0, 9, 10, 14])
def test_a_resumed_run_continues_to_the_bit(update, momentum, saved_at):
    def fresh():
        network, loss = network_and_loss()
        return network, loss, PESG(network.parameters(), loss, 0.1, 0.01, 1e-4, momentum, update=update)

    whole = fresh()
    for step in range(20):
        if step == saved_at:
            saved = copy.deepcopy([part.state_dict() for part in whole])
        train(*whole, range(step, step + 1))
        if step == 9:
            whole[2].end_stage(10)
    resumed = fresh()
    train(*resumed, range(50, 53))  # a state to be overwritten
    resumed = (*resumed[:2], PESG(resumed[0].parameters(), resumed[1], 0.7, update=update))
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    for step in range(saved_at, 20):
        train(*resumed, range(step, step + 1))
        if step == 9:
            resumed[2].end_stage(10)
    for mine, theirs in zip(resumed[:2], whole[:2], strict=True):
        for key, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value), key
    ours, full = resumed[2].state_dict(), whole[2].state_dict()
    assert ours["param_groups"] == full["param_groups"]
    for index, state in full["state"].items():
        for key, value in state.items():
            assert torch.equal(ours["state"][index][key], value), key


def test_state_is_tensors_and_plain_numbers():
    """What a checkpoint of safetensors and JSON can hold; no tensor but two copies of what is descended on."""
    network, loss = network_and_loss()
    optimizer = PESG(network.parameters(), loss, 0.1)
    train(network, loss, optimizer, range(3))
    state = optimizer.state_dict()
    assert len(state["state"]) == 6
    assert all(set(entry) == {"pull", "average"} for entry in state["state"].values())
    assert all(
        isinstance(value, int | float | bool | list) for group in state["param_groups"] for value in group.values()
    )


@pytest.mark.parametrize(("update", "momentum"), STEPS)
@pytest.mark.parametrize("gamma", [0.0, 0.002, 0.37])
def test_nothing_moves_without_a_gradient(update, momentum, gamma):
    """v_ref is the initial point: a weight of 1.0 stays 1.0, whatever γ; in the plain step to the bit."""
    weight = nn.Parameter(torch.tensor([1.0, 0.1, -3.7e-5] * 11))  # longer than a vector register and its remainder
    start = weight.detach().clone()
    optimizer = PESG([weight], AUCMarginLoss(1), lr=0.1, gamma=gamma, momentum=momentum, update=update)
    weight.grad = torch.zeros(33)
    for step in range(2000):
        optimizer.step()
        if step % 500 == 0:
            optimizer.end_stage(1)
    torch.testing.assert_close(weight.detach(), start, rtol=0 if update == "plain" else 1e-6, atol=0)
    torch.testing.assert_close(optimizer.reference(weight), start, rtol=1e-6, atol=0)


def test_momentum_and_decay_are_those_of_torch():
    weights = [nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in range(2)]
    ours = PESG([weights[0]], AUCMarginLoss(1), 0.1, gamma=0.0, weight_decay=0.05, momentum=0.9)
    theirs = torch.optim.SGD([weights[1]], 0.1, momentum=0.9, weight_decay=0.05)
    for step in range(20):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = torch.sin(weight.detach() * 5 + step)
            optimizer.step()
    torch.testing.assert_close(*weights, rtol=1e-12, atol=0)


def gradient_at(weight: np.ndarray, step: int) -> np.ndarray:
    return 3 * np.sin(5 * weight + step)


def by_hand(update, momentum, weight, *, lr, gammas, decay, clip, end):
    """The steps that the paper does not have, in NumPy, with a γ each; a stage ends after step `end`, η is halved."""
    reference, visited = weight.copy(), []
    buffer, mean, square = None, np.zeros_like(weight), np.zeros_like(weight)
    for step, gamma in enumerate(gammas):
        gradient = gradient_at(weight, step)
        if clip:
            gradient = gradient * min(1, clip / (np.linalg.norm(gradient) + 1e-6))
        pull = gamma * (weight - reference) + decay * weight
        if update == "adam":
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            hats = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            weight = weight - lr * pull - lr * hats[0] / (np.sqrt(hats[1]) + 1e-8)
        else:
            term = (gradient.clip(-1, 1) if update == "libauc" else gradient) + pull
            if momentum:
                old, new = (1 - momentum, momentum) if update == "libauc" else (momentum, 1)
                buffer = term if buffer is None else old * buffer + new * term
                term = buffer
            weight = weight - lr * term
        visited.append(weight)
        if step == end:
            reference, visited, lr = np.mean(visited, axis=0), [], lr / 2
    return weight, reference


@pytest.mark.parametrize("changed_at", [5, 13], ids=["before the stage ends", "after it"])
@pytest.mark.parametrize("gammas", [(0.0, 0.0), (0.3, 0.3), (0.3, 0.03), (0.0, 0.3), (0.3, 0.0)])
@pytest.mark.parametrize(("update", "momentum", "clip"), CLIPPED_STEPS)
def test_every_step_is_what_it_says(update, momentum, clip, gammas, changed_at):
    start = np.linspace(-1, 1, 9)
    gammas = [gammas[step >= changed_at] for step in range(20)]
    expected = by_hand(update, momentum, start, lr=0.2, gammas=gammas, decay=0.05, clip=clip, end=8)
    weights = [nn.Parameter(torch.from_numpy(part.copy())) for part in np.split(start, [4])]
    optimizer = PESG(
        weights, AUCMarginLoss(1).double(), 0.2, gammas[0], 0.05, momentum=momentum, clip_norm=clip, update=update
    )
    for step in range(20):
        optimizer.param_groups[0]["gamma"] = gammas[step]
        for weight in weights:
            weight.grad = torch.from_numpy(gradient_at(weight.detach().numpy(), step))
        optimizer.step()
        if step == 8:
            optimizer.end_stage(2)
    np.testing.assert_allclose(torch.cat(weights).detach(), expected[0], rtol=1e-9)
    np.testing.assert_allclose(torch.cat([optimizer.reference(w) for w in weights]), expected[1], rtol=1e-9)
    assert optimizer.distance().item() == pytest.approx(np.linalg.norm(expected[0] - expected[1]), rel=1e-9)


@pytest.mark.parametrize("gammas", [(0.002, 0.02), (0.0, 0.02), (0.02, 0.0)])
def test_another_gamma_leaves_the_reference_where_it_is(gammas):
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    late = nn.Parameter(torch.tensor([3.0]))
    optimizer = PESG([weight, late], AUCMarginLoss(1), 0.1, gamma=gammas[0])
    weight.grad, late.grad = torch.ones(2), torch.ones(1)
    optimizer.step()
    optimizer.param_groups[0]["gamma"] = gammas[1]
    resumed = PESG([weight, late], AUCMarginLoss(1), 0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    late.grad = None
    for step in range(3):
        for one in (optimizer, resumed):
            assert one.reference(weight).tolist() == pytest.approx([1.0, -2.0])
            assert one.reference(late).item() == pytest.approx(3.0), "it does not move, and its reference neither"
        assert optimizer.distance().item() == pytest.approx(resumed.distance().item(), rel=1e-6)
        if step == 0:
            assert optimizer.distance().item() == pytest.approx(0.1 * 3**0.5, rel=1e-5)
        optimizer.step()
        resumed.step()
    optimizer.param_groups[0]["gamma"] = gammas[0]
    optimizer.end_stage()
    assert optimizer.reference(late).item() == pytest.approx(2.9)


@pytest.mark.parametrize(
    ("loss", "alpha"),
    [
        (AUCMarginLoss(1), 0.0),
        (AUCMarginLoss(1, nonnegative=False), -0.4),
        (AUCSquareLoss(1), -0.4),
    ],
    ids=["AUC-M", "AUC-M without its projection", "AUC-S"],
)
def test_libaucs_step_projects_alpha_where_the_loss_does(loss, alpha):
    optimizer = PESG([nn.Parameter(torch.zeros(1))], loss, 0.1, update="libauc")
    loss.a.data.fill_(3.0)
    loss.alpha.grad = torch.zeros(1)
    optimizer.step()  # by 0.1 · 2 (m + b − a)
    assert loss.alpha.item() == pytest.approx(alpha)
    loss.a.data.fill_(1e5)
    optimizer.step()
    assert loss.alpha.item() == (-999 if alpha else 0)


def test_the_norm_is_limited_over_all_of_v_and_not_over_alpha():
    weights, loss = [nn.Parameter(torch.zeros(2)) for _ in range(2)], AUCMarginLoss(1)
    for parameter in [*weights, *loss.parameters()]:
        parameter.grad = torch.full_like(parameter, 3.0)
    PESG([{"params": weights[:1]}, {"params": weights[1:]}], loss, 0.1, clip_norm=1.0).step()
    v = torch.cat([*weights, loss.a, loss.b]).detach()
    torch.testing.assert_close(v, torch.full_like(v, -0.1 / 6**0.5))
    assert loss.alpha.item() == pytest.approx(0.3)


def test_the_reference_keeps_the_layout_of_the_weights():
    """Layouts that differ would be read out of step by the fused kernels."""
    weight = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last))
    start, gradient = weight.detach().clone(), torch.randn(6, 4, 3, 3)
    optimizer = PESG([weight], AUCMarginLoss(1), 0.1, gamma=0.5)
    weight.grad = gradient.to(memory_format=torch.channels_last)
    optimizer.step()
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    expected = start - 0.1 * gradient
    for _ in range(2):
        expected = expected - 0.05 * (expected - start)
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(optimizer.reference(weight), start)


def test_ending_a_stage():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = PESG([weight], AUCMarginLoss(1), lr=0.5, gamma=0.0)
    assert optimizer.distance() == 0
    optimizer.end_stage(10)  # a stage without a step does not end
    assert optimizer.param_groups[0]["lr"] == 0.5
    for _ in range(3):
        weight.grad = torch.full((1,), -2.0, dtype=torch.float64)
        optimizer.step()
    optimizer.end_stage(10)
    optimizer.end_stage(10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05] * 3
    assert weight.item() == 3.0
    assert optimizer.reference(weight).item() == pytest.approx(2.0)  # the mean of 1, 2, 3


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("update", "momentum", "clip_norm"), CLIPPED_STEPS)
@pytest.mark.parametrize("tensors", [2, 400])
def test_a_step_is_few_operator_calls(tensors, update, momentum, clip_norm):
    loss = AUCMarginLoss(3)
    weights = [nn.Parameter(torch.zeros(4)) for _ in range(tensors)]
    optimizer = PESG(weights, loss, 0.1, weight_decay=1e-4, momentum=momentum, clip_norm=clip_norm, update=update)
    for parameter in [*weights, *loss.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with Counter() as counter:
        optimizer.step()
    assert len(counter.calls) <= 20, counter.calls
    assert not [call for call in counter.calls if "_local_scalar_dense" in call or "_to_copy" in call]


@pytest.mark.parametrize(("update", "momentum"), STEPS)
def test_no_step_waits_for_the_device(update, momentum):
    """On the meta device nothing has a value: `.item()`, `.cpu()` and a branch on data would all raise."""
    with torch.library._scoped_library("aten", "IMPL", "Meta") as library:  # torch has none for this kernel
        library.impl("_fused_sgd_", lambda *_, **__: None)
        loss = AUCMarginLoss(3).to("meta")
        network = nn.Linear(4, 3, device="meta")
        optimizer = PESG(network.parameters(), loss, 0.1, momentum=momentum, update=update)
        for _ in range(2):
            loss(network(torch.zeros(8, 4, device="meta")), torch.zeros(8, 3, device="meta")).backward()
            optimizer.step()
            optimizer.end_stage(2)
        assert optimizer.distance().device.type == "meta"


def test_parameters_without_a_gradient_stay():
    frozen, late, weight = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = PESG([frozen, late, weight], AUCMarginLoss(1), 0.1, gamma=0.5, weight_decay=0.1)
    for step in range(4):
        weight.grad = torch.ones(2)
        late.grad = torch.ones(2) if step == 3 else None
        optimizer.step()
    optimizer.end_stage(1)
    assert torch.equal(frozen, torch.ones(2))
    assert frozen not in optimizer.state
    # The late one stood at 1 for three of the stage's four steps.
    torch.testing.assert_close(optimizer.reference(late), (3 + late.detach()) / 4)


def test_groups_have_settings_of_their_own():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = PESG([{"params": weights[:1], "lr": 0.01}, {"params": weights[1:]}], AUCMarginLoss(1), lr=0.1)
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    assert [weight.item() for weight in weights] == pytest.approx([0.99, 0.9])


def test_absent_findings_keep_their_alpha():
    network, loss = network_and_loss()
    optimizer = PESG(network.parameters(), loss, 0.1)
    with torch.no_grad():
        loss.alpha.fill_(0.25)
    y = torch.zeros(8, 3)
    y[:4, 0], y[:, 2] = 1.0, float("nan")
    loss(network(torch.randn(8, 6)), y).backward()
    optimizer.step()
    assert loss.alpha[0] != 0.25
    assert loss.alpha[1:].tolist() == [0.25, 0.25]
    assert (loss.a[1:] == 0).all()


@pytest.mark.parametrize("kind", [AUCMarginLoss, AUCSquareLoss])
def test_it_learns(kind):
    network, loss = network_and_loss(kind=kind)
    train(network, loss, PESG(network.parameters(), loss, 0.5), range(300))
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(999))
    z = network(x).detach()
    for k in range(3):
        positive, negative = z[x[:, k] > 0, k], z[x[:, k] <= 0, k]
        assert (positive[:, None] > negative).float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0.0}, "lr must be positive .* 0.0"),
        ({"lr": float("nan")}, "lr must be positive .* nan"),
        ({"gamma": -0.1}, "gamma must be at least 0 .* -0.1"),
        ({"gamma": 500.0}, r"lr·gamma must be below 1, got 0.1·500.0.*not 500"),
        ({"weight_decay": -1.0}, "weight_decay .* -1.0"),
        ({"momentum": 1.0}, "momentum .* 1.0"),
        ({"momentum": 0.9, "update": "adam"}, "momentum is for .* 0.9"),
        ({"update": "adamw"}, "update must be .* 'adamw'"),
        ({"clip_norm": 0.0}, "clip_norm must be positive .* 0.0"),
        ({"clip_norm": 1.0, "update": "libauc"}, "clip_norm is not for update='libauc'"),
        ({"loss": CrossEntropyLoss()}, "loss must be an AUC loss.* CrossEntropyLoss"),
        ({"params": []}, "params must hold"),
        ({"params": [nn.Parameter(torch.zeros(1).half())]}, "float16: train under autocast"),
        ({"params": [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1).double())]}, "one dtype, got .*float64"),
        ({"params": [{"params": [nn.Parameter(torch.zeros(1))], "leaning_rate": 1}]}, "leaning_rate"),
        ({"params": [{"params": [nn.Parameter(torch.zeros(1))], "lr": 600.0}]}, "lr·gamma must be below 1"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    given = {"params": [nn.Parameter(torch.zeros(1))], "loss": AUCMarginLoss(1), "lr": 0.1, **arguments}
    with pytest.raises(ValueError, match=words):
        PESG(**given)


def test_unknown_arguments_and_bad_divisors_are_refused():
    with pytest.raises(TypeError, match="epoch_decay"):
        PESG([nn.Parameter(torch.zeros(1))], AUCMarginLoss(1), 0.1, epoch_decay=0.003)
    with pytest.raises(ValueError, match=r"divide_lr_by .* 0.5"):
        PESG([nn.Parameter(torch.zeros(1))], AUCMarginLoss(1), 0.1).end_stage(0.5)
