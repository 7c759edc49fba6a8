"""GSS-Greedy: replay of samples chosen by gradients (Aljundi et al. 2019, arXiv:1903.08671)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.scored import Scored
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal

FIRST_SCORE = 1.1  # of the samples of the first batch, as in the authors' code


class GSS(Rehearsal):
    """Replay from a memory of samples whose gradients point in different directions.

    A sample's score is 1 + max_r cos(g, g_r), g being the gradient of its loss and g_r that of the
    mean loss on `reference_size` stored samples, for up to `references` draws r without overlap. A
    low score makes it likely to be stored, and to stay (`buffer=scored`). The gradients are those
    of images without augmentation, in evaluation mode, after the batch's step.

    combine=steps  a step on the new batch, then one on stored samples (the authors' code)
    combine=mean   one step on the mean over new and stored samples, as ER (Mammoth)
    admit=batch    samples of a batch may replace stored ones if the gradient of its mean loss has
                   a score below 1; otherwise theirs are not computed (the authors' code)
    admit=sample   samples with a score below 1 may (the paper's algorithm 2)
    """

    allows_folding = True
    task_free = True
    gives_scores = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        combine: Literal["steps", "mean"],
        references: Count,
        reference_size: Count,
        admit: Literal["batch", "sample"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.combine = replay, combine
        self.references, self.reference_size, self.admit = references, reference_size, admit

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        assert isinstance(memory, Scored)  # else refused before the run
        if self.combine == "mean":
            loss = learner.descend(self.with_old(batch, self.replay))
        else:
            loss = learner.descend(batch)
            if not memory.empty:
                learner.descend(memory.sample(self.replay))
        if not memory.closed:
            memory.offer(batch, self._scores(batch, memory))
        return loss

    def _scores(self, batch: Batch, memory: Scored) -> list[float | None]:
        """The score of each sample; None where it is not to be stored."""
        count = len(batch.y)
        if memory.empty:
            return [FIRST_SCORE] * count
        with self.learner.evaluating():
            directions, candidates = self._directions(memory), count
            if self.admit == "batch" and memory.room < count:
                alike = float(self._score(batch, directions)) >= 1
                candidates = memory.room if alike else count
            if not candidates:
                return [None] * count
            samples = (batch.rows(slice(i, i + 1)) for i in range(candidates))
            found = torch.stack([self._score(one, directions) for one in samples]).tolist()
        scores = [*found, *[None] * (count - candidates)]
        if self.admit == "batch":
            return scores
        return [c if i < memory.room or c < 1 else None for i, c in enumerate(found)]

    def _directions(self, memory: Scored) -> Tensor:
        """(R, P): gradients of the mean loss on draws of stored samples, each of length 1."""
        drawn = memory.sample(self.references * self.reference_size)
        parts = range(0, len(drawn.y), self.reference_size)
        return torch.stack(
            [self._direction(drawn.rows(slice(i, i + self.reference_size))) for i in parts]
        )

    def _score(self, batch: Batch, directions: Tensor) -> Tensor:
        """1 + the largest cosine of the batch's gradient and one of `directions`, a scalar."""
        return 1 + (directions @ self._direction(batch)).max()

    def _direction(self, batch: Batch) -> Tensor:
        """(P,): the gradient of the batch's mean loss, divided by its length."""
        self.learner.loss_gradient(batch)
        gradient = self.learner.flat.grad
        return gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
