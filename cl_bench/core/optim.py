"""SGD on one flat vector: torch.optim.SGD's arithmetic without its per-step bookkeeping.

At batch size 10 the step of torch.optim.SGD costs 60 us, the whole forward and backward pass
of a compiled MLP 150 us. Any torch optimizer serves in its place (`optimizer._target_=...`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import Factor, NonNegative


class Optimizer(Protocol):
    """What a step needs of an optimizer: torch.optim's and `cl_bench.core.optim.SGD` have it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> object: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SGD:
    """v <- momentum v + g; theta <- theta - lr v (v = g at the first step, as in torch)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: NonNegative, momentum: Factor) -> None:
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


PLAIN_SGD = ("cl_bench.core.optim.SGD", "torch.optim.SGD")
STRIDES = (*PLAIN_SGD, "torch.optim.Adam")  # optimizers whose `stride` is known


def stride(optimizer: Any, theta: nn.Parameter) -> Tensor:
    """How far steps go for a unit of constant gradient now: Adam's, an entry at a time, or `rate`.

    In this metric an L1 term's own step is soft thresholding (a proximal step): entries it holds
    are exactly 0, while its slope, which Adam takes as any other, has them swing by lr.
    """
    if not rescales(optimizer):
        return theta.detach().new_full((), rate(optimizer)).expand(theta.shape)
    group, state = optimizer.param_groups[0], optimizer.state[theta]
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
    return group["lr"] / (corrected.sqrt_() + group["eps"])


def rescales(optimizer: Any) -> bool:
    """Whether its steps are along something else than the gradient and its momentum (Adam)."""
    return not isinstance(optimizer, SGD | torch.optim.SGD)


def stability(optimizer: Any, every: int) -> float:
    """The curvature at which SGD's steps begin to diverge on a quadratic taken every n-th step.

    With every = 1 it is 2 (1 + momentum) / lr. Taken n-fold at every n-th step, it is where the
    n steps together, a matrix on (theta, velocity), reach spectral radius 1: found by bisection.
    Infinite where no such number is known: a rescaled gradient (Adam).
    """
    if rescales(optimizer):
        return inf
    lr, m = (optimizer.param_groups[0][key] for key in ("lr", "momentum"))
    if lr == 0:
        return inf
    low, high = 0.0, 2 * (1 + m) / lr
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _bounded(middle * every, lr, m, every) else (low, middle)
    return low


def _bounded(curvature: float, lr: float, m: float, every: int) -> bool:
    free = torch.tensor([[1.0, -lr * m], [0.0, m]], dtype=torch.float64)
    taken = torch.tensor([[1 - lr * curvature, -lr * m], [curvature, m]], dtype=torch.float64)
    whole = taken @ torch.linalg.matrix_power(free, every - 1)
    return bool(torch.linalg.eigvals(whole).abs().max() <= 1 + 1e-12)
