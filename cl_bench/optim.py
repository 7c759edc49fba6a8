"""SGD on one flat vector: torch.optim.SGD's arithmetic without its per-step bookkeeping.

At batch size 10 the step of torch.optim.SGD costs 60 us, the whole forward and backward pass
of a compiled MLP 150 us. Any torch optimizer serves in its place (`optimizer._target_=...`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

import torch
from torch import Tensor, nn


class SGD:
    """v <- momentum v + g; theta <- theta - lr v (v = g at the first step, as in torch)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        (self.theta,) = params
        self.param_groups = [{"lr": lr, "momentum": momentum}]  # as torch.optim keeps them
        self.velocity: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        update = self.theta.grad
        assert update is not None
        lr, momentum = self.param_groups[0]["lr"], self.param_groups[0]["momentum"]
        if momentum:
            if self.velocity is None:
                self.velocity = update.clone()
            else:
                self.velocity.mul_(momentum).add_(update)
            update = self.velocity
        self.theta.add_(update, alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.velocity = state["velocity"]


def rate(optimizer: Any) -> float:
    """How far a step goes along a constant gradient in the long run: lr / (1 - momentum)."""
    group = optimizer.param_groups[0]
    return group["lr"] / (1 - group.get("momentum", 0))


def stability(optimizer: Any) -> float:
    """The curvature at which its steps begin to diverge: 2 (1 + momentum) / lr for SGD.

    Infinite where no such number is known: a rescaled gradient (Adam).
    """
    if not isinstance(optimizer, SGD | torch.optim.SGD):
        return inf
    group = optimizer.param_groups[0]
    return 2 * (1 + group["momentum"]) / group["lr"]
