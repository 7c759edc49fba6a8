"""What a method is: four hooks around one learner."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cl_bench.learner import Learner
from cl_bench.types import Batch, Task


class Method:
    """A way to move `learner.flat.theta`; its attributes are its whole state."""

    scenarios: ClassVar[tuple[str, ...]] = ("data", "task", "class")  # those it can serve

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
