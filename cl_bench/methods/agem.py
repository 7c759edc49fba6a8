"""Averaged GEM (Chaudhry et al. 2019, arXiv:1812.00420)."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_bench.buffer import PerTaskRing
from cl_bench.learner import Learner
from cl_bench.methods.base import Method
from cl_bench.types import Batch, Task


class AGEM(Method):
    """Where g would raise the loss on memory, project it (eq. 11): g - (g'r / r'r) r if g'r < 0.

    r is the gradient on a random batch of the memories of all past tasks.
    """

    def __init__(self, learner: Learner, per_task: int, replay: int) -> None:
        super().__init__(learner)
        self.memory = PerTaskRing(per_task, learner.rng)
        self.replay = replay

    def observe(self, batch: Batch) -> Tensor:
        reference = None
        if len(self.memory):
            self.learner.gradient(self.learner.loss, self.memory.sample(self.replay))
            reference = self.learner.flat.grad.clone()
        loss = self.learner.gradient(self.learner.loss, batch)
        if reference is not None:
            project(self.learner.flat.grad, reference)
        self.learner.step()
        self.memory.add(batch)
        return loss

    def end_task(self, task: Task) -> None:
        self.memory.end_task()


def project(g: Tensor, r: Tensor) -> None:
    """g (P,) in place onto the half space g'r >= 0; by arithmetic, so that no device waits."""
    dot, norm = (g * r).sum(-1, keepdim=True), (r * r).sum(-1, keepdim=True)
    g.sub_(dot.clamp(max=0) / norm.clamp(min=torch.finfo(g.dtype).tiny) * r)
