"""A memory of samples with scores: those with a low one replace those with a high one (GSS)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator

from cl_bench.base.bounds import Count
from cl_bench.core.decisions import cannot_be_planned
from cl_bench.core.memory import Buffer, Insert
from cl_bench.core.types import Batch

LEAST = 1e-6  # smallest score that is stored, so that all probabilities are defined


class Scored(Buffer):
    """Keeps samples by scores in [0, 2] that the method gives (Aljundi et al. 2019, algorithm 2).

    While there is room a sample is stored with its score c. Later a stored sample i is drawn with
    probability c_i / sum_j c_j, and replaced with probability c_i / (c_i + c).
    """

    task_free = True
    needs_scores: ClassVar[bool] = True

    def __init__(self, capacity: Count, insert: Insert, replacement: bool, rng: Generator) -> None:
        super().__init__(rng, insert, replacement)
        self.capacity = capacity
        self.scores: list[float] = []  # of the stored samples
        self.offered: list[float | None] = []  # of the batch that is being offered

    @property
    def closed(self) -> bool:
        """Whether no sample may be offered until the next task (insert=first)."""
        return self.new == 0

    @property
    def room(self) -> int:
        """How many samples will be stored whatever their scores."""
        return self.capacity - self.filled

    def offer(self, batch: Batch, scores: list[float | None]) -> None:
        """Offer the samples of a batch, with a score each; None: the sample is not to be stored."""
        cannot_be_planned("buffer=scored needs the gradients of each batch")
        self.offered = scores
        self.add(batch)
        self.offered = []

    def _room(self) -> int:
        return self.capacity

    def _offer(self, batch: Batch) -> dict[int, int]:
        """Where two samples of a batch replace the same one, the later one is written."""
        count = len(batch.y)
        draws = torch.rand(count, 2, generator=self.rng, dtype=torch.float64).tolist()
        kept = {}
        for i, (score, (u, v)) in enumerate(zip(self.offered[:count], draws, strict=True)):
            place = None if score is None else self._place(max(score, LEAST), u, v)
            if place is not None:
                kept[place] = i
        return kept

    def _place(self, score: float, u: float, v: float) -> int | None:
        """The row for a sample with this score, None to drop it; `u`, `v` are uniform draws."""
        if self.filled < self.capacity:
            self.scores.append(score)
            self.filled += 1
            return self.filled - 1
        sums = torch.tensor(self.scores, dtype=torch.float64).cumsum(0)
        victim = min(int(torch.searchsorted(sums, u * sums[-1], right=True)), self.capacity - 1)
        if v * (self.scores[victim] + score) >= self.scores[victim]:
            return None
        self.scores[victim] = score
        return victim
