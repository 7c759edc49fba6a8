"""Memories of past samples: raw pixels on the device, one `add`, one `sample`."""

from __future__ import annotations

import torch
from torch import Generator

from cl_bench.types import Batch, beside


class Reservoir:
    """A uniform sample of all that was added (Vitter 1985, algorithm R): each kept w.p. M / n.

    Decisions are drawn on the CPU, so they are the same on every device and cost no
    synchronisation; once full, most batches change nothing and copy nothing.
    """

    def __init__(self, capacity: int, rng: Generator) -> None:
        self.capacity, self.rng = capacity, rng
        self.seen = 0
        self.rows: Batch | None = None

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, batch: Batch) -> None:
        """Let each sample try for a place, in order; a later one wins a shared place."""
        count = len(batch.y)
        order = torch.arange(self.seen + 1, self.seen + count + 1)
        places = (torch.rand(count, generator=self.rng, dtype=torch.float64) * order).long()
        places = torch.where(order <= self.capacity, order - 1, places)
        kept = {p: i for i, p in enumerate(places.tolist()) if p < self.capacity}
        self.seen += count
        if kept:
            new = batch.rows(torch.tensor(list(kept.values())))
            self.rows = _written(self.rows, self.capacity, list(kept), new)

    def sample(self, count: int) -> Batch:
        """`count` different samples at random, fewer where fewer are stored."""
        assert self.rows is not None
        return self.rows.rows(torch.randperm(len(self), generator=self.rng)[:count])


class PerTaskRing:
    """The last `per_task` samples of every task (GEM's episodic memory)."""

    def __init__(self, per_task: int, rng: Generator) -> None:
        self.per_task, self.rng = per_task, rng
        self.seen = 0  # of the task that is filling its ring now
        self.filled = 0  # rows of the rings of tasks that are over
        self.rows: Batch | None = None

    def __len__(self) -> int:
        return self.filled

    def add(self, batch: Batch) -> None:
        """Write the batch over the oldest samples of the current task."""
        tail = batch.rows(slice(-self.per_task, None))
        skipped = len(batch.y) - len(tail.y)
        first = self.seen + skipped
        places = [self.filled + (first + i) % self.per_task for i in range(len(tail.y))]
        self.seen += len(batch.y)
        self.rows = _written(self.rows, self.filled + self.per_task, places, tail)

    def end_task(self) -> None:
        """The current ring joins those that `sample` draws from."""
        self.filled += min(self.seen, self.per_task)
        self.seen = 0

    def sample(self, count: int) -> Batch:
        """`count` different samples of past tasks at random, fewer where fewer are stored."""
        assert self.rows is not None
        return self.rows.rows(torch.randperm(self.filled, generator=self.rng)[:count])


def _written(rows: Batch | None, size: int, places: list[int], new: Batch) -> Batch:
    """`rows`, grown to `size` where it is shorter, with `new` written at `places`."""
    index = beside(torch.tensor(places), new.y)
    stored = []
    for old, field in zip(rows or (None,) * 4, new, strict=True):
        if field is None:
            stored.append(None)
            continue
        if old is None or len(old) < size:
            larger = field.new_zeros(size, *field.shape[1:])
            if old is not None:
                larger[: len(old)] = old
            old = larger
        old[index] = field
        stored.append(old)
    return Batch(*stored)
