"""How an objective's gradient gets into the flat vector: eagerly, or by a compiled graph (D9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.func import grad_and_value

from cl_bench.core.flat import FlatParams

Objective = Callable[..., Tensor]  # (theta, *args) -> scalar; `Learner.loss` is the first of them
Compiler = Callable[[Callable], Callable]


class GradientEngine(Protocol):
    """Fills flat.grad with d objective(theta, *args) / d theta."""

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        """Returns the objective's value; with `has_aux`, the pair that the objective returns."""
        ...


class Eager:
    """By autograd's graph, made anew for each batch."""

    def __init__(self, flat: FlatParams) -> None:
        self.flat = flat

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        self.flat.grad.zero_()
        found = objective(self.flat.theta, *args)
        (found[0] if has_aux else found).backward()
        return found


class Compiled:
    """By one compiled graph of value and gradient for each objective."""

    def __init__(self, flat: FlatParams, compiler: Compiler) -> None:
        self.flat, self.compiler = flat, compiler
        self.graphs: dict[Callable, Callable] = {}

    def __call__(self, objective: Callable, args: tuple, has_aux: bool) -> Any:
        if objective not in self.graphs:
            self.graphs[objective] = self.compiler(grad_and_value(objective, has_aux=has_aux))
        grad, value = self.graphs[objective](self.flat.theta.detach(), *args)
        self.flat.grad.copy_(grad)
        return value


def engine(flat: FlatParams, compiler: Compiler | None) -> GradientEngine:
    """The engine of a run: eager unless it has a compiler."""
    return Eager(flat) if compiler is None else Compiled(flat, compiler)
