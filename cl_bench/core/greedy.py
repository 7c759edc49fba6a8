"""Memory of GDumb: as many samples of each class as there is room for (Prabhu et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator

from cl_bench.base.bounds import Count
from cl_bench.core.decisions import cannot_be_planned
from cl_bench.core.memory import Buffer, Insert
from cl_bench.core.types import Batch


class Greedy(Buffer):
    """Keeps a sample of a class that has less than an equal share (their algorithm 1).

    Once the memory is full, it takes the place of a random sample of the largest class; of several
    largest classes, of the one that came first.
    """

    task_free = True
    shared_by: ClassVar[str | None] = "classes"

    def __init__(self, capacity: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity = capacity
        self.places: dict[int, list[int]] = {}  # the rows of each class

    def _room(self) -> int:
        return self.capacity

    def _offer(self, batch: Batch) -> dict[int, int]:
        cannot_be_planned("buffer=greedy reads the labels of each batch")
        kept = {}
        for i, label in enumerate(batch.y.tolist()):
            own = self.places.setdefault(label, [])
            if len(own) >= self.capacity // len(self.places):
                continue
            if self.filled < self.capacity:
                place, self.filled = self.filled, self.filled + 1
            else:
                largest = max(self.places.values(), key=len)
                place = largest.pop(int(torch.randint(len(largest), (), generator=self.rng)))
            own.append(place)
            kept[place] = i
        return kept
