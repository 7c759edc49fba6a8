"""The whole matrix, for small networks and for tests: Fisher (GGN) or Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.state import stored_as
from cl_bench.core.types import Task
from cl_bench.curvature.base import NEGATIVE, Estimator, Negative, eigh, fork, subset
from cl_bench.curvature.diagonal import jacobian_rows
from cl_bench.curvature.products import hessian
from cl_bench.curvature.roots import Labels, output_hessian_factor

LARGEST = 8192  # parameters: 256 MiB of float32


@stored_as("dense")
@dataclass(frozen=True)
class Dense:
    """A symmetric matrix A (P, P), stored whole."""

    matrix: Tensor

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors."""
        return eigh(self.matrix)

    def matvec(self, v: Tensor) -> Tensor:
        return v @ self.matrix

    def solve(self, v: Tensor, damping: float) -> Tensor:
        values, vectors = self.eigen
        return ((v @ vectors) / (values + damping)) @ vectors.T

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        return type(self)(mine * self.matrix + theirs * other.matrix)

    def shrinkage(self, damping: float) -> Self:
        values, vectors = self.eigen
        return type(self)(vectors * (values / (values + damping)) @ vectors.T)

    def pull_towards_(self, theta: Tensor, anchor: Tensor) -> None:
        theta.add_(self.matvec(anchor - theta))

    def add_matvec_(self, out: Tensor, v: Tensor, scale: float) -> None:
        out.add_(self.matvec(v), alpha=scale)

    def trace(self) -> Tensor:
        return self.matrix.trace()

    def block_trace(self, span: slice) -> Tensor:
        return self.matrix[span, span].trace()

    def block_norm(self, span: slice) -> Tensor:
        return self.matrix[span, span].norm()

    def max_eigenvalue(self) -> Tensor:
        return self.eigen[0][-1]


class Small(Estimator):
    """An estimator whose memory is the square of the number of parameters."""

    @classmethod
    def most_parameters(cls, options: dict[str, Any]) -> int | None:
        return LARGEST

    def check(self, learner: Learner, task: Task) -> None:
        count = learner.flat.theta.numel()
        if count > LARGEST:
            raise UserError(
                f"curvature: a dense matrix of {count} parameters (at most {LARGEST}); "
                "use a smaller model, kfac or diag_fisher"
            )


class FullFisher(Small):
    """The mean over samples of sum_r J' root_r root_r' J; with labels=exact it is the GGN."""

    def __init__(self, labels: Labels, samples: Count | None) -> None:
        self.labels: Labels = labels
        self.samples = samples

    def __call__(self, learner: Learner, task: Task) -> Dense:
        self.check(learner, task)
        chosen = subset(task, self.samples, learner.rng)
        count = learner.flat.grad.numel()
        total = learner.flat.grad.new_zeros(count, count)
        for rows in jacobian_rows(
            learner, chosen, output_hessian_factor(self.labels, fork(learner.rng))
        ):
            total.addmm_(rows.T, rows)
        learner.machine.processes.sum_(total)
        return Dense(total.div_(len(chosen)))


class FullHessian(Small):
    """The Hessian of the mean loss, its negative eigenvalues kept, reflected or cut off."""

    def __init__(self, negative: Negative, samples: Count | None) -> None:
        self.negative, self.samples = negative, samples

    def __call__(self, learner: Learner, task: Task) -> Dense:
        self.check(learner, task)
        matrix = hessian(learner, subset(task, self.samples, learner.rng))
        if self.negative == "raw":
            return Dense(matrix)
        values, vectors = eigh(matrix)
        return Dense(vectors * NEGATIVE[self.negative](values) @ vectors.T)
