"""What is tested after each task, and how well a method does on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Part
from cl_bench.base.exceptions import diverged
from cl_bench.core.types import Stream, Task
from cl_bench.methods.base import Method


@dataclass(frozen=True)
class Evaluation:
    """What is measured after each task.

    when=seen   the tasks so far and the next one, and all before training: all metrics
    when=final  the task just learned and, after the last, all of them: ACC, BWT and LA
    when=all    the full square
    """

    when: Literal["seen", "final", "all"]
    split: Literal["test", "val"]
    holdout: Part
    batch_size: Count

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """Options that make no difference where the others are as they are."""
        return set() if options["split"] == "val" else {"holdout"}

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
    """The share of each test set that is classified correctly; one wait for the device in all.

    UserError where a parameter or a logit is not finite: such a network has no accuracy.
    """
    learner = method.learner
    counts: list[Tensor] = []
    known: dict[object, Tensor] = {}  # data-IL: one test set for all tasks is tested once
    with learner.evaluating():
        for test in tests:
            key = id(test) if learner.heads.masked else test.storage
            if key not in known:
                known[key] = _counts(method, test, batch_size)
            counts.append(known[key])
    lost = (~learner.flat.theta.isfinite()).sum()
    *found, (lost, _) = torch.stack([*counts, torch.stack([lost, lost])]).tolist()
    now = 0 if learner.task is None else learner.task.id
    if lost:
        raise diverged(f"{lost} of {learner.flat.theta.numel()} parameters are not finite", now)
    for (_, infinite), test in zip(found, tests, strict=True):
        if infinite:
            raise diverged(f"logits of {infinite} images of task {test.id} are not finite", now)
    return [hits / len(test) for (hits, _), test in zip(found, tests, strict=True)]


def _counts(method: Method, test: Task, batch_size: int) -> Tensor:
    """(2,): how many of a test set are classified correctly, how many have logits not finite."""
    learner, counts = method.learner, torch.zeros(2, dtype=torch.long, device=test.y.device)
    for batch in test.chunks(batch_size):
        logits = method.predict(batch)
        lost = ~logits.isfinite().all(-1)
        if learner.heads.masked:
            logits = logits.masked_fill(~learner.heads.live[batch.t], -torch.inf)
        counts += torch.stack([(logits.argmax(-1) == batch.y).sum(), lost.sum()])
    return counts
