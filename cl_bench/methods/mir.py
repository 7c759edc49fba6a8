"""MIR: maximally interfered retrieval, of experience replay (Aljundi et al. 2019, 1908.04742)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class MIR(Rehearsal):
    """Replay those stored samples whose loss the new batch alone would raise most.

    Of candidates * replay drawn samples the `replay` with the largest l(theta - lr g) - l(theta)
    are learned beside the new batch: the step goes along g, the gradient of the mean loss on the
    new batch, plus that of the mean loss on them, as in the authors' code. lr is the learning rate.
    The losses are those of images without augmentation, in evaluation mode, so that candidates do
    not change batch norm's statistics. Samples of the present task may be replayed, which that code
    leaves out: no boundary between tasks is needed here.
    """

    allows_folding = True
    task_free = True

    def __init__(
        self, learner: Learner, buffer: Callable[..., Buffer], replay: Count, candidates: Count
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.candidates = replay, candidates

    def observe(self, batch: Batch) -> Tensor:
        learner = self.learner
        loss = learner.gradient(batch)
        if not self.memory.empty:
            slope, chosen = learner.flat.grad.clone(), self._most_interfered()
            loss = loss + learner.gradient(chosen)
            learner.flat.grad.add_(slope)
        learner.step()
        self.memory.add(batch)
        return loss

    @torch.no_grad()
    def _most_interfered(self) -> Batch:
        """The stored samples whose loss a step along `flat.grad` would raise most."""
        learner, theta = self.learner, self.learner.flat.theta.detach()
        drawn = self.memory.sample(self.candidates * self.replay)
        with learner.evaluating():
            before = learner.losses(theta, drawn)
            after = learner.losses(theta - learner.lr * learner.flat.grad, drawn)
        return drawn.rows((after - before).topk(min(self.replay, len(drawn.y))).indices)
