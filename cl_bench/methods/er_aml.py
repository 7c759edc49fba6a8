"""ER-AML: replay with an asymmetric metric loss (Caccia et al. 2022, arXiv:2104.05025)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count, Positive
from cl_bench.core.decisions import decide_uniform
from cl_bench.core.learner import Learner
from cl_bench.core.memory import Buffer
from cl_bench.core.types import Batch, Task
from cl_bench.methods.base import Rehearsal
from cl_bench.methods.shared.contrast import contrasts, mean_where
from cl_bench.methods.shared.head_rows import refuse_linearised

BASE_TEMPERATURE = 0.07  # of the supervised contrastive loss (Khosla et al. 2020)


class ERAML(Rehearsal):
    """Cross-entropy of stored samples over all classes, and a contrast of new ones by features.

    For each new sample a positive one, of its class, and a negative one, of another class of the
    new batch, are drawn from the memory and the batch. The supervised contrastive loss (Khosla et
    al. 2020) of features of length 1, at a temperature, brings a new sample nearer to the drawn
    samples of its class than to the others. Old classes are no negatives, so that new samples do
    not push old ones away. A new sample without a positive or negative one takes no part.
    While the memory is empty, the loss is the cross-entropy of the new batch.
    """

    allows_folding = True
    task_free = True

    def __init__(
        self,
        learner: Learner,
        buffer: Callable[..., Buffer],
        replay: Count,
        temperature: Positive,
    ) -> None:
        super().__init__(learner, buffer)
        self.replay, self.temperature = replay, temperature

    def check_network(self, task: Task) -> None:
        refuse_linearised(self.learner.net, "er_aml")

    def observe(self, batch: Batch) -> Tensor:
        learner, memory = self.learner, self.memory
        if memory.empty:
            loss = learner.descend(batch)
        else:
            pairs, valid = self._pairs(batch)
            new, pairs, old = map(learner.augmented, (batch, pairs, memory.sample(self.replay)))
            loss = learner.differentiate(self._objective, new, pairs, old, valid)
            learner.step()
        memory.add(batch)
        return loss

    def _pairs(self, new: Batch) -> tuple[Batch, Tensor]:
        """A positive sample for each of the B new ones, then a negative one for each: (2B).

        The second result (B,) tells which new samples have both.
        """
        pool = new.cat(self.memory.stored())
        same = new.y.unsqueeze(1) == pool.y
        present = same.any(0)
        itself = torch.arange(len(pool.y), device=new.y.device)
        positive = same & (itself[: len(new.y)].unsqueeze(1) != itself)
        negative = ~same & present
        draws = decide_uniform(2 * len(new.y), self.learner.rng, new.y).view(2, -1)
        chosen = [_one_of(*each) for each in zip((positive, negative), draws, strict=True)]
        return pool.rows(torch.cat(chosen)), positive.any(1) & negative.any(1)

    def _objective(
        self, theta: Tensor, new: Batch, pairs: Batch, old: Batch, valid: Tensor
    ) -> Tensor:
        learner = self.learner
        found = [learner.features_and_logits(theta, part)[0] for part in (new, pairs)]
        anchors, others = (F.normalize(features, dim=1) for features in found)
        scores = anchors @ others.T / self.temperature
        found = contrasts(scores, new.y.unsqueeze(1) == pairs.y, valid.repeat(2))
        contrast = mean_where(found, valid)
        return contrast * self.temperature / BASE_TEMPERATURE + learner.loss(theta, old)


def _one_of(allowed: Tensor, draws: Tensor) -> Tensor:
    """(B,): of each row of `allowed` (B, N) one column that is true, by uniform draws (B,).

    Column 0 where there is none.
    """
    number = allowed.cumsum(1)
    wanted = (draws * number[:, -1]).long() + 1
    return ((number == wanted.unsqueeze(1)) & allowed).to(torch.uint8).argmax(1)
