"""The quadratic penalty on past tasks that EWC, OSLA, MAS, SI and DLCFT add to their loss.

`merging` says how tasks add up in it, `penalty_steps` how a step on loss + penalty is taken.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from hydra.utils import get_object

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.optim import PLAIN_SGD, rescales_gradient
from cl_bench.core.state import Stateful
from cl_bench.core.types import Task
from cl_bench.curvature.base import Curvature
from cl_bench.curvature.merging import Merging, Quadratic, one_per_task, path_of
from cl_bench.curvature.penalty_steps import (
    ExplicitStep,
    ImplicitStep,
    PenaltyStep,
    check_stability,
)

Step = Literal["auto", "explicit", "implicit"]


class Penalty(Stateful):
    """strength/2 sum_j (theta - a_j)' A_j (theta - a_j): one quadratic, or one each task.

    step   explicit: by its gradient, beside the loss's; implicit: by a proximal step after the
           optimizer's, stable at any strength; auto: implicit with SGD, explicit with optimizers
           that rescale gradients, whose proximal step is not known
    every  n: the penalty acts at every n-th step, with n times its strength, and at the end of a
           task for the steps that are left: cheaper where A is costly to apply
    """

    def __init__(
        self, learner: Learner, merging: Merging, strength: float, step: Step, every: int
    ) -> None:
        self.merging, self.strength, self.every = merging, strength, every
        explicit = step == "explicit" or (step == "auto" and rescales_gradient(learner.optimizer))
        self.step: PenaltyStep = ExplicitStep() if explicit else ImplicitStep()
        self.factor = 1.0  # of the strength, in the present task: set by the method
        self.quadratics: list[Quadratic] = []
        self.steps = 0  # since it last acted, or the last task ended

    def check(self, learner: Learner) -> None:
        """Raise UserError where explicit steps would diverge; before the first step of a task."""
        if isinstance(self.step, ExplicitStep) and self._active:
            check_stability(learner, self.quadratics, self.strength, self.factor, self.every)

    @torch.no_grad()
    def move(self, learner: Learner) -> None:
        """Step along `flat.grad`, the loss's gradient, and the penalty."""
        self.steps = (self.steps + 1) % self.every
        if not self.steps and self._active:
            self.step.take(learner, self.quadratics, self._weight * self.every)
        else:
            learner.step()

    @torch.no_grad()
    def end_task(self, learner: Learner) -> None:
        """Make the penalty's step for the steps since it last acted, where every > 1."""
        left, self.steps = self.steps, 0
        if left and self._active:
            self.step.catch_up(learner, self.quadratics, self._weight * left)

    def add(self, learner: Learner, curvature: Curvature, task: Task) -> None:
        """Add the curvature of a finished task, anchored at the present parameters."""
        anchor = learner.flat.theta.detach().clone()
        new = Quadratic(curvature, anchor, len(task.t.unique()), len(task))
        self.quadratics = self.merging(self.quadratics, new)
        self.step.start(self.quadratics)

    @property
    def _weight(self) -> float:
        return self.factor * self.strength

    @property
    def _active(self) -> bool:
        return bool(self.quadratics) and self._weight > 0


def check_options(config: dict[str, Any]) -> None:
    """Raise UserError where step, every or merging do not go with the optimizer or the curvature.

    It is the `check` of each method that has a `Penalty`.
    """
    optimizer, method = config["optimizer"], config["method"]
    proximal = optimizer["_target_"] in PLAIN_SGD
    implied = "implicit" if proximal else "explicit"
    method = {**method, "step": implied if method["step"] == "auto" else method["step"]}
    if not proximal and (method["step"] == "implicit" or method.get("every", 1) > 1):
        key = "method.step=implicit" if method["step"] == "implicit" else "method.every above 1"
        raise UserError(
            f"{key}: with optimizer._target_={optimizer['_target_']}, which may rescale gradients, "
            "its fixed points are not those of loss + penalty; use method.step=explicit"
            + (" and method.every=1" if "every" in method else "")
            + ", or SGD"
        )
    for name in ("nesterov", "dampening", "maximize"):
        if proximal and optimizer.get(name):
            raise UserError(f"optimizer.{name}: a penalty's steps are not worked out for it")
    scaled = "curvature" in method and get_object(method["curvature"]["_target_"]).scaled
    if method.get("merging", {}).get("factors") == "plain" and not scaled:
        raise UserError(
            "merging.factors=plain: makes a difference for TK-FAC alone; use weighted, or "
            "curvature=tkfac"
        )
    separate = method.get("merging", {}).get("_target_") == path_of(one_per_task)
    implicit = separate and method["step"] == "implicit"
    if implicit and not get_object(method["curvature"]["_target_"]).linear:
        raise UserError(
            "merging=apart: Kronecker factors of several tasks have no common inverse; "
            "use method.step=explicit, or another merging"
        )
