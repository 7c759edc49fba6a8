"""ER-ACE: replay with an asymmetric cross-entropy (Caccia et al. 2022, arXiv:2104.05025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch
from cl_bench.methods.base import Rehearsal


class ERACE(Rehearsal):
    """The loss of the new batch over its own classes, plus that of stored samples over all.

    New samples therefore do not push down the logits of old classes; stored samples alone decide
    between old and new ones. Both losses are means over their samples.
    forward=apart  batch norm sees new and stored samples each by themselves, as in the authors'
                   code; together: all at once, which takes less time
    """

    allows_folding = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        forward: Literal["apart", "together"],
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.forward = replay, forward

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        return {"method.forward"} if config["method"]["forward"] == "apart" else set()

    def observe(self, batch: Batch) -> Tensor:
        learner, new = self.learner, len(batch.y)
        whole = learner.augmented(self.with_old(batch, self.replay))
        old = len(whole.y) - new
        apart = (new, old) if old and self.forward == "apart" else ()
        loss, _ = learner.differentiate_logits(self._loss, whole, new, apart=apart)
        learner.step()
        self.memory.add(batch)
        return loss

    def _loss(self, logits: Tensor, whole: Batch, new: int) -> Tensor:
        competing = self.learner.heads.competing(whole)
        live = torch.ones_like(logits, dtype=torch.bool) if competing is None else competing
        present = live.new_zeros(live.shape[1]).index_fill(0, whole.y[:new], True)
        live = torch.cat([live[:new] & present, live[new:]])
        losses = self.learner.criterion(logits, whole.y, live)
        loss = losses[:new].mean()
        return loss + losses[new:].mean() if len(losses) > new else loss
