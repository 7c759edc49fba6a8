"""Dark experience replay: DER and, with beta > 0, DER++ (Buzzega et al. 2020, arXiv:2004.07211)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative
from cl_bench.core.buffer import Buffer
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class DER(Rehearsal):
    """loss + alpha |f(x') - z'|^2 + beta loss(x'', y''), with x' and x'' two draws of the memory.

    z' are the logits of x' in the step in which it was stored, before the update and with the
    augmentation of that step. When it is replayed, x' is augmented anew.
    distance=mean  |.|^2 is the mean over classes, as in the authors' code; sum: as in eq. 5
    """

    allows_folding = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        alpha: NonNegative,
        beta: NonNegative,
        distance: Literal["mean", "sum"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.alpha, self.beta, self.distance = replay, alpha, beta, distance

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        fresh = learner.augmented(batch)
        if not len(memory):
            loss, outputs = learner.differentiate_with(self._alone, fresh)
        else:
            draws = 2 if self.beta else 1
            old = [learner.augmented(memory.sample(self.replay)) for _ in range(draws)]
            loss, outputs = learner.differentiate_with(self._replayed, fresh, *old)
        learner.step()
        memory.add(batch._replace(logits=outputs.detach().float()))
        return loss

    def _alone(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.learner.logits(theta, batch)
        return self._loss(logits, batch), logits

    def _replayed(
        self, theta: Tensor, batch: Batch, dark: Batch, *light: Batch
    ) -> tuple[Tensor, Tensor]:
        """The replayed terms, each by its own forward pass as in the authors' code (batch norm)."""
        loss, logits = self._alone(theta, batch)
        assert dark.logits is not None
        gap = (self.learner.logits(theta, dark).to(dark.logits.dtype) - dark.logits).square()
        distance = gap.mean(-1) if self.distance == "mean" else gap.sum(-1)
        loss = loss + self.alpha * distance.mean()
        for rows in light:
            loss = loss + self.beta * self._loss(self.learner.logits(theta, rows), rows)
        return loss, logits

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        learner = self.learner
        return torch.mean(learner.criterion(logits, batch.y, learner.heads.competing(batch)))
