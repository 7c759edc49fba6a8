"""GDumb: a network trained from scratch on a memory alone (Prabhu et al. 2020, ECCV)."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Rehearsal


class GDumb(Rehearsal):
    """Stores samples of a task, and after it trains the first network anew on all that are stored.

    There are `epochs` epochs over the memory, in batches of `batch_size`: the first with a tenth of
    the optimizer's learning rate, then falls of 1, 2, 4, ... epochs along half a cosine, from all
    of it to a share `last`, as in the authors' code. That code mixes images by CutMix as well,
    which is left out. The schedule's own epochs offer the samples to the memory, and nothing else.
    The first network is the one that the config makes, also with continue_from.
    """

    scenarios: ClassVar[tuple[str, ...]] = ("task", "class")
    allows_folding = False
    allows_kept_optimizer = False

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        epochs: Count,
        batch_size: Count,
        last: Share,
    ) -> None:
        super().__init__(learner, buffer)
        self.epochs, self.batch_size, self.last = epochs, batch_size, last
        self.start = learner.snapshot()

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["schedule"].get("patience") is not None:
            raise UserError(
                f"schedule.patience={config['schedule']['patience']}: method=gdumb trains after a "
                "task, whatever its epochs; use schedule.patience=null"
            )
        if config["schedule"]["batch_norm"] != "train":
            raise UserError(
                f"schedule.batch_norm={config['schedule']['batch_norm']}: method=gdumb trains its "
                "first network anew after each task, in which batch norm was never trained; use "
                "train"
            )

    def observe(self, batch: Batch) -> Tensor:
        """Store the batch; returns 0, as nothing is learned within a task."""
        self.memory.add(batch)
        return torch.zeros((), device=batch.y.device)

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        learner, rows = self.learner, self.memory.stored()
        learner.restore(self.start)
        learner.restart_optimizer(learner.flat.theta)
        for epoch in range(self.epochs):
            learner.anneal(self._factor(epoch))
            order = torch.randperm(len(rows.y), generator=learner.rng)
            for part in order.split(self.batch_size):
                learner.descend(rows.rows(part))

    def _factor(self, epoch: int) -> float:
        """The factor of the learning rate in an epoch, from 0."""
        if not epoch:
            return 0.1
        epoch, period = epoch - 1, 1
        while epoch >= period:
            epoch, period = epoch - period, 2 * period
        return self.last + (1 - self.last) * (1 + cos(pi * epoch / period)) / 2
