"""What is tested after each task, and how well a method does on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cl_bench.methods.base import Method
from cl_bench.types import Stream, Task


@dataclass(frozen=True)
class Evaluation:
    """What is measured after each task.

    when=seen   the tasks so far and the next one, and all before training: all metrics
    when=final  the task just learned and, after the last, all of them: ACC, BWT and LA
    when=all    the full square
    """

    when: Literal["seen", "final", "all"]
    split: Literal["test", "val"]
    holdout: float
    batch_size: int

    def columns(self, row: int, stream: Stream) -> list[int]:
        """The tasks to test after task `row` (-1: before training)."""
        tasks = len(stream.tests)
        if self.when == "all" or row == tasks - 1:
            return list(range(tasks))
        if self.when == "final":
            return [row] if row >= 0 else []
        if row < 0:
            return list(range(1, tasks))
        return list(range(row + 2))


@torch.no_grad()
def accuracies(method: Method, tests: list[Task], batch_size: int) -> list[float]:
    """The share of each test set that is classified correctly; one wait for the device in all."""
    learner = method.learner
    correct: list[Tensor] = []
    known: dict[object, Tensor] = {}  # data-IL: one test set for all tasks is tested once
    with learner.evaluating():
        for test in tests:
            key = id(test) if learner.masked else test.place
            if key not in known:
                known[key] = _hits(method, test, batch_size)
            correct.append(known[key])
    counts = torch.stack(correct).tolist() if correct else []
    return [count / len(test) for count, test in zip(counts, tests, strict=True)]


def _hits(method: Method, test: Task, batch_size: int) -> Tensor:
    """How many of a test set are classified correctly, still on the device."""
    learner, hits = method.learner, torch.zeros((), dtype=torch.long, device=test.y.device)
    for batch in test.chunks(batch_size):
        logits = method.predict(batch)
        if learner.masked:
            logits = logits.masked_fill(~learner.live[batch.t], -torch.inf)
        hits += (logits.argmax(-1) == batch.y).sum()
    return hits
