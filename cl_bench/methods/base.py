"""What a method is: four hooks around one learner, and perhaps a memory, or a network a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.core.buffer import Buffer
from cl_bench.core.learner import Learner
from cl_bench.core.state import Stateful
from cl_bench.core.types import Batch, Snapshot, Task


class Method(Stateful):
    """A way to move `learner.flat.theta`; its attributes are its whole state."""

    scenarios: ClassVar[tuple[str, ...]] = ("data", "task", "class")  # those it can serve
    # it steps by itself, as SGD without momentum or weight decay
    requires_plain_sgd: ClassVar[bool] = False
    # its penalties take the place of weight decay
    forbids_weight_decay: ClassVar[bool] = False
    # its curvature, if it has one, makes a quadratic penalty
    curvature_is_penalty: ClassVar[bool] = True

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        """UserError where the rest of a resolved config does not go with the method's own part."""

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        """Keys that make no difference where the rest is as it is: a run's name leaves them out."""
        return set()

    def begin_task(self, task: Task) -> None:
        """Before the first batch of a task."""

    def observe(self, batch: Batch) -> Tensor:
        """One step on one batch; returns the loss, still on the device."""
        raise NotImplementedError

    def end_task(self, task: Task) -> None:
        """After the last batch of a task; its data will not be seen again."""

    def capacity(self) -> dict[str, float]:
        """What it has to say of itself after a task: for a method that grows, its capacity."""
        return {}

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        """The networks that `predict` uses, by name: one without a name, or task0, task1, ..."""
        yield "", self.learner.snapshot()

    def predict(self, batch: Batch) -> Tensor:
        """(B, K) logits; where all classes compete (data-IL) they may not depend on `batch.t`."""
        return self.learner.logits(self.learner.flat.theta, batch)


class Rehearsal(Method):
    """One with a memory of past samples, which learns where tasks begin and end.

    It offers the memory each sample once an epoch, or once at the end of a task.
    """

    def __init__(self, learner: Learner, buffer: Callable[..., Buffer]) -> None:
        super().__init__(learner)
        self.memory = buffer(rng=learner.rng)

    def begin_task(self, task: Task) -> None:
        self.memory.begin_task(task)

    def end_task(self, task: Task) -> None:
        self.memory.end_task()


class Separate(Method):
    """Predicts with the network of `batch.t`, put together once; before it is there, with theta."""

    scenarios: ClassVar[tuple[str, ...]] = ("task",)

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self.ready = lru_cache(maxsize=1)(self.network)

    def network(self, task: int) -> Snapshot | None:
        """The network of a task that was learned; None for another."""
        raise NotImplementedError

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        for task in range(len(self.learner.heads.live)):
            snapshot = self.network(task)
            if snapshot is not None:
                yield f"task{task}", snapshot

    def predict(self, batch: Batch) -> Tensor:
        tasks = batch.t.unique().tolist()
        if len(tasks) == 1:
            return self._outputs(tasks[0], batch)
        rows = [(batch.t == task).nonzero().squeeze(1) for task in tasks]
        outputs = [
            self._outputs(task, batch.rows(own)) for task, own in zip(tasks, rows, strict=True)
        ]
        return torch.cat(outputs)[torch.cat(rows).argsort()]

    def _outputs(self, task: int, batch: Batch) -> Tensor:
        then = self.ready(task)
        return super().predict(batch) if then is None else self.learner.snapshot_logits(then, batch)
