"""Dark experience replay: DER and, with beta > 0, DER++ (Buzzega et al. 2020, arXiv:2004.07211)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

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
    forward=apart  batch norm sees x, x' and x'' each by itself, as in the authors' code; together:
                   all at once, which takes less time. Without batch norm in training they are one
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
        forward: Literal["apart", "together"],
    ) -> None:
        super().__init__(learner, buffer)
        self.forward = forward
        self.replay, self.alpha, self.beta, self.distance = replay, alpha, beta, distance

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return {"method.forward"} if config["method"]["forward"] == "apart" else set()

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        parts = [learner.augmented(batch)]
        if not memory.empty:
            draws = 2 if self.beta else 1
            parts += [learner.augmented(memory.sample(self.replay)) for _ in range(draws)]
        if len(parts) > 1 and learner.couples_samples and self.forward == "apart":
            loss, outputs = learner.differentiate_with(self._apart, *parts)
        else:
            whole = parts[0].cat(*parts[1:])
            stored = parts[1].logits if len(parts) > 1 else None
            sizes = tuple(len(part.y) for part in parts)
            loss, outputs = learner.differentiate_logits(self._together, whole, stored, sizes)
        learner.step()
        memory.add(batch._replace(logits=outputs[: len(batch.y)].float()))
        return loss

    def _apart(self, theta: Tensor, *parts: Batch) -> tuple[Tensor, Tensor]:
        """Each part by its own forward pass, as in the authors' code: batch norm in training."""
        outputs = [self.learner.logits(theta, part) for part in parts]
        losses = [self._losses(z, part) for z, part in zip(outputs, parts, strict=True)]
        return self._sum(outputs, losses, parts[1].logits), outputs[0]

    def _together(
        self, logits: Tensor, whole: Batch, stored: Tensor | None, sizes: tuple[int, ...]
    ) -> Tensor:
        """All parts by one forward pass: the same where no sample changes another's logits."""
        losses = self._losses(logits, whole)
        return self._sum(logits.split(sizes), losses.split(sizes), stored)

    def _sum(
        self, logits: Sequence[Tensor], losses: Sequence[Tensor], stored: Tensor | None
    ) -> Tensor:
        """The loss from the logits and losses of the new batch, of x' and of x''."""
        loss = losses[0].mean()
        if stored is None:
            return loss
        gap = (logits[1].to(stored.dtype) - stored).square()
        distance = gap.mean(-1) if self.distance == "mean" else gap.sum(-1)
        loss = loss + self.alpha * distance.mean()
        return loss + self.beta * losses[2].mean() if len(losses) > 2 else loss

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        learner = self.learner
        return learner.criterion(logits, batch.y, learner.heads.competing(batch))
