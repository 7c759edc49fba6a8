"""Memories of replay methods: past samples as pixels, as they came to the method.

All draws come from a CPU generator of the run, so that they are the same on every device.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.state import Stateful
from cl_bench.core.types import Batch, Task, to_device_of

Insert = Literal["first", "all"]  # offer samples in a task's first epoch, or in all of them


class Buffer(Stateful):
    """A memory of samples: `add` offers a batch, `sample` draws, `by_task` gives all of it.

    insert=first  a task's samples are offered in its first epoch only
    insert=all    they are offered in each epoch, and the buffer counts them each time
    replacement   whether a draw may have a sample several times
    """

    task_free: ClassVar[bool] = False  # True where it works without being told that a task ends

    def __init__(self, rng: Generator, insert: Insert, replacement: bool) -> None:
        self.rng, self.insert, self.replacement = rng, insert, replacement
        self.rows: Batch | None = None
        self.filled = 0  # the number of rows that may be drawn, from the first on
        self.new: int | None = None  # samples of this task still to be offered; None: no limit
        self.now: int | None = None  # id of the task that is learned

    @classmethod
    def max_samples(cls, options: dict[str, Any], tasks: int) -> int | None:
        """The number of samples it allocates, from a config's options; None: it grows."""
        return options.get("capacity")

    def __len__(self) -> int:
        return self.filled

    def begin_task(self, task: Task) -> None:
        """Call it before the task's samples are offered."""
        self.new = len(task) if self.insert == "first" else None
        self.now = task.id

    def add(self, batch: Batch) -> None:
        """Offer the samples of a batch, in order; the buffer decides which ones it keeps."""
        if self.new is not None:
            batch = batch.rows(slice(0, self.new)) if len(batch.y) > self.new else batch
            self.new -= len(batch.y)
        if len(batch.y):
            self._offer(batch)

    def end_task(self) -> None:
        """Call it after the task's last sample; what is kept of it may be replayed as past."""

    def sample(self, count: int) -> Batch:
        """`count` stored samples, or as many as there are: distinct, or drawn independently."""
        assert self.rows is not None
        if self.replacement:
            size = (min(count, self.filled),)
            return self.rows.rows(torch.randint(self.filled, size, generator=self.rng))
        return self.rows.rows(torch.randperm(self.filled, generator=self.rng)[:count])

    def by_task(self) -> list[Batch]:
        """The stored samples of each past task, a batch each; synchronises with a CUDA device."""
        assert self.rows is not None
        t = self.rows.t[: self.filled]
        past = [k for k in t.unique().tolist() if k != self.now]
        return [self.rows.rows((t == k).nonzero().squeeze(1)) for k in past]

    def _offer(self, batch: Batch) -> None:
        raise NotImplementedError

    def _write(self, places: list[int], new: Batch, size: int) -> None:
        """Write `new` to rows `places`, after growing the storage to at least `size` rows."""
        index = to_device_of(torch.tensor(places), new.y)
        stored = []
        for old, field in zip(self.rows or (None,) * 4, new, strict=True):
            if field is not None:
                old = _grown(old, field, size)
                old[index] = field
            stored.append(old)
        self.rows = Batch(*stored)


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

    def _offer(self, batch: Batch) -> None:
        """Where two samples of a batch draw the same row, the later one is written."""
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
    """The last `per_task` samples of every task, as in GEM; the current task is not drawn."""

    def __init__(self, per_task: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.per_task, self.seen = per_task, 0  # seen: samples offered of the current task
        self.starts: list[int] = []  # first row of each past task

    def _offer(self, batch: Batch) -> None:
        tail = batch.rows(slice(-self.per_task, None))
        first = self.seen + len(batch.y) - len(tail.y)
        places = [self.filled + (first + i) % self.per_task for i in range(len(tail.y))]
        self.seen += len(batch.y)
        self._write(places, tail, self.filled + self.per_task)

    @classmethod
    def max_samples(cls, options: dict[str, Any], tasks: int) -> int | None:
        return tasks * options["per_task"]

    def end_task(self) -> None:
        """The samples of the current task may be drawn from now on."""
        if self.seen:
            self.starts.append(self.filled)
        self.filled += min(self.seen, self.per_task)
        self.seen = 0

    def by_task(self) -> list[Batch]:
        """The stored samples of each past task, found without synchronising with the device."""
        assert self.rows is not None
        ends = [*self.starts[1:], self.filled]
        return [self.rows.rows(slice(*cut)) for cut in zip(self.starts, ends, strict=True)]


def _grown(old: Tensor | None, field: Tensor, size: int) -> Tensor:
    """`old` with at least `size` rows; new storage, shaped as `field`, where it is smaller."""
    if old is not None and len(old) >= size:
        return old
    larger = field.new_zeros(size, *field.shape[1:])
    if old is not None:
        larger[: len(old)] = old
    return larger
