"""Experience Replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class ER(Rehearsal):
    """Descend on the loss of the new batch and of samples drawn from the memory.

    combine=mean  one mean over new and old samples (the authors' code, Mammoth)
    combine=sum   the mean over new samples plus the mean over old ones
    """

    allows_folding = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        combine: Literal["mean", "sum"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.combine = replay, combine

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        if self.memory.empty:
            loss = learner.descend(batch)
        elif self.combine == "mean":
            loss = learner.descend(batch.cat(self.memory.sample(self.replay)))
        else:
            loss = learner.descend_on(self._sum, batch, self.memory.sample(self.replay))
        self.memory.add(batch)
        return loss

    def _sum(self, theta: Tensor, batch: Batch, old: Batch) -> Tensor:
        """The sum of both means, by one forward pass."""
        losses = self.learner.losses(theta, batch.cat(old))
        return losses[: len(batch.y)].mean() + losses[len(batch.y) :].mean()
