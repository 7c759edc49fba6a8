"""Memories that choose as many samples of each class, from the whole task when it has ended."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.base.memory_size import size_key
from cl_bench.core.memory import Buffer, Features, Insert
from cl_bench.core.types import Batch, Task, to_device_of


class Herding(Buffer):
    """Exemplars of each class, chosen when a task has ended (iCaRL: Rebuffi et al. 2017, alg. 4).

    capacity   so many samples in all, shared equally by the classes so far. When new classes come,
               each of the others keeps its first exemplars, which are the most typical ones.
    per_class  so many of each class, in place of `capacity`: the memory grows with the classes

    A class that comes in several tasks counts as a class in each of them.
    """

    keeps_logits: ClassVar[bool] = False
    chooses_at_end: ClassVar[bool] = True
    shared_by: ClassVar[str | None] = "classes of each task"

    def __init__(
        self,
        capacity: Count,
        insert: Insert,
        replacement: bool,
        rng: Generator,
        per_class: Count | None = None,
    ) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity, self.per_class = capacity, per_class
        self.groups: list[list[int]] = []  # of the rows, in their order: task, class, how many

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """`insert`, because the whole task is looked at once, and one of the two sizes."""
        return {"insert", "per_class" if size_key(options) == "capacity" else "capacity"}

    @classmethod
    def max_samples(cls, options: dict[str, Any], tasks: int, classes: int | None) -> int | None:
        if size_key(options) == "capacity":
            return options["capacity"]
        return None if classes is None else classes * options["per_class"]

    def add(self, batch: Batch) -> None:
        """Nothing: samples are chosen from the whole task, when it has ended."""

    def choose(self, task: Task, features: Features) -> None:
        """Choose exemplars of the task by their features, and keep fewer of the others."""
        pairs = torch.stack([task.t, task.y], 1).cpu()
        groups = pairs.unique(dim=0).tolist()
        share = self.per_class or self.capacity // (len(self.groups) + len(groups))
        if not share:  # else refused before the run, unless the classes were not known
            raise UserError(
                f"buffer.capacity: {self.capacity} samples are shared by the classes of each task, "
                f"{len(self.groups) + len(groups)} by now; use a larger capacity"
            )
        kept, rows, first = [], [], 0
        for t, label, count in self.groups:
            assert self.rows is not None
            kept.append([t, label, min(count, share)])
            rows.append(self.rows.rows(slice(first, first + min(count, share))))
            first += count
        for t, label in groups:
            own = task.rows((pairs == torch.tensor([t, label])).all(1).nonzero().squeeze(1))
            chosen = self._chosen_of(own, min(share, len(own)), features)
            rows.append(own.batch(chosen))
            kept.append([t, label, len(chosen)])
        everything = rows[0].cat(*rows[1:])._replace(logits=_joined_logits(rows))
        self.groups, self.rows, self.filled = kept, everything, len(everything.y)

    def _chosen_of(self, own: Task, count: int, features: Features) -> Tensor:
        """(count,): the samples that are kept of one class of a task."""
        return herded(features(list(own.chunks(512))), count)


def _joined_logits(rows: list[Batch]) -> Tensor | None:
    """The stored logits of all samples, 0 for those without; None: none has any."""
    known = next((part.logits for part in rows if part.logits is not None), None)
    if known is None:
        return None
    none = [known.new_zeros(len(part.y), known.shape[1]) for part in rows]
    pairs = zip(rows, none, strict=True)
    return torch.cat([zero if part.logits is None else part.logits for part, zero in pairs])


class Equal(Herding):
    """As `Herding`, with random samples of each class in place of the most typical ones."""

    def _chosen_of(self, own: Task, count: int, features: Features) -> Tensor:
        return to_device_of(torch.randperm(len(own), generator=self.rng)[:count], own.y)


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
