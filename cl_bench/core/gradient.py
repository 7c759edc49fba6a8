"""The gradient of any objective of theta, by autograd or by one compiled graph.

Value and gradient are one call, so that one graph computes both. What a method does to the gradient
afterwards is a few vector operations, which gain nothing from compilation and stay outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value

from cl_bench.core.flat import FlatParams
from cl_bench.core.network import NetworkFunction

Objective = Callable[..., Tensor]  # (theta, *args) -> scalar, such as `Learner.loss`
Compiler = Callable[[Callable], Callable]  # `torch.compile` with a run's options


class GradientEngine(Protocol):
    """Fills `flat.grad` with d objective(theta, *args) / d theta."""

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        """Return the objective's value; with `has_aux`, the pair (value, aux) that it returns."""
        ...


class Eager:
    """Computes the gradient by autograd, with a new graph for each call."""

    def __init__(self, flat: FlatParams) -> None:
        self.flat = flat

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        self.flat.grad.zero_()
        found = objective(self.flat.theta, *args)
        (found[0] if has_aux else found).backward()
        return found


class Compiled:
    """Computes value and gradient by a compiled graph, one for each objective."""

    def __init__(self, flat: FlatParams, compiler: Compiler) -> None:
        self.flat, self.compiler = flat, compiler
        self.graphs: dict[Callable, Callable] = {}

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        if objective not in self.graphs:
            self.graphs[objective] = self.compiler(grad_and_value(objective, has_aux=has_aux))
        grad, value = self.graphs[objective](self.flat.theta.detach(), *args)
        self.flat.grad.copy_(grad)
        return value


class Shared:
    """Computes what the logits of this process' share give, and sums it over the processes.

    The objective must depend on theta by the logits alone.
    """

    def __init__(self, network: NetworkFunction) -> None:
        self.network, self.own = network, Eager(network.flat)

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        with self.network.shared():
            found = self.own(objective, args, has_aux)
        self.network.machine.processes.sum_(self.network.flat.grad)
        return found


def make_engine(network: NetworkFunction) -> GradientEngine:
    """`Shared` with several processes, `Compiled` where a compiler is given, else `Eager`."""
    compiler = network.machine.compiler
    if network.machine.processes.several:
        return Shared(network)
    return Eager(network.flat) if compiler is None else Compiled(network.flat, compiler)


def clip_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a gradient in place to at most this norm (None: any); no synchronisation on CUDA."""
    if max_norm is None:
        return gradient
    norm = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient.mul_((max_norm / norm).clamp(max=1))
