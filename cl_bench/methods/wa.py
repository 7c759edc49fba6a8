"""WA: distillation, exemplars and weight alignment (Zhao et al. 2020, arXiv:1911.07053)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Positive
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task
from cl_bench.methods.shared.exemplars import Exemplars
from cl_bench.methods.shared.head_rows import refuse_linearised_head


class WA(Exemplars):
    """(1 - a) cross-entropy + a distillation on old classes, a the share of old classes (eq. 3).

    The distillation is the cross-entropy of the old network's softmax over old classes, at a
    temperature. After a task, the head's rows of new classes are scaled to the mean norm of those
    of old classes (eq. 8): trained with few exemplars, they have become longer. The clipping of
    weights to positive values, which the paper tries as well, is left out.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        temperature: Positive,
    ) -> None:
        super().__init__(learner, buffer, replay)
        self.temperature = temperature

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, "wa")

    def end_task(self, task: Task) -> None:
        if bool(self.past.any()):
            self._align()
        super().end_task(task)

    def _loss(self, logits: Tensor, batch: Batch, past: Tensor, now: Tensor) -> Tensor:
        learner = self.learner
        loss = learner.criterion(logits, batch.y, learner.heads.competing(batch)).mean()
        if batch.logits is None:
            return loss
        before, after = (
            (z.float() / self.temperature).masked_fill(~past, -torch.inf).log_softmax(-1)
            for z in (batch.logits, logits)
        )
        kept = -(before.exp() * after.masked_fill(~past, 0.0)).sum(-1).mean()
        share = past.sum() / now.sum()
        return (1 - share) * loss + share * kept

    @torch.no_grad()
    def _align(self) -> None:
        """Scale the head's rows of this task's classes."""
        rows = self.learner.heads.rows_of(self.learner.flat.theta.detach())
        new, norms = self.now & ~self.past, rows.norm(dim=1)
        rows[new] *= norms[self.past].mean() / norms[new].mean()
