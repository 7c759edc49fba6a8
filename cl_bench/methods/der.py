"""Dark experience replay: DER and, with beta > 0, DER++ (Buzzega et al. 2020, arXiv:2004.07211)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from cl_bench.base.bounds import Count, NonNegative
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class DER(Rehearsal):
    """loss + alpha |f(x') - z'|^2 + beta loss(x'', y''), with x' and x'' two draws of the memory.

    z' are the logits of x' in the step in which it was stored, before the update and with the
    augmentation of that step. When it is replayed, x' is augmented anew.
    draws=1        x'' is x', as in Avalanche: with as many as new samples, a third fewer images
    distance=mean  |.|^2 is the mean over classes, as in the authors' code; sum: as in eq. 5
    forward=apart  batch norm sees x, x' and x'' each by itself, as in the authors' code; together:
                   all at once, which takes less time. Without batch norm in training they are one
    """

    allows_folding = True
    task_free = True
    replays_logits = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        alpha: NonNegative,
        beta: NonNegative,
        distance: Literal["mean", "sum"],
        forward: Literal["apart", "together"],
        draws: Literal[1, 2] = 2,
    ) -> None:
        super().__init__(learner, buffer)
        self.forward, self.draws = forward, draws if beta else 1
        self.replay, self.alpha, self.beta, self.distance = replay, alpha, beta, distance

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        options = config["method"]
        apart = {"method.forward"} if options["forward"] == "apart" else set()
        idle = options.get("draws", 2) == 2 or not options["beta"]
        return apart | ({"method.draws"} if idle else set())

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        parts = [learner.augmented(batch)]
        if not memory.empty:
            parts += [learner.augmented(memory.sample(self.replay)) for _ in range(self.draws)]
        whole = parts[0].cat(*parts[1:])
        stored = parts[1].logits if len(parts) > 1 else None
        sizes = tuple(len(part.y) for part in parts)
        apart = sizes if self.forward == "apart" else ()
        loss, outputs = learner.differentiate_logits(self._loss, whole, stored, sizes, apart=apart)
        learner.step()
        memory.add(batch._replace(logits=outputs[: len(batch.y)].float()))
        return loss

    def _loss(
        self, logits: Tensor, whole: Batch, stored: Tensor | None, sizes: tuple[int, ...]
    ) -> Tensor:
        """The loss from the logits of the new batch, and of the draws after it."""
        learner = self.learner
        losses = learner.criterion(logits, whole.y, learner.heads.competing(whole)).split(sizes)
        loss = losses[0].mean()
        if stored is None:
            return loss
        gap = (logits.split(sizes)[1].to(stored.dtype) - stored).square()
        distance = gap.mean(-1) if self.distance == "mean" else gap.sum(-1)
        loss = loss + self.alpha * distance.mean()
        return loss + self.beta * losses[-1].mean() if self.beta else loss
