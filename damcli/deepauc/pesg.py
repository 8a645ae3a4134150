"""PESG: proximal epoch stochastic gradient, the optimizer of the AUC losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SETTINGS = {"params", "lr", "gamma", "weight_decay", "momentum", "ascend", "averaged", "param_names"}


class PESG(Optimizer):
    """Proximal epoch stochastic gradient: descends on v = (w, a, b), ascends on α (Algorithm 1 of the paper).

        v ← v − η [ ∇F + γ (v − v_ref) + λ v ]        α ← α + η ∇F, then max(α, 0) for AUC-M

    `params` are the network's (tensors or groups, which may set `lr` and `weight_decay` of their own), `loss` an
    `AUCMarginLoss` or `AUCSquareLoss`, whose a, b and α join by themselves. `lr` is η, `gamma` is γ (it
    multiplies: 1/500, not 500), `weight_decay` is λ, `momentum` as in `torch.optim.SGD`. v_ref is v as the first
    step finds it, and moves at `end_stage` to the mean of v over the stage that ends.

    Tensors move by whole lists: a step over one group is at most 18 operator calls, however many they are (the first
    step, which makes the copies, aside).

    A parameter without a gradient is not moved. Two extra copies of the network are held (three with momentum);
    parameters are float32 or float64 (for half precision, train under autocast).
    Raises `ValueError` for arguments out of range; lr·γ ≥ 1 is refused.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        loss: nn.Module,
        lr: float,
        gamma: float = 0.002,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        saddle = [getattr(loss, name, None) for name in ("a", "b", "alpha")]
        if not all(isinstance(variable, nn.Parameter) for variable in saddle):
            raise ValueError(f"loss must be an AUC loss, with parameters a, b and alpha; got {type(loss).__name__}")
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError("params must hold at least one tensor, got none")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        groups += [{"params": saddle[:2]}, {"params": saddle[2:], "ascend": True, "weight_decay": 0.0}]
        defaults = {"lr": lr, "gamma": gamma, "weight_decay": weight_decay, "momentum": momentum}
        self.nonnegative = bool(getattr(loss, "projected", True))
        # `averaged` counts the steps of the stage; held in the groups, `state_dict` carries it.
        super().__init__(groups, {**defaults, "ascend": False, "averaged": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step from the gradients at hand. Returns what `closure` returns, if one is given."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            if group["ascend"]:
                torch._foreach_add_(moved, [p.grad for p in moved], alpha=group["lr"])
                if self.nonnegative:
                    torch._foreach_clamp_min_(moved, 0.0)
            else:
                self._descend(group, moved)
        return result

    def end_stage(self, divide_lr_by: float = 1.0) -> None:
        """End a stage: the reference becomes the stage's mean, the mean restarts, every η is divided.

        The iterate stays where it is. A stage without a step does not end: calling this twice in a row is harmless.
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
                torch._foreach_copy_([s["reference"] for s in states], [s["average"] for s in states])

    def _descend(self, group: dict[str, Any], moved: list[Tensor]) -> None:
        for p in moved:
            if p not in self.state:
                self.state[p] = {"reference": p.clone(), "average": p.clone()}
                if group["momentum"]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
        gradients: list[Tensor] = [p.grad for p in moved]  # type: ignore[misc]
        references = [self.state[p]["reference"] for p in moved]
        lr, gamma, decay = group["lr"], group["gamma"], group["weight_decay"]
        if group["momentum"]:
            buffers = [self.state[p]["momentum"] for p in moved]
            pull = torch._foreach_sub(moved, references)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            torch._foreach_add_(buffers, pull, alpha=gamma)
            torch._foreach_add_(buffers, moved, alpha=decay)
            torch._foreach_add_(moved, buffers, alpha=-lr)
        else:
            # The pull as an interpolation moves a weight that is at its reference not even by rounding. It comes
            # after the decay, whose factor is chosen so that both together are exactly the step above.
            if decay:
                torch._foreach_mul_(moved, 1 - lr * decay / (1 - lr * gamma))
            torch._foreach_lerp_(moved, references, lr * gamma)
            torch._foreach_add_(moved, gradients, alpha=-lr)
        group["averaged"] += 1
        known = [p for p in group["params"] if p in self.state]
        torch._foreach_lerp_([self.state[p]["average"] for p in known], known, 1 / group["averaged"])


def _check(group: dict[str, Any]) -> None:
    lr, gamma = group["lr"], group["gamma"]
    if unknown := set(group) - SETTINGS:
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
    for p in group["params"]:
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"params must be float32 or float64, got {p.dtype}: train under autocast instead")
