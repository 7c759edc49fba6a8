"""Distillation from the network at the end of the last task.

LwF (Li & Hoiem 2016, arXiv:1606.09282): on the images of the new task (source=new), temperature 2.
Yun 2020, eq. 4: on stored images of old tasks (source=buffer), temperature 1; buffer=everything
stores all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative, Positive
from cl_bench.core.criteria import masked
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Snapshot, Task, at_least_float32
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.shared.task_weights import combined


class LwF(Rehearsal):
    """loss + strength T^2 KL(softmax(f_old / T) || softmax(f / T)), summed over old heads.

    With combine=tasks the t-th task has 1/t of the loss and 1 - 1/t of the rest, which is the mean
    over old heads (van de Ven et al. 2022, and their code).

    An old head is the set of classes that competed when a past task ended: its own classes in
    task-IL, all classes so far in class-IL, all classes in data-IL. For a stored image only the
    head of its task counts. The teacher f_old sees the same augmented image as the student, in
    evaluation mode and with its own statistics of batch norm.
    """

    allows_folding = True

    def __init__(
        self,
        learner: Learner,
        strength: NonNegative,
        temperature: Positive,
        source: Literal["new", "buffer"],
        buffer: Callable[..., Buffer],
        replay: Count,
        combine: Literal["sum", "tasks"] = "sum",
    ) -> None:
        super().__init__(learner, buffer)
        self.combine, self.number = combine, 0  # number: of the task, from 1
        self.strength, self.temperature, self.source = strength, temperature, source
        self.replay = replay
        self.teacher: Snapshot | None = None
        self.tasks: list[int] = []  # the past ones
        self.live = learner.flat.grad.new_zeros(0, 0).bool()  # (T, K) when the last task ended
        self.heads = self.live  # (H, 1, K): the different ones of the past tasks

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        whole = set() if config["method"].get("combine") == "tasks" else {"method.combine"}
        if config["method"]["source"] == "buffer":
            return whole | {"method.buffer.insert"}  # a task is offered once, at its end
        return whole | {"method.buffer", "method.replay"}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.number += 1

    def observe(self, batch: Batch) -> Tensor:
        learner, fresh = self.learner, self.learner.augmented(batch)
        if self.teacher is None:
            loss = learner.loss_gradient(fresh)
        elif self.source == "new":
            taught = fresh._replace(logits=learner.snapshot_logits(self.teacher, fresh))
            loss, _ = learner.differentiate_logits(self._on_new, taught, self.heads)
        else:
            old = learner.augmented(self.memory.sample(self.replay))
            old = old._replace(logits=learner.snapshot_logits(self.teacher, old))
            loss = learner.differentiate(self._on_old, fresh, old, self.live[old.t].unsqueeze(0))
        learner.step()
        return loss

    def end_task(self, task: Task) -> None:
        self.teacher = self.learner.snapshot()
        self.tasks = sorted({*self.tasks, *task.t.unique().tolist()})
        self.live = self.learner.heads.live.clone()
        self.heads = self.live[self.tasks].unique(dim=0).unsqueeze(1)
        if self.source == "buffer":
            self.memory.add(Batch(task.x, task.y, task.t))
            super().end_task(task)

    def _on_new(self, logits: Tensor, batch: Batch, heads: Tensor) -> Tensor:
        """The loss and the divergence on the new batch, by one forward pass of the student."""
        losses = self.learner.criterion(logits, batch.y, self.learner.heads.competing(batch))
        assert batch.logits is not None
        return self._combined(losses.mean(), self._pull(batch.logits, logits, heads))

    def _on_old(self, theta: Tensor, batch: Batch, old: Batch, heads: Tensor) -> Tensor:
        """The loss on the new batch plus the divergence on the old one."""
        assert old.logits is not None
        kept = self._pull(old.logits, self.learner.logits(theta, old), heads)
        return self._combined(self.learner.loss(theta, batch), kept)

    def _combined(self, loss: Tensor, kept: Tensor) -> Tensor:
        return combined(loss, kept, self.number if self.combine == "tasks" else None)

    def _pull(self, before: Tensor, now: Tensor, heads: Tensor) -> Tensor:
        found = divergence(before, now, heads, self.temperature)
        whole = found.mean(0) if self.combine == "tasks" else found.sum(0)
        return self.strength * self.temperature**2 * whole.mean()


def divergence(before: Tensor, now: Tensor, live: Tensor, temperature: Positive) -> Tensor:
    """KL(softmax(before / T) || softmax(now / T)) over the live classes, at least in float32.

    (B, K) twice and (H, B or 1, K) -> (H, B).
    """
    logits = (masked(at_least_float32(z).div(temperature), live) for z in (before, now))
    old, new = (z.log_softmax(-1) for z in logits)
    return (old.exp() * (old - new).masked_fill(~live, 0.0)).sum(-1)
