"""What a curvature is: a positive semi-definite matrix over the flat vector, never built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from torch import Tensor

from cl_bench.learner import Learner
from cl_bench.types import Task


class Curvature(Protocol):
    """A (P, P), immutable; vectors are flat (P,)."""

    def matvec(self, v: Tensor) -> Tensor:
        """A v: the gradient of 1/2 v'Av."""
        ...

    def quadratic(self, v: Tensor) -> Tensor:
        """v'Av, a scalar."""
        ...

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(A + damping I)^-1 v."""
        ...

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        """mine A + theirs B, within one family."""
        ...


Estimator = Callable[[Learner, Task], Curvature]  # accumulation lives inside, locally
