"""Synaptic Intelligence (Zenke, Poole & Ganguli 2017, arXiv:1703.04200)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.bounds import NonNegative, Positive
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.diagonal import Diagonal
from cl_bench.curvature.merging import decayed_sum
from cl_bench.curvature.penalty import Penalty, Step, check_options
from cl_bench.methods.base import Method


class SI(Method):
    """omega -= g * (change of theta) each step; Omega += max(omega, 0) / (change^2 + xi) each task.

    g is the gradient of the loss without the penalty; `change` is that of theta over the task. The
    penalty is strength/2 sum Omega (theta - anchor)^2, so that the paper's c is strength / 2. Where
    omega is negative, because the loss rose along a parameter, Omega is 0: the paper's penalty
    would be unbounded below.
    """

    def __init__(self, learner: Learner, strength: NonNegative, xi: Positive, step: Step) -> None:
        super().__init__(learner)
        self.penalty = Penalty(learner, partial(decayed_sum, decay=1.0), strength, step, every=1)
        self.xi = xi
        self.omega = torch.zeros_like(learner.flat.grad)
        self.start = learner.flat.theta.detach().clone()

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        check_options(config)

    def begin_task(self, task: Task) -> None:
        self.penalty.check(self.learner)
        self.omega.zero_()
        self.start.copy_(self.learner.flat.theta.detach())

    def observe(self, batch: Batch) -> Tensor:
        flat = self.learner.flat
        loss = self.learner.gradient(batch)
        slope, before = flat.grad.clone(), flat.theta.detach().clone()
        self.penalty.move(self.learner)
        self.omega.addcmul_(slope, flat.theta.detach() - before, value=-1)
        return loss

    def end_task(self, task: Task) -> None:
        change = self.learner.flat.theta.detach() - self.start
        found = self.omega.clamp(min=0) / (change.square() + self.xi)
        self.penalty.add(self.learner, Diagonal(found), task)
