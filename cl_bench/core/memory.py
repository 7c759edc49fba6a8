"""The interface of a replay memory: past samples as pixels, as they came to the method.

All draws come from a CPU generator of the run, so that they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.memory_size import size_key
from cl_bench.core.decisions import decide, sizes_of
from cl_bench.core.state import Stateful
from cl_bench.core.storage import pairs_of, written
from cl_bench.core.types import Batch, Task

Features = Callable[[list[Batch]], Tensor]  # -> (N, d) features of length 1 of all samples
Insert = Literal["first", "all"]  # offer samples in a task's first epoch, or in all of them


def capacity_of(options: dict[str, Any]) -> int | None:
    """The samples in all, by a buffer's options; None: of each class or task, or no limit."""
    return options.get("capacity") if size_key(options) == "capacity" else None


class Buffer(Stateful):
    """A memory of samples: `add` offers a batch, `sample` draws, `by_task` gives all of it.

    insert=first  a task's samples are offered in its first epoch only
    insert=all    they are offered in each epoch, and the buffer counts them each time
    replacement   whether a draw may have a sample several times
    """

    task_free: ClassVar[bool] = False  # True where it works without being told that a task ends
    keeps_logits: ClassVar[bool] = True  # False where stored samples have no logits (DER)
    needs_scores: ClassVar[bool] = False  # True where the method must score what it offers (GSS)
    chooses_at_end: ClassVar[bool] = False  # True where it chooses from a task that has ended
    shared_by: ClassVar[str | None] = None  # classes | classes of each task | tasks: equal shares

    def __init__(self, rng: Generator, insert: Insert, replacement: bool) -> None:
        self.rng, self.insert, self.replacement = rng, insert, replacement
        self.rows: Batch | None = None
        self.filled = 0  # the number of rows that may be drawn, from the first on
        self.new: int | None = None  # samples of this task still to be offered; None: no limit
        self.now: int | None = None  # id of the task that is learned

    @classmethod
    def max_samples(cls, options: dict[str, Any], tasks: int, classes: int | None) -> int | None:
        """The number of samples it allocates, from a config's options; None: it grows.

        tasks    how many there are
        classes  how many there are, those of each task counted apart where all tasks have the same
                 ones; None: it is not known before the data are read
        """
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
        return self.rows.rows(self.draw(count))

    def draw(self, count: int) -> Tensor:
        """The rows of `count` stored samples, as `sample` takes them."""
        assert self.rows is not None
        return decide(lambda: self._drawn(count), self.rows.y)

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

    def _drawn(self, count: int) -> Tensor:
        if self.replacement:
            return torch.randint(self.filled, (min(count, self.filled),), generator=self.rng)
        return torch.randperm(self.filled, generator=self.rng)[:count]

    def _chosen(self, batch: Batch) -> Tensor:
        """(2, n): rows of the storage, and the samples of the batch that are written there."""
        count = len(batch.y)
        if self.new is not None:
            batch = batch.rows(slice(0, self.new)) if count > self.new else batch
            self.new -= len(batch.y)
        return pairs_of(self._offer(sizes_of(batch)) if len(batch.y) else {}, count)

    def _offer(self, batch: Batch) -> dict[int, int]:
        raise NotImplementedError("the rows to write, and which sample of the batch goes into each")

    def _room(self) -> int:
        raise NotImplementedError("the number of rows that the storage has at least")
