"""The data that a run works on: Batch, Task and Stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from cl_bench.core.state import stored_as


def to_device_of(index: Tensor, data: Tensor) -> Tensor:
    """Move `index` to the device of `data` without synchronising with that device."""
    if data.device.type == "cpu" or index.device == data.device:
        return index
    if data.device.type != "cuda":
        return index.to(data.device, non_blocking=True)
    return index.pin_memory().to(data.device, non_blocking=True)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 or more: losses and statistics are not computed in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float64(x: Tensor) -> Tensor:
    """`x` in float64; on the CPU where its device has no such numbers (mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@stored_as("batch")
class Batch(NamedTuple):
    """B samples: raw pixels, class ids of the whole stream, task ids."""

    x: Tensor  # (B, C, H, W) uint8, never augmented
    y: Tensor  # (B,) class ids of the whole stream, 0 to K - 1
    t: Tensor  # (B,) task ids, one for each sample, because replay mixes tasks
    logits: Tensor | None = None  # (B, K) the network's logits when the sample was stored (DER)

    def cat(self, *others: Batch) -> Batch:
        """The samples of this batch and then those of the others, without stored logits."""
        fields = zip(self[:3], *(other[:3] for other in others), strict=True)
        return Batch(*(torch.cat(field) for field in fields))

    def split(self, sizes: Sequence[int]) -> list[Batch]:
        """The samples in their order, cut into parts of these sizes."""
        ends = [0, *accumulate(sizes)]
        return [self.rows(slice(*cut)) for cut in pairwise(ends)]

    def slices(self, size: int) -> Iterator[Batch]:
        """The samples in their order, `size` at a time; the last slice may have fewer."""
        for i in range(0, len(self.y), size):
            yield self.rows(slice(i, i + size))

    def rows(self, index: Tensor | slice) -> Batch:
        """The samples at `index`: ids (M,), a mask (B,) or a slice."""
        if isinstance(index, Tensor):
            index = to_device_of(index, self.y)
        logits = None if self.logits is None else self.logits[index]
        return Batch(self.x[index], self.y[index], self.t[index], logits)


@dataclass(frozen=True)
class Task:
    """N samples of one task: those that a method trains on, or those of its test set."""

    id: int
    x: Tensor  # (N, C, H, W) uint8
    y: Tensor  # (N,) class ids of the whole stream
    t: Tensor  # (N,) task ids: all equal to `id`, except where tasks are joined into one
    # the numbers of samples of joined tasks that are learned one after the other; none: all N
    # samples come in one random order
    parts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, index: Tensor) -> Task:
        """The samples at `index` (M,), in that order, as a task with the same id."""
        index = to_device_of(index, self.y)
        return Task(self.id, self.x[index], self.y[index], self.t[index])

    @property
    def storage(self) -> tuple[int, int, int]:
        """Memory addresses and length, equal for two tasks that share the same tensors."""
        return self.x.data_ptr(), self.y.data_ptr(), len(self)

    def batches(
        self, size: int, rng: Generator, epochs: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """Shuffled batches of all epochs but for the first `start`; an epoch's last may be smaller.

        Each epoch's permutation is drawn from `rng` when the epoch is reached. Samples of several
        `parts` stay in their part, and each part has a last batch that may be smaller.
        """
        return map(self.batch, self.indices(size, rng, epochs, start))

    def indices(
        self, size: int, rng: Generator, epochs: int = 1, start: int = 0
    ) -> Iterator[Tensor]:
        """The indices (B,) of the samples of each of `batches`, on the device."""
        skipped = start
        for _ in range(epochs):
            first = 0
            for part, count in zip(self._parts, self._counts(size), strict=True):
                order = to_device_of(torch.randperm(part, generator=rng) + first, self.y)
                for i in range(min(skipped, count), count):
                    yield order[i * size : (i + 1) * size]
                skipped, first = max(skipped - count, 0), first + part

    def batch(self, index: Tensor) -> Batch:
        """The samples at these indices (B,), on the device, as a batch."""
        return Batch(self.x[index], self.y[index], self.t[index])

    def whole_batches(self, size: int, at: int) -> int:
        """The number of batches of `size` samples in a row, from batch `at` of an epoch on."""
        first = 0
        for part, count in zip(self._parts, self._counts(size), strict=True):
            if at < first + count:
                return max(first + part // size - at, 0)
            first += count
        return 0

    def batches_per_epoch(self, size: int) -> int:
        """The number of batches that `batches` makes of each epoch."""
        return sum(self._counts(size))

    def part_starts(self, size: int) -> dict[int, int]:
        """The number of each of `parts`, by the batch of the epoch that it begins with."""
        starts = accumulate(self._counts(size), initial=0)
        return {start: part for part, start in zip(range(len(self.parts)), starts, strict=False)}

    @property
    def _parts(self) -> tuple[int, ...]:
        return self.parts or (len(self),)

    def _counts(self, size: int) -> list[int]:
        return [-(-part // size) for part in self._parts]

    def chunks(self, size: int) -> Iterator[Batch]:
        """The samples in stored order, `size` at a time, for evaluation and curvature."""
        for i in range(0, len(self), size):
            part = slice(i, i + size)
            yield Batch(self.x[part], self.y[part], self.t[part])


class Transform(Protocol):
    """Turns raw pixels into the network's input: `draw` augments at random, `view` normalises."""

    once: bool  # augment a training image when its batch comes, not for each use

    def draw(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, h, w) uint8, augmented by one random draw per sample."""
        ...

    def view(self, x: Tensor) -> Tensor:
        """(B, C, h or H, w or W) uint8 -> (B, C, h, w) float, deterministic."""
        ...


@stored_as("snapshot")
class Snapshot(NamedTuple):
    """A copy of a network's parameters and statistics, taken by `Learner.snapshot`."""

    theta: Tensor  # (P,)
    buffers: dict[str, Tensor]  # batch norm's running statistics, by name


Scenario = Callable[[Tensor, int], Tensor]  # (classes (T, K) bool, now) -> live (T, K) bool


@dataclass(frozen=True)
class Stream:
    """The tasks in order, their test sets, and the scenario, which says which classes compete."""

    tasks: list[Task]
    tests: list[Task]
    classes: Tensor  # (T, K) bool: the classes of each task
    scenario: Scenario
    transform: Transform
    description: dict[str, object]  # for the record: classes of each task, data hash, provenance
    held_out: list[Task] = field(default_factory=list)  # of each task, with schedule.patience

    @property
    def num_classes(self) -> int:
        """K, the number of classes of all tasks together."""
        return self.classes.shape[1]

    @property
    def live_at_end(self) -> Tensor:
        """(T, K) bool: classes that compete for a sample of each task once all are learned."""
        return self.scenario(self.classes, len(self.tests) - 1)

    def live(self, now: int) -> Tensor:
        """(T, K) bool: classes that compete for a sample of each task while `now` is learned."""
        return self.scenario(self.classes, now)
