"""What a method is: four hooks around one learner, and perhaps a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from cl_bench.buffer import Buffer
from cl_bench.learner import Learner
from cl_bench.types import Batch, Task


class Method:
    """A way to move `learner.flat.theta`; its attributes are its whole state."""

    scenarios: ClassVar[tuple[str, ...]] = ("data", "task", "class")  # those it can serve
    plain: ClassVar[bool] = False  # whether it steps by itself: SGD without momentum or decay

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def begin_task(self, task: Task) -> None:
        """Before the first batch of a task."""

    def observe(self, batch: Batch) -> Tensor:
        """One step on one batch; returns the loss, still on the device."""
        raise NotImplementedError

    def end_task(self, task: Task) -> None:
        """After the last batch of a task; its data will not be seen again."""

    def predict(self, batch: Batch) -> Tensor:
        """(B, K) logits; where all classes compete (data-IL) they may not depend on `batch.t`."""
        return self.learner.logits(self.learner.flat.theta, batch)


class Rehearsal(Method):
    """One with a memory of past samples, which is told where tasks begin and end."""

    def __init__(self, learner: Learner, buffer: Callable[..., Buffer]) -> None:
        super().__init__(learner)
        self.memory = buffer(rng=learner.rng)

    def begin_task(self, task: Task) -> None:
        self.memory.begin_task(task)

    def end_task(self, task: Task) -> None:
        self.memory.end_task()
