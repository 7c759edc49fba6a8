"""A quadratic penalty on what past tasks need, how tasks add up in it, and its two steps."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from hydra.utils import get_object
from torch import Tensor

from cl_bench.base.bounds import Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.optim import PLAIN_SGD, effective_lr, rescales_gradient, stability_limit
from cl_bench.core.state import Stateful, stored_as
from cl_bench.core.types import Task
from cl_bench.curvature.base import Curvature
from cl_bench.curvature.products import largest_eigenvalue


@stored_as("anchored")
class Anchored(NamedTuple):
    """1/2 (theta - anchor)' A (theta - anchor), for so many tasks and samples."""

    curvature: Any  # a Curvature
    anchor: Tensor  # (P,)
    tasks: int
    samples: int


Step = Literal["auto", "explicit", "implicit"]
Merging = Callable[[list[Anchored], Anchored], list[Anchored]]


def path_of(function: Callable) -> str:
    """How a config names a function as its `_target_`."""
    return f"{function.__module__}.{function.__qualname__}"


def decayed(past: list[Anchored], found: Anchored, decay: Share) -> list[Anchored]:
    """A <- A_t + decay A, one anchor: the last theta.

    decay = 1 is consolidated EWC (Huszar 2018, arXiv:1712.03847; Yang 2022 eq. 14), below 1
    online EWC (Schwarz et al. 2018, arXiv:1805.06370), 0 forgets all but the last task.
    """
    return [_merged(old, found, 1.0, decay) for old in past] or [found]


def averaged(
    past: list[Anchored], found: Anchored, by: Literal["tasks", "samples", "literal"]
) -> list[Anchored]:
    """A <- the mean over all tasks (or samples) so far, one anchor: ((t-1) A + A_t) / t.

    Joint training where the loss and the penalty are weighted 1/t and (t-1)/t too (DLCFT); beside
    a loss of weight 1 the past counts as one task, however long it is. by=literal weights past
    and new (t-1) : t instead, as DLCFT prints it: that is not joint training.
    """

    def mean(old: Anchored) -> Anchored:
        counts = (found.tasks, old.tasks) if by == "tasks" else (found.samples, old.samples)
        if by == "literal":
            counts = (found.tasks + old.tasks, old.tasks)
        return _merged(old, found, counts[0] / sum(counts), counts[1] / sum(counts))

    return [mean(old) for old in past] or [found]


def apart(past: list[Anchored], found: Anchored) -> list[Anchored]:
    """Each task keeps its own anchor (Kirkpatrick et al. 2017; Yang 2022 eq. 13).

    Memory and time grow with the number of tasks. Early tasks count again through later anchors
    (Huszar 2018): for three tasks and more this is not what joint training minimises.
    """
    return [*past, found]


def _merged(old: Anchored, new: Anchored, mine: float, theirs: float) -> Anchored:
    curvature = new.curvature.merge(old.curvature, mine, theirs)
    return Anchored(curvature, new.anchor, new.tasks + old.tasks, new.samples + old.samples)


@stored_as("implicit_step")
class Ready(NamedTuple):
    """The implicit step, prepared for one learning rate."""

    damping: float
    shrinkage: Any  # a Curvature


