"""Diagonal curvature, and its estimate by the empirical Fisher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.func import grad, vmap

from cl_bench.curvature.capture import captured, covers, squared_gradients
from cl_bench.learner import Learner
from cl_bench.types import Batch, Task

FLOATS = 2**25  # of per-sample gradients held at once: 128 MiB of float32
CHUNK = 32  # samples at once, at most: what a layer sees stays in the cache


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
    total = torch.zeros_like(learner.flat.grad)
    layered = covers(learner.net)
    largest = max(learner.flat.sizes) if layered else total.numel()
    with learner.evaluating(full_precision=True):
        for batch in task.chunks(min(CHUNK, max(1, FLOATS // largest))):
            (_add_layered if layered else _add_dense)(total, learner, batch)
    return Diagonal(total.div_(len(task)))


def _add_layered(total: Tensor, learner: Learner, batch: Batch) -> None:
    """By the products of what each layer saw: about the cost of a training step."""
    views = learner.flat.views(total)
    with captured(learner.net) as sites:
        losses = learner.losses(learner.flat.theta, batch)
    for name, square in squared_gradients(sites, losses):
        views[name].add_(square)


def _add_dense(total: Tensor, learner: Learner, batch: Batch) -> None:
    """For any network: all per-sample gradients, one vectorised backward pass."""
    theta = learner.flat.theta.detach()
    total.add_(per_sample_gradients(learner.losses, theta, batch).square().sum(0))


def per_sample_gradients(
    losses: Callable[[Tensor, Batch], Tensor], theta: Tensor, batch: Batch
) -> Tensor:
    """(B, P): the gradient of each sample's loss, by one vectorised backward pass."""

    def single(theta: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return losses(theta, Batch(x[None], y[None], t[None])).squeeze(0)

    return vmap(grad(single), in_dims=(None, 0, 0, 0))(theta, batch.x, batch.y, batch.t)
