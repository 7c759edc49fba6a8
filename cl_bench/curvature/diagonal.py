"""Diagonal curvatures: identity, Fisher, squared batch gradients, MAS.

Fisher (Kirkpatrick et al. 2017, arXiv:1612.00796; van de Ven 2025 on its variants): the mean over
samples of squared per-sample gradients, at labels that are
    exact      all classes, weighted by the network's probabilities: the diagonal of the GGN
    sampled    one draw for each sample from the network's probabilities: unbiased
    empirical  the true labels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import vjp, vmap

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.core.learner import Learner
from cl_bench.core.state import stored_as
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.backward import own_parts, visits
from cl_bench.curvature.base import Estimator, fork, subset
from cl_bench.curvature.capture import FLOATS, coupled, unserved
from cl_bench.curvature.elementwise import elementwise
from cl_bench.curvature.layer_check import check_layers
from cl_bench.curvature.roots import Labels, RootFn, output_hessian_factor

# the name of an attribute, set on a network whose layers' formulas do not serve
BY_ROWS = "_curvature_by_rows"


@stored_as("diagonal")
@dataclass(frozen=True)
class Diagonal:
    """A = diag(values), values (P,) >= 0."""

    values: Tensor

    def matvec(self, v: Tensor) -> Tensor:
        return self.values * v

    def solve(self, v: Tensor, damping: float) -> Tensor:
        return v / (self.values + damping)

    def merge(self, other: Self, mine: float, theirs: float) -> Self:
        return type(self)(mine * self.values + theirs * other.values)

    def shrinkage(self, damping: float) -> Self:
        return type(self)(self.values / (self.values + damping))

    def pull_towards_(self, theta: Tensor, anchor: Tensor) -> None:
        theta.lerp_(anchor, self.values)

    def add_matvec_(self, out: Tensor, v: Tensor, scale: float) -> None:
        out.addcmul_(self.values, v, value=scale)

    def trace(self) -> Tensor:
        return self.values.sum(-1)

    def block_trace(self, span: slice) -> Tensor:
        return self.values[span].sum()

    def block_norm(self, span: slice) -> Tensor:
        return self.values[span].norm()

    def max_eigenvalue(self) -> Tensor:
        return self.values.amax(-1)


class Identity(Estimator):
    """A = I for all parameters but head rows of classes that have not competed yet."""

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        return Diagonal(learner.heads.in_use(learner.heads.competing_in(task)))


class PerSample(Estimator):
    """An estimator from per-sample gradients.

    They are computed by formulas for layers, or where these do not serve (a layer of another class,
    or one that is used twice in a forward pass), many times slower, as rows of the Jacobian.
    """

    def check(self, learner: Learner, task: Task) -> None:
        name = coupled(learner.net)
        if name is not None:
            raise UserError(
                f"curvature: layer {name} is batch norm without running statistics: "
                "there is no gradient of one sample"
            )
        reason = unserved(learner.net)
        if reason is None:
            try:
                check_layers(learner, task)
            except UserError as error:
                reason = str(error)
        setattr(learner.net, BY_ROWS, reason is not None)
        if reason is not None:
            _check_rows(learner, task, reason)


class Fisher(PerSample):
    """Mean over `samples` of the task (null: all) of sum_r (J' root_r)^2."""

    def __init__(self, labels: Labels, samples: Count | None) -> None:
        self.labels: Labels = labels
        self.samples = samples

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        chosen = subset(task, self.samples, learner.rng)
        return mean_of(
            torch.square, learner, chosen, output_hessian_factor(self.labels, fork(learner.rng))
        )


class BatchedFisher(Estimator):
    """The mean over batches, weighted by size, of the squared gradient of the batch's mean loss.

    It is not a Fisher: signs cancel within a batch, which makes it smaller by about the batch size.
    Many published implementations compute it (GEM, Avalanche, HALRP); it is here to reproduce them.
    """

    @classmethod
    def uses_true_labels(cls, options: dict[str, Any]) -> bool:
        return True

    def __init__(self, batch_size: Count, samples: Count | None) -> None:
        self.batch_size, self.samples = batch_size, samples

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        chosen, total = subset(task, self.samples, learner.rng), torch.zeros_like(learner.flat.grad)
        with learner.evaluating(full_precision=True):
            for batch in chosen.chunks(self.batch_size):
                slope = _gradient(learner, batch)
                total.addcmul_(slope, slope, value=len(batch.y) / len(chosen))
        return Diagonal(total)


def _gradient(learner: Learner, batch: Batch) -> Tensor:
    theta = learner.flat.theta.detach().clone().requires_grad_()
    learner.sample_gradients += len(batch.y)
    return torch.autograd.grad(learner.loss(theta, batch), theta)[0]


class MAS(PerSample):
    """The mean over samples of |d ||f(x)||^2 / d theta| (Aljundi et al. 2018, arXiv:1711.09601).

    The norm is over the outputs of the classes that compete. No label is used.
    """

    def __init__(self, samples: Count | None) -> None:
        self.samples = samples

    def __call__(self, learner: Learner, task: Task) -> Diagonal:
        chosen = subset(task, self.samples, learner.rng)
        return mean_of(torch.abs, learner, chosen, _norm_gradient)


def _norm_gradient(learner: Learner, batch: Batch, logits: Tensor) -> Tensor:
    live = learner.heads.competing(batch)
    return (2 * (logits if live is None else logits * live)).unsqueeze(0)


def mean_of(
    power: Callable[[Tensor], Tensor], learner: Learner, task: Task, roots: RootFn
) -> Diagonal:
    """The mean over samples of sum_r power(J' root_r): by layers, or by rows for any network."""
    total = torch.zeros_like(learner.flat.grad)
    if not getattr(learner.net, BY_ROWS, unserved(learner.net) is not None):
        views = learner.flat.views(total)
        for site, s in visits(learner, task, roots):
            for name, value in elementwise(site, s, power):
                views[name].add_(value)
    else:
        for rows in jacobian_rows(learner, task, roots):
            total.add_(power(rows).sum(0))
    learner.machine.processes.sum_(total)
    return Diagonal(total.div_(len(task)))


def jacobian_rows(learner: Learner, task: Task, roots: RootFn) -> Iterator[Tensor]:
    """Per-sample gradients (R x B, P) of each part of a task, by a vectorised backward pass."""
    theta = learner.flat.theta.detach()
    with learner.evaluating(full_precision=True):
        for whole in own_parts(learner, task, roots):
            with torch.no_grad():
                logits = learner.logits(learner.flat.theta, whole)
            seeds = roots(learner, whole, logits)
            learner.sample_gradients += len(seeds) * len(whole.y)
            size = max(1, FLOATS // (max(1, len(seeds)) * theta.numel()))
            for start in range(0, len(whole.y), size):
                part = slice(start, start + size)
                rows = _rows(learner, theta, whole.rows(part), seeds[:, part])
                yield rows.flatten(0, 1)


def _check_rows(learner: Learner, task: Task, reason: str) -> None:
    """Raise UserError where there are no rows either; `reason` says why there are no formulas."""
    batch = next(task.chunks(2))
    with learner.evaluating(full_precision=True):
        with torch.no_grad():
            logits = learner.logits(learner.flat.theta, batch)
        try:
            _rows(learner, learner.flat.theta.detach(), batch, torch.ones_like(logits)[None])
        except Exception as error:  # whatever the network raises for one sample, or under vmap
            raise UserError(
                f"curvature: the network takes no sample by itself ({one_line(error)}), and there "
                f"is no formula for all of its layers ({reason.removeprefix('curvature: ')})"
            ) from error


def _rows(learner: Learner, theta: Tensor, batch: Batch, roots: Tensor) -> Tensor:
    """(R, B, P): J' root_r of each sample and root."""

    def single(x: Tensor, y: Tensor, t: Tensor, seeds: Tensor) -> Tensor:
        def outputs(theta: Tensor) -> Tensor:
            return learner.logits(theta, Batch(x[None], y[None], t[None]))[0]

        return vmap(vjp(outputs, theta)[1])(seeds)[0]

    return vmap(single, in_dims=(0, 0, 0, 1), out_dims=1)(batch.x, batch.y, batch.t, roots)
