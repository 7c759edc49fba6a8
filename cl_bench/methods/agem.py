"""Averaged GEM (Chaudhry et al. 2019, arXiv:1812.00420)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.buffer import Buffer
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class AGEM(Rehearsal):
    """The gradient g, projected so that it does not raise the loss on the memory (eq. 11).

    g - (g'r / r'r) r if g'r < 0, where r is the reference gradient:
    reference=batch  on a random batch of the memory, as in the paper
    reference=tasks  the mean over past tasks of the gradient on all samples stored of each, as in
                     La-MAML's code; `replay` is unused
    The paper stores past tasks only (buffer=ring); buffer=reservoir is Mammoth's A-GEM-R.
    """

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        reference: Literal["batch", "tasks"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.reference = replay, reference

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return set() if config["method"]["reference"] == "batch" else {"method.replay"}

    def observe(self, batch: Batch) -> Tensor:
        reference = self._reference() if len(self.memory) else None
        loss = self.learner.gradient(batch)
        if reference is not None:
            project(self.learner.flat.grad, reference)
        self.learner.step()
        self.memory.add(batch)
        return loss

    def _reference(self) -> Tensor:
        learner, one = self.learner, self.reference == "batch"
        parts = [self.memory.sample(self.replay)] if one else self.memory.by_task()
        total = torch.zeros_like(learner.flat.grad)
        for part in parts:
            learner.gradient(part)
            total.add_(learner.flat.grad, alpha=1 / len(parts))
        return total


def project(g: Tensor, r: Tensor) -> None:
    """Project g (P,) in place onto the half space g'r >= 0, without synchronising the device."""
    dot, norm = (g * r).sum(-1, keepdim=True), (r * r).sum(-1, keepdim=True)
    g.sub_(dot.clamp(max=0) / norm.clamp(min=torch.finfo(g.dtype).tiny) * r)
