"""Plain data that a run is made of: Batch, Task, Stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from cl_bench.core.state import stored_as


def to_device_of(index: Tensor, data: Tensor) -> Tensor:
    """`index`, drawn on the CPU, on the device of `data`; nobody waits for that device."""
    if data.device.type == "cpu" or index.device == data.device:
        return index
    return index.pin_memory().to(data.device, non_blocking=True)


@stored_as("batch")
class Batch(NamedTuple):
    """B samples as they were stored: raw pixels, global class ids, task ids."""

    x: Tensor  # (B, C, H, W) uint8, never augmented
    y: Tensor  # (B,) global class ids
    t: Tensor  # (B,) task ids, one per sample (replay mixes tasks)
    logits: Tensor | None = None  # (B, K) the network's logits when stored (DER)

    def cat(self, other: Batch) -> Batch:
        """Both batches one after the other; logits are dropped."""
        pairs = zip(self[:3], other[:3], strict=True)
        return Batch(*(torch.cat(pair) for pair in pairs))

    def slices(self, size: int) -> Iterator[Batch]:
        """The samples in their order, so many at a time; the last slice may have fewer."""
        for i in range(0, len(self.y), size):
            yield self.rows(slice(i, i + size))

    def rows(self, index: Tensor | slice) -> Batch:
        """The samples that `index` picks."""
        if isinstance(index, Tensor):
            index = to_device_of(index, self.y)
        logits = None if self.logits is None else self.logits[index]
        return Batch(self.x[index], self.y[index], self.t[index], logits)


@dataclass(frozen=True)
class Task:
    """What a method may see: the training data of now, nothing else."""

    id: int
    x: Tensor  # (N, C, H, W) uint8
    y: Tensor  # (N,) global class ids
    t: Tensor  # (N,) task ids: all `id`, but for a joined task

    def __len__(self) -> int:
        return len(self.y)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where its samples lie in memory: equal for the one test set that tasks share."""
        return self.x.data_ptr(), self.y.data_ptr(), len(self)

    def batches(
        self, size: int, rng: Generator, epochs: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """Shuffled batches, `start` of them passed over; the last of an epoch may be short."""
        per_epoch = -(-len(self) // size)
        for epoch in range(epochs):
            order = to_device_of(torch.randperm(len(self), generator=rng), self.y)
            for i in range(max(start - epoch * per_epoch, 0), per_epoch):
                index = order[i * size : (i + 1) * size]
                yield Batch(self.x[index], self.y[index], self.t[index])

    def chunks(self, size: int) -> Iterator[Batch]:
        """The samples in their own order, `size` at a time: for evaluation and curvature."""
        for i in range(0, len(self), size):
            part = slice(i, i + size)
            yield Batch(self.x[part], self.y[part], self.t[part])


class Transform(Protocol):
    """From raw pixels to what the network sees."""

    def draw(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, h, w) uint8 under one random draw a sample."""
        ...

    def view(self, x: Tensor) -> Tensor:
        """(B, C, h or H, w or W) uint8 -> (B, C, h, w) float; no draw."""
        ...


@stored_as("snapshot")
class Snapshot(NamedTuple):
    """A network at one time."""

    theta: Tensor  # (P,)
    buffers: dict[str, Tensor]  # batch norm's statistics


Scenario = Callable[[Tensor, int], Tensor]  # (classes (T, K) bool, now) -> live (T, K) bool


@dataclass(frozen=True)
class Stream:
    """The tasks in order, their test sets, and the scenario that says which classes compete."""

    tasks: list[Task]
    tests: list[Task]
    classes: Tensor  # (T, K) bool: classes of each task
    scenario: Scenario
    transform: Transform
    description: dict[str, object]  # class order, data hash, provenance: goes into the record

    @property
    def num_classes(self) -> int:
        return self.classes.shape[1]

    @property
    def ever(self) -> Tensor:
        """(T, K) bool: classes that will have competed for a sample of each task at the end."""
        return self.scenario(self.classes, len(self.tests) - 1)

    def live(self, now: int) -> Tensor:
        """(T, K) bool: classes that compete for a sample of each task while `now` is learned."""
        return self.scenario(self.classes, now)
