"""Methods with exemplars of old classes, and the network of before as a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Positive
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.shared.contrast import FAR


class Exemplars(Rehearsal):
    """Knows which classes are old and new, and the outputs of the network after the last task.

    `replay` exemplars are drawn for each batch. A subclass implements `_loss` of the logits of all
    of them together.
    """

    allows_folding = True

    def __init__(self, learner: Learner, buffer: Callable[..., Buffer], replay: Count) -> None:
        super().__init__(learner, buffer)
        self.replay = replay
        self.teacher: Snapshot | None = None  # the network after the last task
        none = torch.zeros_like(learner.flat.grad[:0]).bool()
        self.past = none  # (K,) classes of past tasks that do not come in this one
        self.now = none  # (K,) all classes so far
        self.known = none  # (K,) those of past tasks

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        seen = self.now if len(self.now) else torch.zeros_like(self.learner.heads.live[0])
        self.known, self.past = seen, seen.index_fill(0, task.y, False)
        self.now = seen.index_fill(0, task.y, True)

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        seen = learner.augmented(self.with_old(batch, self.replay))
        if self.teacher is not None:
            seen = seen._replace(logits=learner.snapshot_logits(self.teacher, seen))
        loss, _ = learner.differentiate_logits(self._loss, seen, self.past, self.now)
        learner.step()
        self.memory.add(batch)
        return loss

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.teacher = self.learner.snapshot()

    def _loss(self, logits: Tensor, batch: Batch, past: Tensor, now: Tensor) -> Tensor:
        """The loss of new samples and exemplars; `batch.logits` are the teacher's, if there is one.

        past, now  (K,) bool: the classes of past tasks alone, and all classes so far
        """
        raise NotImplementedError


class Distilled(Exemplars):
    """(1 - a) cross-entropy + a distillation on old classes, a the share of old classes.

    The distillation is the cross-entropy of the old network's softmax over old classes, at a
    temperature.
    """

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        temperature: Positive,
    ) -> None:
        super().__init__(learner, buffer, replay)
        self.temperature = temperature

    def _loss(self, logits: Tensor, batch: Batch, past: Tensor, now: Tensor) -> Tensor:
        learner = self.learner
        loss = learner.criterion(logits, batch.y, learner.heads.competing(batch)).mean()
        if batch.logits is None:
            return loss
        before, after = (
            (z.float() / self.temperature).masked_fill(~past, FAR).log_softmax(-1)
            for z in (batch.logits, logits)
        )
        kept = -(before.exp() * after.masked_fill(~past, 0.0)).sum(-1).mean()
        share = past.sum() / now.sum()
        return (1 - share) * loss + share * kept
