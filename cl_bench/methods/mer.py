"""Meta-Experience Replay (Riemer et al. 2019, arXiv:1810.11910, whose algorithms are numbered)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Share
from cl_bench.core.inner_loop import By
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class MER(Rehearsal):
    """SGD on single samples, old and new; then Reptile: theta <- start + share * (end - start).

    algorithm=1  for each new sample, `batches` times: SGD on it and then on `replay` old samples,
                 after which theta goes back to a share `beta` of the way; a share `gamma` over all
    algorithm=6  one sequence of batches * replay old samples and the new one last; `beta` is unused
    algorithm=7  as 6, with the new sample at a random place and its learning rate times `batches`

    SGD is plain, at the optimizer's learning rate: Reptile would undo momentum. `batch_norm` says
    how batch norm treats single samples (`InnerLoop.batch_norm_mode`).
    """

    requires_plain_sgd = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        algorithm: Literal[1, 6, 7],
        batches: Count,
        replay: Count,
        beta: Share,
        gamma: Share,
        batch_norm: By,
    ) -> None:
        super().__init__(learner, buffer)
        self.batch_norm: By = batch_norm
        self.algorithm, self.batches, self.replay = algorithm, batches, replay
        self.beta, self.gamma = beta, gamma

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return set() if config["method"]["algorithm"] == 1 else {"method.beta"}

    def observe(self, batch: Batch) -> Tensor:
        losses = []
        with self.learner.inner.batch_norm_mode(self.batch_norm, self.learner.augmented(batch)):
            for new in batch.slices(1):
                before = self.learner.flat.theta.detach().clone()
                losses.append(self._several(new) if self.algorithm == 1 else self._large(new))
                self._back(before, self.gamma)
                self.memory.add(new)
        return torch.stack(losses).mean()

    def _several(self, new: Batch) -> Tensor:
        losses = []
        for _ in range(self.batches):
            before = self.learner.flat.theta.detach().clone()
            drawn = self._with_old(new, self.replay)
            full = len(drawn.y) == 1 + self.replay
            losses.append(self.learner.inner.sgd_sequence(drawn, self.learner.lr, None, full))
            self._back(before, self.beta)
        return torch.stack(losses).mean()

    def _large(self, new: Batch) -> Tensor:
        count, inner, lr = self.batches * self.replay, self.learner.inner, self.learner.lr
        first, *old = self._with_old(new, count).slices(1)
        place, weight = len(old), 1
        if self.algorithm == 7:
            place = int(torch.randint(len(old) + 1, (), generator=self.learner.rng))
            weight = self.batches
        for each in old[:place]:
            inner.descend(each, lr)
        loss = inner.descend(first, weight * lr)
        for each in old[place:]:
            inner.descend(each, lr)
        return loss

    def _with_old(self, new: Batch, count: int) -> Batch:
        """The new sample followed by a draw from the memory, augmented."""
        return self.learner.augmented(self.with_old(new, count))

    @torch.no_grad()
    def _back(self, before: Tensor, share: float) -> None:
        theta = self.learner.flat.theta
        torch.lerp(before, theta, share, out=theta)
