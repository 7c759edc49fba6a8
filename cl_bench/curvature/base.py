"""The operations of a curvature matrix A (P, P), which is not built, and of its estimators."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Generator, Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Task, in_float64, to_device_of

LARGE = 256  # rows of a matrix whose eigenvectors CUDA may compute in float32
TOLERANCE = 1e-5  # of `checked_eigh`


class Curvature(Protocol):
    """A symmetric matrix A (P, P) that is never changed; vectors are flat, (..., P).

    `shrinkage`, `pull_towards_` and `add_matvec_` are what the steps of a penalty are made of: the
    first is worked out once a task, the others make few passes over memory.
    """

    def matvec(self, v: Tensor) -> Tensor:
        """A v: the gradient of 1/2 v'Av."""
        ...

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(A + damping I)^-1 v."""
        ...

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        """mine A + theirs B for B of the same class, or the class's approximation of that sum."""
        ...

    def shrinkage(self, damping: float) -> Curvature:
        """A (A + damping I)^-1: the share of the way to an anchor that a proximal step goes."""
        ...

    def pull_towards_(self, theta: Tensor, anchor: Tensor) -> None:
        """theta <- theta + A (anchor - theta), in place."""
        ...

    def add_matvec_(self, out: Tensor, v: Tensor, scale: float) -> None:
        """out <- out + scale A v, in place."""
        ...

    def trace(self) -> Tensor:
        """The sum of the eigenvalues, a scalar."""
        ...

    def block_trace(self, span: slice) -> Tensor:
        """The trace, a scalar, of the block A[span, span] of one weight of a layer."""
        ...

    def block_norm(self, span: slice) -> Tensor:
        """The Frobenius norm, a scalar, of the block A[span, span] of one weight of a layer."""
        ...

    def max_eigenvalue(self) -> Tensor:
        """The largest eigenvalue, a scalar."""
        ...


class Estimator:
    """Estimates a curvature from the data of a task.

    Data is used in its order, without augmentation, with the network in evaluation mode and in
    single precision. Nothing is kept between tasks, and the memory beside the result is that of a
    batch.
    """

    linear: ClassVar[bool] = True  # whether `merge` of its result is the sum of the matrices
    penalty: ClassVar[bool] = True  # whether it gives a matrix at all
    scaled: ClassVar[bool] = False  # whether a scale multiplies its Kronecker product

    @classmethod
    def uses_true_labels(cls, options: dict[str, Any]) -> bool:
        """Whether it squares gradients at the true labels, which vanish with the training loss."""
        return options.get("labels") == "empirical"

    @classmethod
    def may_be_negative(cls, options: dict[str, Any]) -> bool:
        """Whether its matrix may have negative eigenvalues."""
        return options.get("negative") == "raw"

    @classmethod
    def most_parameters(cls, options: dict[str, Any]) -> int | None:
        """The largest number of trained parameters that it can handle; None: any number."""
        return None

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """The options that make no difference, given the others."""
        return set()

    def check(self, learner: Learner, task: Task) -> None:
        """Raise UserError where it cannot handle the network; called before a task's first step."""

    def __call__(self, learner: Learner, task: Task) -> Curvature:
        """The curvature of the mean loss over the task's samples, at the present parameters."""
        raise NotImplementedError


Negative = Literal["raw", "absolute", "clamped"]  # what becomes of negative eigenvalues

NEGATIVE = {"raw": lambda x: x, "absolute": Tensor.abs, "clamped": lambda x: x.clamp(min=0)}


def subset(task: Task, samples: int | None, rng: Generator) -> Task:
    """The task, or `samples` of it drawn without replacement."""
    if samples is None or samples >= len(task):
        return task
    chosen = to_device_of(torch.randperm(len(task), generator=rng)[:samples].sort().values, task.y)
    return Task(task.id, task.x[chosen], task.y[chosen], task.t[chosen])


def fork(rng: Generator) -> Generator:
    """A new generator, seeded by one draw of `rng`: it can be made again for the same draws."""
    return Generator().manual_seed(int(torch.randint(2**53, (), generator=rng)))


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and eigenvectors, computed in float64.

    In float32 LAPACK fails on Kronecker factors of low rank with denormal entries. CUDA decomposes
    large matrices in float32, where that passes a check: most GPUs have few units for float64.
    """
    if matrix.is_cuda and matrix.dtype == torch.float32 and len(matrix) >= LARGE:
        found = checked_eigh(matrix)
        if found is not None:
            return found
    values, vectors = torch.linalg.eigh(in_float64(matrix))
    return values.to(matrix), vectors.to(matrix)


def checked_eigh(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues and eigenvectors in the matrix' own precision; None where they are not exact.

    The residuals of A V = V L and of V'V = I are at most TOLERANCE, relative to |A| and to |I|.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # it did not converge
        return None
    residual = (matrix @ vectors - vectors * values).norm() / matrix.norm()
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    skew = (vectors.T @ vectors - eye).norm() / eye.norm()
    return (values, vectors) if bool(torch.maximum(residual, skew) <= TOLERANCE) else None
