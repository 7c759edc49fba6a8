"""Memories that keep samples as they come: a reservoir, one balanced by class, and a ring."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Generator

from cl_bench.base.bounds import Count
from cl_bench.base.exceptions import UserError
from cl_bench.core.decisions import cannot_be_planned
from cl_bench.core.memory import Buffer, Insert
from cl_bench.core.types import Batch, Task


class Reservoir(Buffer):
    """A uniform sample of all that was offered (Vitter 1985, algorithm R).

    Each of n offered samples is kept with probability capacity / n; `capacity` null keeps all.
    """

    task_free = True

    def __init__(
        self, capacity: Count | None, insert: Insert, replacement: bool, rng: Generator
    ) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity, self.seen = capacity, 0

    def _room(self) -> int:
        if self.capacity is not None:
            return self.capacity
        cannot_be_planned("a memory without a capacity grows while it learns")
        room = 0 if self.rows is None else len(self.rows.y)
        return room if room >= self.seen else max(self.seen, 2 * room)

    def _offer(self, batch: Batch) -> dict[int, int]:
        """Where two samples of a batch draw the same row, the later one is written."""
        count = len(batch.y)
        order = torch.arange(self.seen + 1, self.seen + count + 1)
        capacity = self.seen + count if self.capacity is None else self.capacity
        places = (torch.rand(count, generator=self.rng, dtype=torch.float64) * order).long()
        places = torch.where(order <= capacity, order - 1, places)
        self.seen += count
        self.filled = min(self.seen, capacity)
        return {p: i for i, p in enumerate(places.tolist()) if p < capacity}


class Balanced(Buffer):
    """A class-balanced reservoir (CBRS, Chrysakis & Moens 2020).

    Once it is full, a sample of a class that has never been the largest replaces a random sample
    of a largest class. A sample of any other class replaces one of its own class with probability
    m / n, m stored and n offered of that class, so that each class is sampled uniformly. It reads
    the labels on the CPU, which synchronises with a CUDA device at every step.
    """

    task_free = True

    def __init__(self, capacity: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity = capacity
        self.places: dict[int, list[int]] = {}  # the rows of each class
        self.seen: dict[int, int] = {}  # samples offered of each class
        self.full: set[int] = set()  # classes that have been the largest at some time

    def _room(self) -> int:
        return self.capacity

    def _offer(self, batch: Batch) -> dict[int, int]:
        cannot_be_planned("buffer=balanced reads the labels of each batch")
        labels = batch.y.tolist()
        draws = torch.rand(len(labels), 2, generator=self.rng, dtype=torch.float64).tolist()
        kept = {}
        for i, (label, (u, v)) in enumerate(zip(labels, draws, strict=True)):
            self.seen[label] = self.seen.get(label, 0) + 1
            place = self._place(label, u, v)
            if place is not None:
                kept[place] = i
        return kept

    def _place(self, label: int, u: float, v: float) -> int | None:
        """The row for a sample of this class, None to drop it; `u`, `v` are uniform draws."""
        own = self.places.setdefault(label, [])
        if self.filled < self.capacity:
            own.append(self.filled)
            self.filled += 1
            return own[-1]
        longest = max(map(len, self.places.values()))
        largest = sorted(c for c, rows in self.places.items() if len(rows) == longest)
        self.full.update(largest)
        if label in self.full:
            return own[int(v * len(own))] if u * self.seen[label] < len(own) else None
        victim, at = divmod(int(v * longest * len(largest)), longest)
        own.append(self.places[largest[victim]].pop(at))
        return own[-1]


class Ring(Buffer):
    """The last samples of every task, as in GEM; the current task is not drawn.

    per_task  so many of each task
    capacity  so many in all, shared equally by the tasks so far, in place of `per_task`
    """

    shared_by: ClassVar[str | None] = "tasks"

    def __init__(
        self,
        per_task: Count,
        insert: Insert,
        replacement: bool,
        rng: Generator,
        capacity: Count | None = None,
    ) -> None:
        super().__init__(rng, insert, replacement)
        self.per_task, self.capacity = per_task, capacity
        self.seen = 0  # samples offered of the current task
        self.starts: list[int] = []  # first row of each past task

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """Without `capacity` a config has the hash that it had before there was this option."""
        return {"capacity"} if options.get("capacity") is None else {"per_task"}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.capacity is not None:
            self.per_task = self.capacity // (len(self.starts) + 1)
            if not self.per_task:  # else refused before the run, unless it goes on from another one
                raise UserError(
                    f"buffer.capacity={self.capacity}: {len(self.starts) + 1} tasks share it; use "
                    "at least as many samples"
                )
            kept = [range(max(s, e - self.per_task), e) for s, e in self._tasks()]
            *self.starts, self.filled = accumulate(map(len, kept), initial=0)
            if self.rows is not None:
                self.rows = self.rows.rows(torch.tensor([row for rows in kept for row in rows]))

    def _room(self) -> int:
        return self.filled + self.per_task

    def _offer(self, batch: Batch) -> dict[int, int]:
        count = len(batch.y)
        first = max(count - self.per_task, 0)
        self.seen += count
        now = range(self.seen - count + first, self.seen)
        return {self.filled + n % self.per_task: i for i, n in enumerate(now, first)}

    @classmethod
    def max_samples(cls, options: dict[str, Any], tasks: int, classes: int | None) -> int | None:
        return options.get("capacity") or tasks * options["per_task"]

    def end_task(self) -> None:
        """The samples of the current task may be drawn from now on."""
        if self.seen:
            self.starts.append(self.filled)
            if self.capacity is not None and self.seen > self.per_task:
                self._sort(self.seen % self.per_task)
        self.filled += min(self.seen, self.per_task)
        self.seen = 0

    def by_task(self) -> list[Batch]:
        """The stored samples of each past task, found without synchronising with the device."""
        assert self.rows is not None
        return [self.rows.rows(slice(*cut)) for cut in self._tasks()]

    def _sort(self, oldest: int) -> None:
        """Put the rows of the current task into the order in which they came."""
        assert self.rows is not None
        now = torch.arange(self.filled, self.filled + self.per_task).roll(-oldest)
        self.rows = self.rows.rows(torch.cat([torch.arange(self.filled), now]))

    def _tasks(self) -> list[tuple[int, int]]:
        """The first row of each past task, and the one after its last."""
        return list(pairwise([*self.starts, self.filled]))
