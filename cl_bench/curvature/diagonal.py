"""Diagonal curvature, and its estimate by the empirical Fisher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.func import grad, vmap

from cl_bench.learner import Learner
from cl_bench.types import Batch, Task

FLOATS = 2**25  # per-sample gradients held at once: 128 MiB of float32


@dataclass(frozen=True)
class Diagonal:
    """A = diag(values), values (P,) >= 0."""

    values: Tensor

    def matvec(self, v: Tensor) -> Tensor:
        return self.values * v

    def quadratic(self, v: Tensor) -> Tensor:
        return (self.values * v * v).sum(-1)

    def solve(self, v: Tensor, damping: float) -> Tensor:
        return v / (self.values + damping)

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        return type(self)(mine * self.values + theirs * other.values)


def empirical_fisher(learner: Learner, task: Task) -> Diagonal:
    """Mean over the task of the squared per-sample gradient of the loss at the true label.

    Not the square of a batch's mean gradient, which is smaller by about the batch's size.
    Taken in evaluation mode, without augmentation, in float32; memory is bounded by `FLOATS`.
    """
    theta = learner.flat.theta.detach()
    total = torch.zeros_like(theta)
    with learner.evaluating(full_precision=True):
        for batch in task.chunks(max(1, FLOATS // theta.numel())):
            total += per_sample_gradients(learner.losses, theta, batch).square().sum(0)
    return Diagonal(total / len(task))


def per_sample_gradients(
    losses: Callable[[Tensor, Batch], Tensor], theta: Tensor, batch: Batch
) -> Tensor:
    """(B, P): the gradient of each sample's loss, by one vectorised backward pass."""

    def single(theta: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return losses(theta, Batch(x[None], y[None], t[None])).squeeze(0)

    return vmap(grad(single), in_dims=(None, 0, 0, 0))(theta, batch.x, batch.y, batch.t)
