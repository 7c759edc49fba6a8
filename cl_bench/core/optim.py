"""SGD on one flat vector, and the step sizes and stability limits of optimizers.

SGD has the arithmetic of torch.optim.SGD without its per-step bookkeeping: at batch size 10 a step
of torch.optim.SGD takes 60 us, the forward and backward pass of a compiled MLP 150 us. Any other
optimizer of PyTorch may take its place (`optimizer._target_=...`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import Factor, NonNegative

KEPT_ON_THE_CPU = {"step", "mu_product"}  # numbers in the states of Adam, and of NAdam


class Optimizer(Protocol):
    """The part of torch.optim.Optimizer's interface that a learner uses."""

    param_groups: list[dict[str, Any]]

    def step(self) -> object: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SGD:
    """v <- momentum v + g; theta <- theta - lr v; at the first step v = g, as in PyTorch."""

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
        if isinstance(lr, Tensor):
            self.theta.addcmul_(update, lr, value=-1)
        else:
            self.theta.add_(update, alpha=-lr)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.velocity = state["velocity"]


def capturable(optimizer: Callable[[Any], Optimizer]) -> Callable[[Any], Optimizer]:
    """The same factory, of optimizers whose step count is on the device, as CUDA graphs need it."""

    def make(params: Any) -> Optimizer:
        made = optimizer(params)
        for group in made.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        return made

    return make


def fused_on(device: torch.device, optimizer: Any) -> Any:
    """Let an optimizer of PyTorch make its step by one kernel where it can, on CUDA and on CPUs.

    On a CPU, Adam takes a fifth of the time for a million parameters, and for 90,000 two thirds.

    optimizer  a `functools.partial` of its class. One that says itself which kernels it takes
               (fused, foreach, differentiable) is not changed
    """
    chosen = {"fused", "foreach", "differentiable"} & optimizer.keywords.keys()
    possible = device.type in ("cuda", "cpu") and "fused" in signature(optimizer.func).parameters
    return partial(optimizer, fused=True) if possible and not chosen else optimizer


def load_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load the state of an optimizer from a checkpoint, whose tensors lie on the device of the run.

    What PyTorch's optimizers keep on the CPU unless they are fused or capturable comes back to the
    CPU: each step reads it, and would wait for the device.
    """
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        if group.get("fused") or group.get("capturable"):
            continue
        for parameter in group.get("params", ()):
            own = optimizer.state[parameter]
            for name in KEPT_ON_THE_CPU & own.keys():
                own[name] = torch.as_tensor(own[name]).cpu()


def effective_lr(optimizer: Any) -> Any:
    """lr / (1 - momentum): the length of a step along a constant unit gradient, in the limit."""
    group = optimizer.param_groups[0]
    return group["lr"] / (1 - group.get("momentum", 0))


PLAIN_SGD = ("cl_bench.core.optim.SGD", "torch.optim.SGD")
KNOWN_STEP_SIZES = (*PLAIN_SGD, "torch.optim.Adam")  # optimizers that `step_sizes` knows


def step_sizes(optimizer: Any, theta: nn.Parameter) -> Tensor:
    """(P,): the present step size of each entry of theta, for a gradient of 1.

    For Adam it is lr / (sqrt(v) + eps) with its second moments v, for SGD `effective_lr`.
    A proximal step on an L1 term with these sizes is soft thresholding and sets entries to exactly
    0; Adam on the L1 term's subgradient would let them oscillate by lr.
    """
    if not rescales_gradient(optimizer):
        return theta.detach().new_full((), effective_lr(optimizer)).expand(theta.shape)
    group, state = optimizer.param_groups[0], optimizer.state[theta]
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
    return group["lr"] / (corrected.sqrt_() + group["eps"])


def rescales_gradient(optimizer: Any) -> bool:
    """Whether the optimizer scales the entries of the gradient, as Adam does; SGD does not."""
    return not isinstance(optimizer, SGD | torch.optim.SGD)


def is_plain_sgd(optimizer: Any) -> bool:
    """Whether a step is theta <- theta - lr gradient and nothing more, with lr a number."""
    if type(optimizer) is not SGD:
        return False
    group = optimizer.param_groups[0]
    return not group["momentum"] and not isinstance(group["lr"], Tensor)


def stability_limit(optimizer: Any, every: int) -> float:
    """The largest curvature of a quadratic penalty at which explicit steps of SGD are stable.

    every  n: the penalty's gradient is added n-fold at every n-th step only

    With n = 1 the limit is 2 (1 + momentum) / lr. Else n steps together are a linear map of
    (theta, velocity), and bisection finds the curvature at which its spectral radius reaches 1.
    Infinite for optimizers that rescale the gradient, whose limit is not known.
    """
    if rescales_gradient(optimizer):
        return inf
    lr, m = (optimizer.param_groups[0][key] for key in ("lr", "momentum"))
    if lr == 0:
        return inf
    low, high = 0.0, 2 * (1 + m) / lr
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_stable(middle * every, lr, m, every) else (low, middle)
    return low


def _is_stable(curvature: float, lr: float, m: float, every: int) -> bool:
    """Whether n steps, one with the penalty and n - 1 without, have spectral radius <= 1."""
    free = torch.tensor([[1.0, -lr * m], [0.0, m]], dtype=torch.float64)
    taken = torch.tensor([[1 - lr * curvature, -lr * m], [curvature, m]], dtype=torch.float64)
    whole = taken @ torch.linalg.matrix_power(free, every - 1)
    return bool(torch.linalg.eigvals(whole).abs().max() <= 1 + 1e-12)
