"""How an objective's gradient gets into the flat vector: by a graph made anew, or compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad_and_value

from cl_bench.core.flat import FlatParams

Objective = Callable[..., Tensor]  # (theta, *args) -> scalar; `Learner.loss` is the first of them


class Backward:
    """flat.grad = d objective(theta, *args) / d theta (house.md D9)."""

    def __init__(self, flat: FlatParams, compiler: Callable[[Callable], Callable] | None) -> None:
        self.flat, self.compiler = flat, compiler
        self.compiled: dict[Objective, Callable] = {}

    def __call__(self, objective: Callable, args: tuple, more: bool) -> Any:
        """Returns what the objective returned: with `more`, its value and something beside it."""
        flat = self.flat
        if self.compiler is None:
            flat.grad.zero_()
            found = objective(flat.theta, *args)
            (found[0] if more else found).backward()
            return found
        if objective not in self.compiled:
            self.compiled[objective] = self.compiler(grad_and_value(objective, has_aux=more))
        grad, value = self.compiled[objective](flat.theta.detach(), *args)
        flat.grad.copy_(grad)
        return value