class Penalty(Stateful):
    """strength/2 sum_j (theta - a_j)' A_j (theta - a_j), for one anchor or one each task.

    step=explicit  its gradient joins the loss's: stable up to a strength that `check` knows
    step=implicit  after the step on the loss, theta <- argmin of the penalty +
                   |x - theta|^2 / (2 lr): stable at any strength, with the same fixed points;
                   with momentum m, lr / (1 - m) is what a step goes in the long run
    every=n        at every n-th step and at the end of a task, for the steps since: cheaper where
                   A is costly to apply
    """

    def __init__(
        self,
        merging: Merging,
        strength: float,
        step: Step,
        every: int,
    ) -> None:
        self.merging, self.strength, self.step, self.every = merging, strength, step, every
        self.weight = 1.0  # a method's own factor of the strength, of this task
        self.past: list[Anchored] = []
        self.total: list[Curvature] = []  # the sum, where the anchors are apart
        self.ready: Ready | None = None
        self.count = 0  # steps since a task ended

    @torch.no_grad()
    def move(self, learner: Learner) -> None:
        """The step that `flat.grad` and the penalty ask for together."""
        self.count += 1
        active = self.count % self.every == 0 and self._active(learner)
        if active and self.step == "explicit":
            scale, flat = self._scale * self.every, learner.flat
            for each in self.past:
                each.curvature.add_matvec_(flat.grad, flat.theta - each.anchor, scale)
        learner.step()
        if active and self.step == "implicit":
            self._contract(learner, self.every)

    @torch.no_grad()
    def flush(self, learner: Learner) -> None:
        """Make up for the steps since the penalty was last applied: a task must not end on them.

        By the implicit step whatever `step` says: it is the one that cannot overshoot.
        """
        left, self.count = self.count % self.every, 0
        if not (left and self._active(learner)):
            return
        if self.step == "implicit":
            self._contract(learner, left)
            return
        damping = self._damping(learner, left)
        for each in self.past:
            each.curvature.shrinkage(damping).pull_towards_(learner.flat.theta, each.anchor)

    def check(self, learner: Learner) -> None:
        """UserError where explicit steps on what is there would diverge: before a task's first.

        step=auto is implicit with SGD; another optimizer's steps have no such fixed points.
        """
        if self.step == "auto":
            self.step = "explicit" if rescales_gradient(learner.optimizer) else "implicit"
        if self.step == "implicit" or not self._active(learner):
            return
        bound = stability_limit(learner.optimizer, self.every)
        if bound == inf:
            return
        largest = float(self._largest(learner.flat.theta.detach()))
        limit = bound / max(self.weight * largest, 1e-30)
        if self.strength >= limit:
            raise UserError(
                f"method.strength={self.strength}: an explicit step diverges from {limit:.4g} on, "
                f"for this lr, momentum and method.every and a curvature of up to {largest:.3g}; "
                "use method.step=implicit, or a smaller strength or optimizer.lr"
            )

    def _largest(self, theta: Tensor) -> Tensor:
        """The largest eigenvalue of sum_j A_j."""
        if len(self.past) == 1:
            return self.past[0].curvature.max_eigenvalue()

        def product(v: Tensor) -> Any:
            return sum(each.curvature.matvec(v) for each in self.past)

        start = torch.linspace(-1, 1, theta.numel(), device=theta.device).to(theta).cos()
        return largest_eigenvalue(product, start, 100)[0]

    @property
    def _scale(self) -> float:
        """What the penalty counts beside the loss in this task."""
        return self.weight * self.strength

    def _damping(self, learner: Learner, steps: int) -> float:
        return 1 / (effective_lr(learner.optimizer) * self._scale * steps)

    def _active(self, learner: Learner) -> bool:
        return bool(self.past) and self._scale > 0 and effective_lr(learner.optimizer) > 0

    def pull(self, theta: Tensor) -> Any:
        """sum_j A_j (theta - a_j): the gradient, without the strength."""
        return sum(each.curvature.matvec(theta - each.anchor) for each in self.past)

    def add(self, learner: Learner, curvature: Curvature, task: Task) -> None:
        """Take in a finished task: its curvature at the present theta, which is the anchor."""
        anchor = learner.flat.theta.detach().clone()
        found = Anchored(curvature, anchor, len(task.t.unique()), len(task))
        before, self.past = self.past, self.merging(self.past, found)
        if len(self.past) > 1 and self.step == "implicit":
            self.total = [found.curvature.merge(self._whole(before), 1.0, 1.0)]
        self.ready = None

    def _whole(self, past: list[Anchored]) -> Any:
        return self.total[0] if self.total else past[0].curvature

    def _contract(self, learner: Learner, steps: int) -> None:
        """The implicit step: one Newton step on a quadratic is its minimiser."""
        theta, whole = learner.flat.theta, self._whole(self.past)
        damping = self._damping(learner, steps)
        if len(self.past) > 1:
            theta.sub_(whole.solve(self.pull(theta), damping))
            return
        if self.ready is None or self.ready.damping != damping:
            self.ready = Ready(damping, whole.shrinkage(damping))
        self.ready.shrinkage.pull_towards_(theta, self.past[0].anchor)


def check_options(config: dict[str, Any]) -> None:
    """The `check` of a method that has a `Penalty`, for its options step, every and merging.

    UserError where they do not go with the optimizer or the curvature.
    """
    optimizer, method = config["optimizer"], config["method"]
    proximal = optimizer["_target_"] in PLAIN_SGD
    implied = "implicit" if proximal else "explicit"
    method = {**method, "step": implied if method["step"] == "auto" else method["step"]}
    if not proximal and (method["step"] == "implicit" or method.get("every", 1) > 1):
        key = "method.step=implicit" if method["step"] == "implicit" else "method.every above 1"
        raise UserError(
            f"{key}: with optimizer._target_={optimizer['_target_']}, which may rescale gradients, "
            "its fixed points are not those of loss + penalty; use method.step=explicit and "
            "method.every=1, or SGD"
        )
    for name in ("nesterov", "dampening", "maximize"):
        if proximal and optimizer.get(name):
            raise UserError(f"optimizer.{name}: a penalty's steps are not worked out for it")
    separate = method.get("merging", {}).get("_target_") == path_of(apart)
    implicit = separate and method["step"] == "implicit"
    if implicit and not get_object(method["curvature"]["_target_"]).linear:
        raise UserError(
            "merging=apart: Kronecker factors of several tasks have no common inverse; "
            "use method.step=explicit, or another merging"
        )
