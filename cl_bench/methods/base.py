"""Base classes of methods: `Method`, `Rehearsal` (with a memory), `Separate` (many networks)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer, capacity_of
from cl_bench.core.state import Stateful
from cl_bench.core.types import Batch, Snapshot, Task


class Method(Stateful):
    """Trains `learner.flat.theta` (P,), the parameters, by the four hooks that follow.

    All attributes are written to checkpoints, except those that are rebuilt from the config.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("data", "task", "class")  # that it can be run in
    # True where it moves theta itself, as SGD without momentum and weight decay
    requires_plain_sgd: ClassVar[bool] = False
    # True where its own penalties take the place of weight decay
    forbids_weight_decay: ClassVar[bool] = False
    # True where nothing that it keeps during a task depends on how theta parametrises the network
    allows_folding: ClassVar[bool] = False
    # False where it makes steps that schedule.clip does not reach
    allows_clipping: ClassVar[bool] = True
    # False where a task begins with weights that an earlier optimizer's momentum must not move
    allows_kept_optimizer: ClassVar[bool] = True
    # True where it works without being told that a task ends (stream=online)
    task_free: ClassVar[bool] = False
    # True where it replays the logits that samples had when they were stored
    replays_logits: ClassVar[bool] = False
    # True where a share `schedule.holdout` of each task is not trained on, but given to `validate`
    uses_held_out: ClassVar[bool] = False
    # True where its memory must choose samples when a task has ended, not while it is learned
    needs_chosen_memory: ClassVar[bool] = False
    # True where it gives a score to each sample that it offers to its memory
    gives_scores: ClassVar[bool] = False
    # True where its curvature, if it has one, becomes a quadratic penalty
    curvature_is_penalty: ClassVar[bool] = True

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        """Raise UserError where another part of a resolved config does not go with the method."""

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        """The keys that make no difference in this config; the config's hash leaves them out."""
        return set()

    def check_network(self, task: Task) -> None:
        """Raise UserError where it cannot be used with the learner's network.

        Called once before training, with the first task; nothing may be changed.
        """

    def begin_task(self, task: Task) -> None:
        """Called before the first batch of a task."""

    def observe(self, batch: Batch) -> Tensor:
        """Take one training step on a batch; returns the loss, a scalar on the device."""
        raise NotImplementedError(f"{type(self).__name__}.observe is missing: it makes the steps")

    def validate(self, held_out: Task) -> None:
        """Called before `end_task` with images of the task that were not trained on.

        Only where `uses_held_out` is true.
        """

    def end_task(self, task: Task) -> None:
        """Called after the last batch of a task, whose data is not seen again."""

    def capacity(self) -> dict[str, float]:
        """Numbers for the record after each task: stored samples, parameters where they grow."""
        return {}

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        """The networks that `predict` uses, with names: one named "", or task0, task1, ..."""
        yield "", self.learner.snapshot()

    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, K) of test images; in data-IL they must not depend on `batch.t`, the task."""
        return self.learner.logits(self.learner.flat.theta, batch)


class Rehearsal(Method):
    """A method with a memory of past samples (`buffer`).

    A subclass offers each sample to `memory` once an epoch, or once at the end of a task.

    divides_memory_by  the name of the option that sets the sizes of the parts of its memory
                       (`parts_of_memory`), for error messages; empty where it has one part
    """

    divides_memory_by: ClassVar[str] = ""

    def __init__(self, learner: Learner, buffer: Callable[..., Buffer]) -> None:
        super().__init__(learner)
        self.memory = buffer(rng=learner.rng)

    @staticmethod
    def parts_of_memory(options: dict[str, Any]) -> tuple[int, ...]:
        """The sizes of the parts of the memory, by the options; each needs a sample of each class.

        Empty where the memory has no capacity.
        """
        capacity = capacity_of(options["buffer"])
        return () if capacity is None else (capacity,)

    def capacity(self) -> dict[str, float]:
        """The number of samples in the memory, if it is used."""
        return {} if self.memory.empty else {"stored": len(self.memory)}

    def with_old(self, new: Batch, count: int) -> Batch:
        """The new samples, and after them `count` drawn from the memory, if it has any."""
        return new if self.memory.empty else new.cat(self.memory.sample(count))

    def begin_task(self, task: Task) -> None:
        self.memory.begin_task(task)

    def end_task(self, task: Task) -> None:
        self.memory.choose(task, self.learner.unit_features)
        self.memory.end_task()


class Separate(Method):
    """A task-IL method with a network for each task; theta predicts for tasks not yet learned."""

    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    allows_kept_optimizer = False

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        self.ready = lru_cache(maxsize=1)(self.network)

    def network(self, task: int) -> Snapshot | None:
        """The network of a task; None where the task was not learned yet."""
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
