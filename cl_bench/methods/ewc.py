"""Elastic Weight Consolidation: a quadratic penalty on what past tasks need.

Kirkpatrick et al. 2017 (arXiv:1612.00796) in the one-anchor form of Huszar 2018
(arXiv:1712.03847, `decay` = 1: consolidated) and Schwarz et al. 2018 (arXiv:1805.06370,
`decay` < 1: online).
"""

from __future__ import annotations

from torch import Tensor

from cl_bench.curvature.base import Curvature, Estimator
from cl_bench.learner import Learner
from cl_bench.methods.base import Method
from cl_bench.types import Batch, Task


class EWC(Method):
    """loss + strength/2 (theta - anchor)' A (theta - anchor), with A <- A_task + decay A."""

    def __init__(
        self, learner: Learner, curvature: Estimator, strength: float, decay: float
    ) -> None:
        super().__init__(learner)
        self.estimate, self.strength, self.decay = curvature, strength, decay
        self.past: tuple[Curvature, Tensor] | None = None  # (A, anchor)

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        loss = learner.gradient(learner.loss, batch)
        if self.past is not None:
            curvature, anchor = self.past
            pull = curvature.matvec(learner.flat.theta.data - anchor)
            learner.flat.grad.add_(pull, alpha=self.strength)
        learner.step()
        return loss

    def end_task(self, task: Task) -> None:
        found = self.estimate(self.learner, task)
        if self.past is not None:
            found = found.merge(self.past[0], 1.0, self.decay)
        self.past = found, self.learner.flat.theta.detach().clone()
