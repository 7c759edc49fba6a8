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
    plain: ClassVar[bool] = False  # whether it steps by itself: SGD without momentum or decay
    regularized: ClassVar[bool] = False  # whether its penalties take the place of weight decay
    penalized: ClassVar[bool] = True  # whether its curvature, if it has one, makes a penalty

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

    def facts(self) -> dict[str, float]:
        """What it has to say of itself after a task: for a method that grows, its capacity."""
        return {}

    def weights(self) -> Iterator[Tensor]:
        """All parameters that `predict` uses: theta (P,), or that of each task's network."""
        yield self.learner.flat.theta

    def predict(self, batch: Batch) -> Tensor:
        """(B, K) logits; where all classes compete (data-IL) they may not depend on `batch.t`."""
        return self.learner.logits(self.learner.flat.theta, batch)


class Rehearsal(Method):
    """One with a memory of past samples, which is told where tasks begin and end.

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

    def weights(self) -> Iterator[Tensor]:
        found = map(self.network, range(len(self.learner.heads.live)))
        return (snapshot.theta for snapshot in found if snapshot is not None)

    def predict(self, batch: Batch) -> Tensor:
        tasks = batch.t.unique().tolist()
        if len(tasks) == 1:
            return self._said(tasks[0], batch)
        rows = [(batch.t == task).nonzero().squeeze(1) for task in tasks]
        said = [self._said(task, batch.rows(own)) for task, own in zip(tasks, rows, strict=True)]
        return torch.cat(said)[torch.cat(rows).argsort()]

    def _said(self, task: int, batch: Batch) -> Tensor:
        then = self.ready(task)
        return super().predict(batch) if then is None else self.learner.recall(then, batch)
