"""A quadratic penalty on past tasks, whatever the curvature and however the tasks add up.

EWC         diagonal Fisher (Kirkpatrick et al. 2017, arXiv:1612.00796; Yang 2022): merging=apart
            is its eq. 13, sum Huszar's (arXiv:1712.03847), online Schwarz et al.'s
            (arXiv:1805.06370); the gradient's 1/2 is in the penalty, other codes may lack it
OSLA        K-FAC (Ritter et al. 2018, arXiv:1805.07810)
MAS         |d ||f||^2 / d theta| (Aljundi et al. 2018, arXiv:1711.09601)
L2          the identity
prior       the second-order Taylor expansion of the old loss (Yun 2020 eq. 3)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.merging import Merging
from cl_bench.curvature.penalty import Penalty, Step, check_options
from cl_bench.methods.base import Method


class EWC(Method):
    """loss + strength/2 (theta - anchor)' A (theta - anchor)."""

    allows_folding = True

    def __init__(
        self,
        learner: Learner,
        curvature: Estimator,
        merging: Merging,
        strength: NonNegative,
        step: Step,
        every: Count,
    ) -> None:
        super().__init__(learner)
        self.estimate, self.penalty = curvature, Penalty(learner, merging, strength, step, every)

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        check_options(config)

    def check_network(self, task: Task) -> None:
        self.estimate.check(self.learner, task)

    def begin_task(self, task: Task) -> None:
        self.check_network(task)
        self.penalty.check(self.learner)

    def observe(self, batch: Batch) -> Tensor:
        loss = self.learner.gradient(batch)
        self.penalty.move(self.learner)
        return loss

    def end_task(self, task: Task) -> None:
        self.penalty.end_task(self.learner)
        self.penalty.add(self.learner, self.estimate(self.learner, task), task)
