"""WA: distillation, exemplars and weight alignment (Zhao et al. 2020, arXiv:1911.07053)."""

from __future__ import annotations

from typing import ClassVar

import torch

from cl_bench.core.types import Task
from cl_bench.methods.shared.exemplars import Distilled
from cl_bench.methods.shared.head_rows import refuse_linearised_head


class WA(Distilled):
    """Distillation on old classes (`Distilled`, eq. 3), and an alignment of the head.

    After a task, the head's rows of new classes are scaled to the mean norm of those
    of old classes (eq. 8): trained with few exemplars, they have become longer. The clipping of
    weights to positive values, which the paper tries as well, is left out.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("class",)

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, "wa")

    def end_task(self, task: Task) -> None:
        if bool(self.past.any()):
            self._align()
        super().end_task(task)

    @torch.no_grad()
    def _align(self) -> None:
        """Scale the head's rows of this task's classes."""
        rows = self.learner.heads.rows_of(self.learner.flat.theta.detach())
        new, norms = self.now & ~self.past, rows.norm(dim=1)
        rows[new] *= norms[self.past].mean() / norms[new].mean()
