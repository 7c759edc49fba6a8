"""Single-task learning (STL): a separate network for each task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.base import Separate
from cl_bench.methods.shared.capacity import size


class Independent(Separate):
    """Trains each task from the same initial network: no forgetting, and no transfer."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self.start = learner.snapshot()
        self.learned: dict[int, Snapshot] = {}

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["schedule"]["batch_norm"] == "frozen":
            raise UserError(
                "schedule.batch_norm=frozen: method=independent starts every task anew, from batch "
                "norm that was never trained; use train"
            )

    def observe(self, batch: Batch) -> Tensor:
        return self.learner.descend(batch)

    def end_task(self, task: Task) -> None:
        self.learned[task.id] = self.learner.snapshot()
        self.learner.restore(self.start)
        self.ready.cache_clear()

    def network(self, task: int) -> Snapshot | None:
        return self.learned.get(task)

    def capacity(self) -> dict[str, float]:
        each = [size(self.learner, self.learner.heads.live[task]) for task in self.learned]
        return {"capacity": sum(each), "growth": sum(each) / each[0] - 1} if each else {}
