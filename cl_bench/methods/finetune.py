"""Fine-tuning: plain gradient descent. With stream=joint it is joint training, the upper bound."""

from __future__ import annotations

from torch import Tensor

from cl_bench.core.types import Batch
from cl_bench.methods.base import Method


class Finetune(Method):
    """theta <- theta - lr grad loss(theta, batch)."""

    allows_folding = True
    task_free = True

    def observe(self, batch: Batch) -> Tensor:
        return self.learner.descend(batch)
