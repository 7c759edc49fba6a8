"""Experience Replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.shared.task_weights import combined


class ER(Rehearsal):
    """Descend on the loss of the new batch and of samples drawn from the memory.

    combine=mean  one mean over new and old samples (the authors' code, Mammoth)
    combine=sum   the mean over new samples plus the mean over old ones
    combine=tasks  in the t-th task 1/t of the first mean plus 1 - 1/t of the second one (van de Ven
                  et al. 2022)
    """

    allows_folding = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        combine: Literal["mean", "sum", "tasks"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.combine = replay, combine
        self.number = 0  # of the task, from 1

    def check_network(self, task: Task) -> None:
        if self.combine == "tasks" and task.parts:
            raise UserError(
                "method.combine=tasks: the method must be told where a task ends; use mean or sum"
            )

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.number += 1

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        if self.memory.empty:
            loss = learner.descend(batch)
        elif self.combine == "mean":
            loss = learner.descend(batch.cat(self.memory.sample(self.replay)))
        else:
            number = self.number if self.combine == "tasks" else None
            loss = learner.descend_on(self._sum, batch, self.memory.sample(self.replay), number)
        self.memory.add(batch)
        return loss

    def _sum(self, theta: Tensor, batch: Batch, old: Batch, number: int | None) -> Tensor:
        """Both means, `combined`, by one forward pass."""
        losses = self.learner.losses(theta, batch.cat(old))
        return combined(losses[: len(batch.y)].mean(), losses[len(batch.y) :].mean(), number)
