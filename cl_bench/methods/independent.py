"""A network a task (single-task learning, STL)."""

from __future__ import annotations

from torch import Tensor

from cl_bench.learner import Learner
from cl_bench.methods.base import Separate
from cl_bench.types import Batch, Snapshot, Task


class Independent(Separate):
    """Each task from the same start: nothing is forgotten, and nothing carried over."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self.start = learner.snapshot()
        self.learned: dict[int, Snapshot] = {}

    def observe(self, batch: Batch) -> Tensor:
        return self.learner.descend(self.learner.loss, batch)

    def end_task(self, task: Task) -> None:
        self.learned[task.id] = self.learner.snapshot()
        self.learner.go_back(self.start)
        self.ready.cache_clear()

    def network(self, task: int) -> Snapshot | None:
        return self.learned.get(task)

    def facts(self) -> dict[str, float]:
        learner = self.learner
        single = int(learner.in_use(learner.live[0]).sum())
        single += sum(buffer.numel() for buffer in learner.net.buffers())
        learned = max(len(self.learned), 1)
        return {"capacity": learned * single, "growth": learned - 1}
