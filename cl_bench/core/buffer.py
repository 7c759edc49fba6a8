"""Memories of replay methods: past samples as pixels, as they came to the method.

All draws come from a CPU generator of the run, so that they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count
from cl_bench.core.decisions import cannot_be_planned, decide, shapes_are_fixed, sizes_of
from cl_bench.core.state import Stateful
from cl_bench.core.storage import written
from cl_bench.core.types import Batch, Task

NOTHING = torch.empty(2, 0, dtype=torch.int64)  # rows to write, and samples to write there
Features = Callable[[list[Batch]], Tensor]  # -> (N, d) features of length 1 of all samples
Insert = Literal["first", "all"]  # offer samples in a task's first epoch, or in all of them


class Buffer(Stateful):
    """A memory of samples: `add` offers a batch, `sample` draws, `by_task` gives all of it.

    insert=first  a task's samples are offered in its first epoch only
    insert=all    they are offered in each epoch, and the buffer counts them each time
    replacement   whether a draw may have a sample several times
    """

    task_free: ClassVar[bool] = False  # True where it works without being told that a task ends
    keeps_logits: ClassVar[bool] = True  # False where stored samples have no logits (DER)
    shared_by: ClassVar[str | None] = None  # classes | classes of each task: have equal shares

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

    @property
    def empty(self) -> bool:
        """Whether no sample may be drawn; false from the first one on."""
        return not vars(self)["filled"]  # which a planned step may ask, and nothing more

    def begin_task(self, task: Task) -> None:
        """Call it before the task's samples are offered."""
        self.new = len(task) if self.insert == "first" else None
        self.now = task.id

    def add(self, batch: Batch) -> None:
        """Offer the samples of a batch, in order; the buffer decides which ones it keeps."""
        chosen = decide(lambda: self._chosen(batch), batch.y)
        if chosen.shape[1]:
            self.rows = written(self.rows, chosen, batch, self._room())

    def choose(self, task: Task, features: Features) -> None:
        """Call it before `end_task`; a memory that chooses from the whole task does so here."""

    def end_task(self) -> None:
        """Call it after the task's last sample; what is kept of it may be replayed as past."""

    def sample(self, count: int) -> Batch:
        """`count` stored samples, or as many as there are: distinct, or drawn independently."""
        assert self.rows is not None
        if self.replacement:
            return self.rows.rows(decide(lambda: self._independent(count), self.rows.y))
        return self.rows.rows(decide(lambda: self._distinct(count), self.rows.y))

    def stored(self) -> Batch:
        """All samples that may be drawn."""
        assert self.rows is not None
        return self.rows.rows(slice(0, self.filled))

    def by_task(self) -> list[Batch]:
        """The stored samples of each past task, a batch each; synchronises with a CUDA device."""
        assert self.rows is not None
        t = self.rows.t[: self.filled]
        past = [k for k in t.unique().tolist() if k != self.now]
        return [self.rows.rows((t == k).nonzero().squeeze(1)) for k in past]

    def _independent(self, count: int) -> Tensor:
        return torch.randint(self.filled, (min(count, self.filled),), generator=self.rng)

    def _distinct(self, count: int) -> Tensor:
        return torch.randperm(self.filled, generator=self.rng)[:count]

    def _chosen(self, batch: Batch) -> Tensor:
        """(2, n): rows of the storage, and the samples of the batch that are written there.

        With fixed shapes n is the size B of the batch: the last pair is repeated, or where nothing
        is kept, the first row is written to itself, as sample B.
        """
        count = len(batch.y)
        if self.new is not None:
            batch = batch.rows(slice(0, self.new)) if count > self.new else batch
            self.new -= len(batch.y)
        kept = self._offer(sizes_of(batch)) if len(batch.y) else {}
        chosen = torch.tensor([list(kept), list(kept.values())]) if kept else NOTHING
        if not shapes_are_fixed():
            return chosen
        last = chosen[:, -1:] if kept else torch.tensor([[0], [count]])
        return torch.cat([chosen, last.expand(2, count - len(kept))], 1)

    def _offer(self, batch: Batch) -> dict[int, int]:
        raise NotImplementedError("the rows to write, and which sample of the batch goes into each")

    def _room(self) -> int:
        raise NotImplementedError("the number of rows that the storage has at least")


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
    """The last `per_task` samples of every task, as in GEM; the current task is not drawn."""

    def __init__(self, per_task: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.per_task, self.seen = per_task, 0  # seen: samples offered of the current task
        self.starts: list[int] = []  # first row of each past task

    def _room(self) -> int:
        return self.filled + self.per_task

    def _offer(self, batch: Batch) -> dict[int, int]:
        count = len(batch.y)
        first = max(count - self.per_task, 0)
        self.seen += count
        now = range(self.seen - count + first, self.seen)
        return {self.filled + n % self.per_task: i for i, n in enumerate(now, first)}

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
