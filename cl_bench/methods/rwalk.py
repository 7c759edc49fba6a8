"""RWalk: EWC++ and path integral scores (Chaudhry et al. 2018, arXiv:1801.10112)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Fraction, NonNegative, Positive
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.curvature.merging import decayed_sum
from cl_bench.curvature.penalty import Penalty, Step, check_options
from cl_bench.methods.base import Method


class RWalk(Method):
    """A penalty by a running Fisher F and a score s of each parameter, each scaled to [0, 1].

    After every `interval` steps, and at the end of a task:
        s_t += max(drop, 0) / (F change^2 / 2 + epsilon)
        F <- alpha F_t + (1 - alpha) F
    where F_t is the mean over these steps of g^2, the squared gradient of the batch's mean loss
    without the penalty, `drop` is minus the sum of g times the change of theta in a step, and
    `change` that of theta over all these steps. F starts at 0 and is kept from task to task. After
    a task s is the mean of s_t and the earlier s (after the first one, s_t).

    The penalty is strength/2 sum (F + s) (theta - anchor)^2, so that the paper's lambda is
    strength / 2. The anchor is theta after the last task.
    """

    def __init__(
        self,
        learner: Learner,
        strength: NonNegative,
        alpha: Fraction,
        interval: Count,
        epsilon: Positive,
        step: Step,
    ) -> None:
        super().__init__(learner)
        self.penalty = Penalty(learner, partial(decayed_sum, decay=0.0), strength, step, every=1)
        self.alpha, self.interval, self.epsilon = alpha, interval, epsilon
        self.fisher = torch.zeros_like(learner.flat.grad)
        self.score = torch.zeros_like(self.fisher)  # s of the past tasks
        self.task_score = torch.zeros_like(self.fisher)  # s_t
        self.squares = torch.zeros_like(self.fisher)  # the sum of g^2 over the steps since `start`
        self.drop = torch.zeros_like(self.fisher)
        self.start = learner.flat.theta.detach().clone()
        self.steps = 0  # since `start`

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        check_options(config)

    def begin_task(self, task: Task) -> None:
        self.penalty.check(self.learner)
        self.task_score.zero_()
        self._begin_interval()

    def observe(self, batch: Batch) -> Tensor:
        flat = self.learner.flat
        loss = self.learner.gradient(batch)
        slope, before = flat.grad.clone(), flat.theta.detach().clone()
        self.penalty.move(self.learner)
        self.drop.addcmul_(slope, flat.theta.detach() - before, value=-1)
        self.squares.addcmul_(slope, slope)
        self.steps += 1
        if self.steps == self.interval:
            self._end_interval()
        return loss

    def end_task(self, task: Task) -> None:
        if self.steps:
            self._end_interval()
        if self.penalty.quadratics:
            self.score.lerp_(self.task_score, 0.5)
        else:
            self.score.copy_(self.task_score)
        found = _scaled(self.fisher) + _scaled(self.score)
        self.penalty.add(self.learner, Diagonal(found), task)

    def _begin_interval(self) -> None:
        self.start.copy_(self.learner.flat.theta.detach())
        self.squares.zero_()
        self.drop.zero_()
        self.steps = 0

    def _end_interval(self) -> None:
        """Add to the score, by the Fisher of before these steps, and then to the Fisher."""
        change = self.learner.flat.theta.detach() - self.start
        distance = self.fisher * change.square() / 2
        self.task_score.add_(self.drop.clamp(min=0) / (distance + self.epsilon))
        self.fisher.lerp_(self.squares / self.steps, self.alpha)
        self._begin_interval()


def _scaled(values: Tensor) -> Tensor:
    """(P,) in [0, 1], by the least and the largest of all values; 0 where these are equal."""
    least, largest = values.aminmax()
    return (values - least) / (largest - least).clamp(min=torch.finfo(values.dtype).tiny)
