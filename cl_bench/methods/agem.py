"""Averaged GEM (Chaudhry et al. 2019, arXiv:1812.00420)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Positive
from cl_bench.base.exceptions import UserError
from cl_bench.core.gradient import clip_norm
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class AGEM(Rehearsal):
    """The gradient g, projected so that it does not raise the loss on the memory (eq. 11).

    g - (g'r / r'r) r if g'r < 0, where r is the reference gradient:
    reference=batch  on a random batch of the memory, as in the paper
    reference=tasks  the mean over past tasks of the gradient on all samples stored of each, as in
                     La-MAML's code; `replay` is unused
    The paper stores past tasks only (buffer=ring); buffer=reservoir is Mammoth's A-GEM-R. Each
    batch is used `passes` times. With `clip`, g and the gradient of each part of the memory are
    scaled to that norm at most, as in La-MAML's code. With reference_compat and reference=tasks
    the first task is left out: that code never protects it, by oversight.
    """

    allows_folding = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        reference: Literal["batch", "tasks"],
        passes: Count,
        clip: Positive | None,
        reference_compat: bool,
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.reference = replay, reference
        self.passes, self.clip, self.reference_compat = passes, clip, reference_compat

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        method = config["method"]
        ring = "per_task" in method["buffer"]
        if method["reference"] == "tasks" and method["reference_compat"] and not ring:
            raise UserError(
                "method.reference_compat=true: leaves out the first task of the memory, which must "
                "hold all of them; use buffer=ring"
            )

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        batch = config["method"]["reference"] == "batch"
        return {"method.reference_compat"} if batch else {"method.replay"}

    def observe(self, batch: Batch) -> Tensor:
        losses = [self._step(batch) for _ in range(self.passes)]
        self.memory.add(batch)
        return losses[0]

    def _step(self, batch: Batch) -> Tensor:
        reference = self._reference()
        loss = self._gradient(batch)
        if reference is not None:
            project(self.learner.flat.grad, reference)
        self.learner.step()
        return loss

    def _reference(self) -> Tensor | None:
        """The reference gradient (P,); None where no task is protected yet."""
        parts = [] if self.memory.empty else self._parts()
        total = torch.zeros_like(self.learner.flat.grad)
        for part in parts:
            self._gradient(part)
            total.add_(self.learner.flat.grad, alpha=1 / len(parts))
        return total if parts else None

    def _parts(self) -> list[Batch]:
        """The batches of the memory; the reference is the mean of their gradients."""
        if self.reference == "batch":
            return [self.memory.sample(self.replay)]
        past = self.memory.by_task()
        return past[1:] if self.reference_compat else past

    def _gradient(self, batch: Batch) -> Tensor:
        """Fill `flat.grad`, clipped; returns the loss."""
        loss = self.learner.gradient(batch)
        clip_norm(self.learner.flat.grad, self.clip)
        return loss


def project(g: Tensor, r: Tensor) -> None:
    """Project g (P,) in place onto the half space g'r >= 0, without synchronising the device."""
    dot, norm = (g * r).sum(-1, keepdim=True), (r * r).sum(-1, keepdim=True)
    g.sub_(dot.clamp(max=0) / norm.clamp(min=torch.finfo(g.dtype).tiny) * r)
