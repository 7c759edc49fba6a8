"""Memories of past samples: raw pixels on the device, augmented anew when they are replayed.

Every draw is made on the CPU by the run's memory generator: the same on every device.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.state import Stateful
from cl_bench.core.types import Batch, Task, to_device_of

Insert = Literal["first", "all"]  # epochs whose samples are offered


class Buffer(Stateful):
    """Rows of samples; `add` offers some, `sample` draws, `of` gives all of one task.

    insert=first  a task's samples are offered in its first epoch alone; all: in each, so that the
                  buffer's count of what it has seen grows by epochs
    """

    def __init__(self, rng: Generator, insert: Insert) -> None:
        self.rng, self.insert = rng, insert
        self.rows: Batch | None = None
        self.filled = 0  # rows that may be drawn: the first ones
        self.new: int | None = None  # samples of this task still to be offered; None: no limit
        self.now: int | None = None  # the task that is being learned

    @classmethod
    def most_rows(cls, options: dict[str, Any], tasks: int) -> int | None:
        """How many samples it will have room for, by a config's options; None: it grows."""
        return options.get("capacity")

    def __len__(self) -> int:
        return self.filled

    def begin_task(self, task: Task) -> None:
        """Its samples will be offered from here on."""
        self.new = len(task) if self.insert == "first" else None
        self.now = task.id

    def add(self, batch: Batch) -> None:
        """Offer each sample, in order."""
        if self.new is not None:
            batch = batch.rows(slice(0, self.new)) if len(batch.y) > self.new else batch
            self.new -= len(batch.y)
        if len(batch.y):
            self._offer(batch)

    def end_task(self) -> None:
        """What was kept of the task is of the past now."""

    def sample(self, count: int) -> Batch:
        """`count` different samples at random, fewer where fewer are stored."""
        assert self.rows is not None
        return self.rows.rows(torch.randperm(self.filled, generator=self.rng)[:count])

    def by_task(self) -> list[Batch]:
        """What is kept of the past tasks, one by one: a CUDA device is waited for."""
        assert self.rows is not None
        t = self.rows.t[: self.filled]
        past = [k for k in t.unique().tolist() if k != self.now]
        return [self.rows.rows((t == k).nonzero().squeeze(1)) for k in past]

    def _offer(self, batch: Batch) -> None:
        raise NotImplementedError

    def _write(self, places: list[int], new: Batch, size: int) -> None:
        """Put `new` at `places`, in storage of at least `size` rows."""
        index = to_device_of(torch.tensor(places), new.y)
        stored = []
        for old, field in zip(self.rows or (None,) * 4, new, strict=True):
            if field is not None:
                old = _grown(old, field, size)
                old[index] = field
            stored.append(old)
        self.rows = Batch(*stored)


class Reservoir(Buffer):
    """A uniform sample of all that was offered (Vitter 1985, algorithm R): each kept w.p. M / n.

    `capacity` null keeps everything. Once full, most batches change nothing and copy nothing.
    """

    def __init__(self, capacity: Count | None, insert: Insert, rng: Generator) -> None:
        super().__init__(rng, insert)
        self.capacity, self.seen = capacity, 0

    def _offer(self, batch: Batch) -> None:
        """A later sample wins a place that two would take."""
        count = len(batch.y)
        order = torch.arange(self.seen + 1, self.seen + count + 1)
        capacity = self.seen + count if self.capacity is None else self.capacity
        room = 0 if self.rows is None else len(self.rows.y)
        size = max(capacity, 2 * room) if room < capacity else room
        places = (torch.rand(count, generator=self.rng, dtype=torch.float64) * order).long()
        places = torch.where(order <= capacity, order - 1, places)
        kept = {p: i for i, p in enumerate(places.tolist()) if p < capacity}
        self.seen += count
        self.filled = min(self.seen, capacity)
        if kept:
            self._write(list(kept), batch.rows(torch.tensor(list(kept.values()))), size)


class Balanced(Buffer):
    """As many samples of each class as there are, up to the largest (Chrysakis & Moens 2020, CBRS).

    A sample of a class that has never been the largest takes the place of one of the largest; one
    of another class stays with probability m / n, m stored of n offered of its class: uniform
    within a class. It needs the labels on the CPU: a CUDA device is waited for at every step.
    """

    def __init__(self, capacity: Count, insert: Insert, rng: Generator) -> None:
        super().__init__(rng, insert)
        self.capacity = capacity
        self.places: dict[int, list[int]] = {}  # the rows of each class
        self.seen: dict[int, int] = {}  # samples offered of each class
        self.full: set[int] = set()  # classes that were the largest at some time

    def _offer(self, batch: Batch) -> None:
        labels = batch.y.tolist()
        draws = torch.rand(len(labels), 2, generator=self.rng, dtype=torch.float64).tolist()
        kept = {}
        for i, (label, (u, v)) in enumerate(zip(labels, draws, strict=True)):
            self.seen[label] = self.seen.get(label, 0) + 1
            place = self._place(label, u, v)
            if place is not None:
                kept[place] = i
        if kept:
            self._write(list(kept), batch.rows(torch.tensor(list(kept.values()))), self.capacity)

    def _place(self, label: int, u: float, v: float) -> int | None:
        """The row that a sample of this class takes; None: none. `u`, `v` are uniform draws."""
        own = self.places.setdefault(label, [])
        if self.filled < self.capacity:
            own.append(self.filled)
            self.filled += 1
            return own[-1]
        most = max(map(len, self.places.values()))
        largest = sorted(c for c, rows in self.places.items() if len(rows) == most)
        self.full.update(largest)
        if label in self.full:
            return own[int(v * len(own))] if u * self.seen[label] < len(own) else None
        victim, at = divmod(int(v * most * len(largest)), most)
        own.append(self.places[largest[victim]].pop(at))
        return own[-1]


class Ring(Buffer):
    """The last `per_task` samples of every task; the current one is not drawn (GEM's memory)."""

    def __init__(self, per_task: Count, insert: Insert, rng: Generator) -> None:
        super().__init__(rng, insert)
        self.per_task, self.seen = per_task, 0  # samples of the task whose ring is being filled
        self.starts: list[int] = []  # of the past tasks' rings

    def _offer(self, batch: Batch) -> None:
        tail = batch.rows(slice(-self.per_task, None))
        first = self.seen + len(batch.y) - len(tail.y)
        places = [self.filled + (first + i) % self.per_task for i in range(len(tail.y))]
        self.seen += len(batch.y)
        self._write(places, tail, self.filled + self.per_task)

    @classmethod
    def most_rows(cls, options: dict[str, Any], tasks: int) -> int | None:
        return tasks * options["per_task"]

    def end_task(self) -> None:
        """The current ring joins those that are drawn from."""
        if self.seen:
            self.starts.append(self.filled)
        self.filled += min(self.seen, self.per_task)
        self.seen = 0

    def by_task(self) -> list[Batch]:
        """Where each ring lies is known: no device is waited for."""
        assert self.rows is not None
        ends = [*self.starts[1:], self.filled]
        return [self.rows.rows(slice(*cut)) for cut in zip(self.starts, ends, strict=True)]


def _grown(old: Tensor | None, field: Tensor, size: int) -> Tensor:
    """`old` with at least `size` rows like those of `field`."""
    if old is not None and len(old) >= size:
        return old
    larger = field.new_zeros(size, *field.shape[1:])
    if old is not None:
        larger[: len(old)] = old
    return larger
