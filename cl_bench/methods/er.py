"""Experience Replay (Chaudhry et al. 2019, arXiv:1902.10486)."""

from __future__ import annotations

from torch import Tensor

from cl_bench.buffer import Reservoir
from cl_bench.learner import Learner
from cl_bench.methods.base import Method
from cl_bench.types import Batch


class ER(Method):
    """Descend on the new batch together with a draw from a reservoir of the past."""

    def __init__(self, learner: Learner, capacity: int, replay: int) -> None:
        super().__init__(learner)
        self.memory = Reservoir(capacity, learner.rng)
        self.replay = replay

    def observe(self, batch: Batch) -> Tensor:
        mixed = batch.cat(self.memory.sample(self.replay)) if len(self.memory) else batch
        loss = self.learner.descend(self.learner.loss, mixed)
        self.memory.add(batch)
        return loss
