"""The two ways to take a step on loss + penalty: with the penalty's gradient, or proximally.

Both have the same fixed points, where the gradients of loss and penalty cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import inf
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.optim import effective_lr, stability_limit
from cl_bench.core.state import Stateful, stored_as
from cl_bench.curvature.base import Curvature
from cl_bench.curvature.merging import Quadratic
from cl_bench.curvature.products import largest_eigenvalue

Quadratics = Sequence[Quadratic]


class PenaltyStep(Protocol):
    """A step on loss + weight * sum of quadratics; the loss's gradient lies in `flat.grad`."""

    def start(self, quadratics: Quadratics) -> None:
        """Prepare for new quadratics, after each task."""
        ...

    def take(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        """Make the optimizer's step and the penalty's."""
        ...

    def catch_up(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        """Make the penalty's step alone, proximally, so that it cannot overshoot."""
        ...


class ExplicitStep(Stateful):
    """Add the gradient of the penalty to that of the loss; stable up to a strength."""

    def start(self, quadratics: Quadratics) -> None:
        """Nothing to prepare."""

    def take(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        flat, reach = learner.flat, effective_lr(learner.optimizer)
        moves = isinstance(reach, Tensor) or reach > 0  # else it would only fill the momentum
        for each in quadratics if moves else ():
            each.curvature.add_matvec_(flat.grad, flat.theta - each.anchor, weight)
        learner.step()

    def catch_up(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        damping = proximal_damping(learner, weight)
        if damping == inf:
            return
        for each in quadratics:
            each.curvature.shrinkage(damping).pull_towards_(learner.flat.theta, each.anchor)


@stored_as("prepared_shrinkage")
class Prepared(NamedTuple):
    """A (A + damping I)^-1 for one damping: it stays while learning rate and weight do."""

    damping: float
    shrinkage: Any  # a Curvature


class ImplicitStep(Stateful):
    """After the optimizer's step, theta <- argmin_x of weight * penalty(x) + |x - theta|^2 / (2 r).

    r is lr / (1 - momentum), how far a gradient takes the parameters in the long run. The step is
    stable at any weight: one Newton step on a quadratic is its minimiser.
    """

    def __init__(self) -> None:
        self.total: Curvature | None = None  # the sum of the A_j, where there are several
        self.prepared: Prepared | None = None

    def start(self, quadratics: Quadratics) -> None:
        several = len(quadratics) > 1
        self.total = sum_of([each.curvature for each in quadratics]) if several else None
        self.prepared = None

    def take(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        learner.step()
        self.catch_up(learner, quadratics, weight)

    def catch_up(self, learner: Learner, quadratics: Quadratics, weight: float) -> None:
        theta, damping = learner.flat.theta, proximal_damping(learner, weight)
        if damping == inf:
            return
        if self.total is not None:
            theta.sub_(self.total.solve(gradient(quadratics, theta), damping))
            return
        if self.prepared is None or self.prepared.damping != damping:
            self.prepared = Prepared(damping, quadratics[0].curvature.shrinkage(damping))
        self.prepared.shrinkage.pull_towards_(theta, quadratics[0].anchor)


def sum_of(curvatures: Sequence[Any]) -> Any:
    """The sum of curvatures of one linear family."""
    return reduce(lambda total, each: each.merge(total, 1.0, 1.0), curvatures)


def gradient(quadratics: Quadratics, theta: Tensor) -> Any:
    """sum_j A_j (theta - a_j), (P,): the penalty's gradient, without its strength."""
    return sum(each.curvature.matvec(theta - each.anchor) for each in quadratics)


def proximal_damping(learner: Learner, weight: float) -> float:
    """(1 - momentum) / (lr weight): what a proximal step adds to the diagonal of A; inf at lr 0."""
    reach = effective_lr(learner.optimizer) * weight
    return 1 / reach if reach else inf


def check_stability(
    learner: Learner, quadratics: Quadratics, strength: float, factor: float, every: int
) -> None:
    """Raise UserError where explicit steps with weight strength * factor would diverge."""
    bound = stability_limit(learner.optimizer, every)
    if bound == inf:
        return
    largest = float(sharpest(quadratics, learner.flat.theta.detach()))
    limit = bound / max(factor * largest, 1e-30)
    if strength >= limit:
        raise UserError(
            f"method.strength={strength}: an explicit step diverges from {limit:.4g} on, "
            f"for this lr, momentum and method.every and a curvature of up to {largest:.3g}; "
            "use method.step=implicit, or a smaller strength or optimizer.lr"
        )


def sharpest(quadratics: Quadratics, theta: Tensor) -> Tensor:
    """The largest eigenvalue of sum_j A_j, a scalar; by power iteration where there are several."""
    if len(quadratics) == 1:
        return quadratics[0].curvature.max_eigenvalue()

    def product(v: Tensor) -> Any:
        return sum(each.curvature.matvec(v) for each in quadratics)

    start = torch.linspace(-1, 1, theta.numel(), device=theta.device).to(theta).cos()
    return largest_eigenvalue(product, start, 100)[0]
