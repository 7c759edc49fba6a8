"""Memory of the samples whose features are, together, closest to the mean of their class."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.memory import Buffer, Features, Insert
from cl_bench.core.types import Batch, Task


class Herding(Buffer):
    """Exemplars of each class, chosen when a task has ended (iCaRL: Rebuffi et al. 2017, alg. 4).

    The memory is shared equally by the classes so far; where a class comes in several tasks, by
    its parts. When new classes come, each of the others keeps its first exemplars, which are the
    most typical ones.
    """

    keeps_logits: ClassVar[bool] = False
    shared_by: ClassVar[str | None] = "classes of each task"

    def __init__(self, capacity: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity = capacity
        self.groups: list[list[int]] = []  # of the rows, in their order: task, class, how many

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """`insert`: the whole task is looked at, once."""
        return {"insert"}

    def add(self, batch: Batch) -> None:
        """Nothing: samples are chosen from the whole task, when it has ended."""

    def choose(self, task: Task, features: Features) -> None:
        """Choose exemplars of the task by their features, and keep fewer of the others."""
        pairs = torch.stack([task.t, task.y], 1).cpu()
        groups = pairs.unique(dim=0).tolist()
        share = self.capacity // (len(self.groups) + len(groups))
        if not share:  # else refused before the run, unless the classes were not known
            raise UserError(
                f"buffer.capacity={self.capacity}: {len(self.groups) + len(groups)} classes share "
                "it; use at least as many samples"
            )
        kept, rows, first = [], [], 0
        for t, label, count in self.groups:
            assert self.rows is not None
            kept.append([t, label, min(count, share)])
            rows.append(self.rows.rows(slice(first, first + min(count, share))))
            first += count
        for t, label in groups:
            own = task.rows((pairs == torch.tensor([t, label])).all(1).nonzero().squeeze(1))
            found = features(list(own.chunks(512)))
            chosen = herded(found, min(share, len(own)))
            rows.append(own.batch(chosen))
            kept.append([t, label, len(chosen)])
        everything = rows[0].cat(*rows[1:])
        self.groups, self.rows, self.filled = kept, everything, len(everything.y)


def herded(features: Tensor, count: int) -> Tensor:
    """(count,): samples whose mean feature is, after each of them, nearest to the mean of all.

    features  (N, d)
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(1, count + 1):
        gaps = (mean - (features + total) / number).square().sum(1).masked_fill(taken, torch.inf)
        nearest = gaps.argmin()
        chosen.append(nearest)
        total = total + features[nearest]
        taken = taken.index_fill(0, nearest, True)
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=mean.device)
