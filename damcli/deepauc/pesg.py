"""PESG: proximal epoch stochastic gradient, the optimizer of the AUC losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from damcli.deepauc import processes

Update = Literal["plain", "adam", "libauc"]
SETTINGS = {"lr", "gamma", "weight_decay", "momentum"}
INTERNAL = {"params", "param_names", "ascend", "averaged", "fused", "scale"}
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
LIBAUC_CLAMP, LIBAUC_LARGEST_ALPHA = 1.0, 999.0


class PESG(Optimizer):
    """Proximal epoch stochastic gradient: descends on v = (w, a, b), ascends on α (Algorithm 1 of the paper).

        v ← v − η [ ∇F + γ (v − v_ref) + λ v ]        α ← α + η ∇F, then max(α, 0) for AUC-M

    `params` are the network's (tensors, or groups that may set `lr`, `gamma`, `weight_decay` and `momentum` of their
    own), `loss` an `AUCMarginLoss` or `AUCSquareLoss`, whose a, b and α join by themselves. `lr` is η, `gamma` is γ
    (it multiplies: 1/500, not 500), `weight_decay` is λ. v_ref is v as the first step finds it, and moves at
    `end_stage` to the mean of v over the stage that ends; a group's γ may change at any time. Where several processes
    train together all start from rank 0's v and α.

    Beyond the paper, off by default: `momentum` as in `torch.optim.SGD`; `clip_norm`, the largest norm that the
    gradient of v may have; and two steps other than the `plain` one:

    - `update="adam"`: Adam on ∇F (β 0.9 and 0.999, ε 1e-8), the terms of γ and λ decoupled from it as AdamW's are;
    - `update="libauc"`: that of LibAUC 2.0.1, to compare with: ∇F clamped to ±1 element by element, `momentum` (0.9
      is its default) a moving average in which the newest term weighs `momentum`, and α moved by
      2 (m + b − a) − 2 α in place of its gradient. `gamma` is its `epoch_decay`, `end_stage` its
      `update_regularizer`. Only the step is LibAUC's: v_ref starts at v, not at noise.

    Tensors move by whole lists: a step over one group is at most 20 operator calls, however many they are (the first
    step, which makes the copies, aside), and none waits for the device.

    A parameter without a gradient is not moved. Two extra copies of the network are held (three with momentum, four
    with Adam); parameters are float32 or float64 (for half precision, train under autocast).
    Raises `ValueError` for arguments out of range; lr·γ ≥ 1 is refused.

    >>> from damcli.deepauc import AUCMarginLoss
    >>> network, loss = nn.Linear(2, 1), AUCMarginLoss(1)
    >>> optimizer = PESG(network.parameters(), loss, lr=0.1)
    >>> loss(network(torch.eye(2)), torch.tensor([[1.0], [0.0]])).backward()
    >>> optimizer.step()
    >>> optimizer.end_stage(divide_lr_by=10)
    >>> optimizer.param_groups[0]["lr"]
    0.01
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        loss: nn.Module,
        lr: float,
        gamma: float = 0.002,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        clip_norm: float | None = None,
        update: Update = "plain",
    ) -> None:
        saddle = [getattr(loss, name, None) for name in ("a", "b", "alpha")]
        if not all(isinstance(variable, nn.Parameter) for variable in saddle):
            raise ValueError(f"loss must be an AUC loss, with parameters a, b and alpha; got {type(loss).__name__}")
        if update not in get_args(Update):
            raise ValueError(f"update must be 'plain', 'adam' or 'libauc', got {update!r}")
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ValueError(f"clip_norm must be positive and finite, got {clip_norm}")
        if clip_norm is not None and update == "libauc":
            raise ValueError(f"clip_norm is not for update='libauc', which clamps every element; got {clip_norm}")
        self.loss, self.clip_norm, self.update = loss, clip_norm, update
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError("params must hold at least one tensor, got none")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        groups += [{"params": saddle[:2]}, {"params": saddle[2:], "ascend": True, "weight_decay": 0.0}]
        settings = {"lr": lr, "gamma": gamma, "weight_decay": weight_decay, "momentum": momentum}
        # `averaged` counts the steps of the stage; held in the groups, `state_dict` carries it. `fused` tells
        # `load_state_dict` to put Adam's counters where the parameters are.
        super().__init__(groups, {**settings, "ascend": False, "averaged": 0, "fused": True})
        # As the loss: one in evaluation mode is that of this process alone, and others may not come here at all.
        if loss.training and processes.count() > 1:
            processes.broadcast([p for group in self.param_groups for p in group["params"]])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group, self.update)
        group["scale"] = _scale(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step from the gradients at hand. Returns what `closure` returns, if one is given.

        With `clip_norm` the gradients of v are scaled in place.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        moving = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        if self.clip_norm is not None:
            v = [p for group, moved in moving if not group["ascend"] for p in moved]
            nn.utils.clip_grad_norm_(v, self.clip_norm, foreach=True)
        for group, moved in moving:
            if moved:
                self._ascend(group, moved) if group["ascend"] else self._descend(group, moved)
        return result

    @torch.no_grad()
    def end_stage(self, divide_lr_by: float = 1.0) -> None:
        """End a stage: the reference becomes the stage's mean, the mean restarts, every η is divided.

        The iterate stays where it is. A stage without a step does not end: calling this twice in a row is harmless.
        Raises `ValueError` for a divisor below 1.
        """
        if not 1 <= divide_lr_by < math.inf:
            raise ValueError(f"divide_lr_by must be at least 1 and finite, got {divide_lr_by}")
        if not any(group["averaged"] for group in self.param_groups):
            return
        for group in self.param_groups:
            group["lr"] /= divide_lr_by
            group["averaged"] = 0
            states = [self.state[p] for p in group["params"] if p in self.state]
            if states:
                torch._foreach_copy_([s["pull"] for s in states], [s["average"] for s in states])
                group["scale"] = _scale(group)
                torch._foreach_mul_([s["pull"] for s in states], -group["scale"])

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Return ‖v − v_ref‖ as a tensor of no dimensions, 0 before the first step; it does not wait for the device."""
        norms: list[Tensor] = []
        for group in self.param_groups:
            known = [p for p in group["params"] if p in self.state]
            if known:
                pulls = [self.state[p]["pull"] for p in known]
                norms += torch._foreach_norm(torch._foreach_add(known, pulls, alpha=1 / group["scale"]))
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    @torch.no_grad()
    def reference(self, parameter: Tensor) -> Tensor:
        """Return v_ref of a parameter, as a copy. Raises `KeyError` where no step has moved it yet."""
        if parameter not in self.state:
            raise KeyError("no step has moved this parameter yet")
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        return self.state[parameter]["pull"] / -group["scale"]

    def _descend(self, group: dict[str, Any], moved: list[Tensor]) -> None:
        if group["scale"] != _scale(group):
            self._rescale(group)
        self._remember(group, moved)
        gradients: list[Tensor] = [p.grad for p in moved]  # type: ignore[misc]
        states = [self.state[p] for p in moved]
        pulls = [s["pull"] for s in states] if group["gamma"] else []
        lr, momentum, shrink = group["lr"], group["momentum"], group["gamma"] + group["weight_decay"]
        if self.update == "adam":
            means, squares, steps = ([s[name] for s in states] for name in ("mean", "square", "step"))
            torch._foreach_add_(steps, 1.0)
            torch._fused_adamw_(
                moved, gradients, means, squares, [], steps, lr=lr, beta1=BETA1, beta2=BETA2, weight_decay=shrink,
                eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip
            if pulls:
                torch._foreach_add_(moved, pulls, alpha=-lr)
        elif self.update == "plain" and not momentum:
            # All in one pass: with these settings the kernel leaves its buffer as it is, and adds it to the gradient.
            # A weight that is at its reference then does not move even by rounding.
            _fused_sgd(moved, gradients, pulls, lr, shrink, momentum=bool(pulls), dampening=1.0, nesterov=bool(pulls))
        else:
            if self.update == "libauc":
                gradients = list(torch._foreach_clamp_min(gradients, -LIBAUC_CLAMP))
                torch._foreach_clamp_max_(gradients, LIBAUC_CLAMP)
                torch._foreach_add_(gradients, moved, alpha=shrink)
            else:
                gradients = list(torch._foreach_add(gradients, moved, alpha=shrink))
            if pulls:
                torch._foreach_add_(gradients, pulls)
            buffers = [s["momentum"] for s in states] if momentum else []
            kept = 1 - momentum if self.update == "libauc" else momentum
            dampening = kept if self.update == "libauc" else 0.0
            _fused_sgd(moved, gradients, buffers, lr, 0.0, momentum=kept if momentum else 0.0, dampening=dampening)
        group["averaged"] += 1
        known = [p for p in group["params"] if p in self.state]
        torch._foreach_lerp_([self.state[p]["average"] for p in known], known, 1 / group["averaged"])

    def _rescale(self, group: dict[str, Any]) -> None:
        """Keep every v_ref where it is: the γ of the group is not the one that its pulls were made with."""
        pulls = [self.state[p]["pull"] for p in group["params"] if p in self.state]
        if pulls:
            torch._foreach_mul_(pulls, _scale(group) / group["scale"])
        group["scale"] = _scale(group)

    def _ascend(self, group: dict[str, Any], moved: list[Tensor]) -> None:
        lr, projected = group["lr"], getattr(self.loss, "projected", True)
        if self.update == "libauc":
            loss: Any = self.loss
            loss.alpha.add_(2 * (loss.margin + loss.b - loss.a - loss.alpha), alpha=lr)
            loss.alpha.clamp_(0.0 if projected else -LIBAUC_LARGEST_ALPHA, LIBAUC_LARGEST_ALPHA)
            return
        gradients: list[Tensor] = [p.grad for p in moved]  # type: ignore[misc]
        torch._foreach_add_(moved, gradients, alpha=lr)
        if projected:
            torch._foreach_clamp_min_(moved, 0.0)

    def _remember(self, group: dict[str, Any], moved: list[Tensor]) -> None:
        """Begin the state of the parameters that move for the first time.

        The reference is held as −γ·v_ref, the constant that a step adds to the gradient (as −v_ref where γ is 0); the
        group's `scale` is the factor that its pulls were made with.
        """
        for p in moved:
            if p in self.state:
                continue
            state = self.state[p] = {"pull": p * -_scale(group), "average": p.clone()}
            if self.update == "adam":
                state |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            elif group["momentum"]:
                state["momentum"] = self._first_buffer(p, state["pull"], group)

    def _first_buffer(self, p: Tensor, pull: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what makes the first step of a moving average (LibAUC's) or of a sum (torch's) its own first term."""
        if self.update == "plain":
            return torch.zeros_like(p)
        assert p.grad is not None
        first = p.grad.clamp(-LIBAUC_CLAMP, LIBAUC_CLAMP).add(p, alpha=group["gamma"] + group["weight_decay"])
        return first + pull if group["gamma"] else first


def _scale(group: dict[str, Any]) -> float:
    return float(group["gamma"] or 1.0)


def _fused_sgd(
    moved: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    lr: float,
    decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool = False,
) -> None:
    torch._fused_sgd_(
        moved, gradients, buffers, weight_decay=decay, momentum=float(momentum), lr=lr, dampening=dampening,
        nesterov=nesterov, maximize=False, is_first_step=False,
    )  # fmt: skip


def _check(group: dict[str, Any], update: str) -> None:
    lr, gamma = group["lr"], group["gamma"]
    if unknown := set(group) - SETTINGS - INTERNAL:
        raise ValueError(f"params: a group may set lr, gamma, weight_decay and momentum, got {sorted(unknown)}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0 and finite, got {gamma}")
    if lr * gamma >= 1:
        raise ValueError(f"lr·gamma must be below 1, got {lr}·{gamma}: gamma multiplies, like 0.002 (not 500)")
    if not 0 <= group["weight_decay"] < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {group['weight_decay']}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if group["momentum"] and update == "adam":
        raise ValueError(f"momentum is for update='plain' and 'libauc', Adam has its own; got {group['momentum']}")
    for p in group["params"]:
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"params must be float32 or float64, got {p.dtype}: train under autocast instead")
    if len(dtypes := {p.dtype for p in group["params"]}) > 1:
        raise ValueError(f"params of one group must be of one dtype, got {', '.join(sorted(map(str, dtypes)))}")
