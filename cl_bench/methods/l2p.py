"""L2P: prompts for a vision transformer that is not trained (Wang et al. 2022).

arXiv:2112.08654
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.bounds import NonNegative
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Method
from cl_bench.models.prompts import Prompted


class L2P(Method):
    """Minimises loss - `pull` x the cosines of the chosen keys with the queries (eq. 5).

    The loss compares the classes of the present task alone, as the authors' code does. Prompts,
    keys and their choice are those of the network (`Prompted`, model.prompts).
    """

    def __init__(self, learner: Learner, pull: NonNegative) -> None:
        super().__init__(learner)
        self.pull = pull
        self.present = lru_cache(maxsize=1)(self._present)

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["model"].get("prompts") is None:
            raise UserError(
                "model.prompts=null: method=l2p trains prompts of a vision transformer; use "
                "model.prompts=[10,10,4]"
            )

    def begin_task(self, task: Task) -> None:
        self.present.cache_clear()

    def observe(self, batch: Batch) -> Tensor:
        return self.learner.descend_on(self._objective, batch, self.present())

    def _present(self) -> Tensor:
        """(K,) bool: the classes of the task that is learned now."""
        task = self.learner.task
        assert task is not None
        return torch.zeros_like(self.learner.heads.live[0]).index_fill(0, task.y, True)

    def _objective(self, theta: Tensor, batch: Batch, present: Tensor) -> Tensor:
        """The mean objective; `present` are the classes (K,) of the task."""
        learner = self.learner
        logits, cosines = self._outputs(theta, batch)
        competing = learner.heads.competing(batch)
        live = present.expand_as(logits) if competing is None else competing & present
        return (learner.criterion(logits, batch.y, live) - self.pull * cosines).mean()

    def _outputs(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the sums of cosines (B,); 0 for a network without prompts."""
        net = self.learner.net
        if not isinstance(net, Prompted):
            logits = self.learner.logits(theta, batch)
            return logits, torch.zeros_like(logits[:, 0])
        with net.similarity():
            outputs = self.learner.logits(theta, batch)
        return outputs[:, :-1], outputs[:, -1]
