"""Which tasks are tested after each task, and the accuracies on their test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Part
from cl_bench.base.exceptions import diverged
from cl_bench.core.criteria import masked
from cl_bench.core.types import Stream, Task
from cl_bench.methods.base import Method


@dataclass(frozen=True)
class Evaluation:
    """Which tasks are tested, on which images.

    when=seen   after each task: the tasks so far and the next one; before training: all but the
                first. All metrics are defined, but for FWT in class-IL with clean boundaries.
    when=final  after each task: that task; after the last one: all. ACC, BWT and LA are defined.
    when=last   all tasks after the last one. ACC alone is defined.
    when=all    all tasks after each task, and before training: every entry of the matrix

    ACC_task is measured after the last task with any of them, in class-incremental runs whose tasks
    have no class in common.

    split=val   a stratified share `holdout` of each task's training images is held out and takes
                the place of its test images, for tuning

    predictions=true  after the last task, the predicted class of each test image and its
                      probability are written, and the confusion matrices that follow
    predictions=each  they are written after each task, for the tasks that are tested then

    every       each time that this many training images were learned (repeated epochs count), the
                classes seen so far are tested, in addition (`accuracy_on_seen`). The mean of these
                accuracies is AUC, the area under their curve (Koh et al. 2022, arXiv:2110.10031)
    """

    when: Literal["seen", "final", "last", "all"]
    split: Literal["test", "val"]
    holdout: Part
    predictions: bool | Literal["each"]
    every: Count | None
    batch_size: Count

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """`holdout` with split=test, and `predictions` and `every` where they are off."""
        unused = set() if options["split"] == "val" else {"holdout"}
        return unused | {key for key in ("predictions", "every") if not options[key]}

    def columns(self, row: int, stream: Stream) -> list[int]:
        """The tasks to test after task `row`; -1 is before training."""
        tasks = len(stream.tests)
        if self.when == "all" or row == tasks - 1:
            return list(range(tasks))
        if self.when == "last":
            return []
        if self.when == "final":
            return [row] if row >= 0 else []
        if row < 0:
            return list(range(1, tasks))
        return list(range(row + 2))

    def keeps_predictions(self, row: int, tasks: int) -> bool:
        """Whether predictions are kept after task `row` of `tasks`."""
        return (self.predictions is True and row == tasks - 1) or self.predictions == "each"


def accuracies(method: Method, tests: list[Task], batch_size: int) -> list[float]:
    """The share of each test set that is classified correctly.

    Raises UserError where a parameter or a logit is not finite.
    """
    return accuracies_among(method, tests, batch_size, [None])[0]


@torch.no_grad()
def accuracies_among(
    method: Method, tests: list[Task], batch_size: int, masks: Sequence[Tensor | None]
) -> list[list[float]]:
    """For each mask, the share of each test set that is classified correctly, by one pass.

    The classes of row t of a mask (T, K) compete for the images of task t; with None they are those
    of the scenario. The device is synchronised once, at the end. Raises UserError where a parameter
    or a logit is not finite.
    """
    learner = method.learner
    counts: list[Tensor] = []
    known: dict[object, Tensor] = {}  # data-IL: tasks share a test set, which is tested once
    with learner.evaluating():
        for test in tests:
            key = id(test) if learner.heads.masked else test.storage
            if key not in known:
                known[key] = _counts(method, test, batch_size, masks)
            counts.append(known[key])
    whole = torch.cat([learner.heads.live.new_zeros(1, 1 + len(masks)).long(), *counts])
    learner.machine.processes.sum_(whole)
    whole[0] = (~learner.flat.theta.isfinite()).sum()
    (bad, *_), *found = whole.tolist()
    now = 0 if learner.task is None else learner.task.id
    if bad:
        raise diverged(f"{bad} of {learner.flat.theta.numel()} parameters are not finite", now)
    for (infinite, *_), test in zip(found, tests, strict=True):
        if infinite:
            raise diverged(f"logits of {infinite} images of task {test.id} are not finite", now)
    shares = [[n / len(test) for n in row[1:]] for row, test in zip(found, tests, strict=True)]
    return [[row[i] for row in shares] for i in range(len(masks))]


def accuracy_on_seen(method: Method, stream: Stream, now: int, batch_size: int) -> float:
    """The share of the test images of all classes seen until task `now` that is correct.

    They are those of the tasks until `now`, and of a blurry stream also the images of later test
    sets whose class has been seen already.
    """
    tests = stream.tests[: now + 1]
    more = stream.classes[: now + 1].any(0)
    more[torch.cat([test.y for test in tests])] = False  # (K,): seen, but not among these images
    if more.any():
        later = [test.rows(more[test.y].nonzero().squeeze(1)) for test in stream.tests[now + 1 :]]
        tests = [*tests, *(test for test in later if len(test))]
    found = accuracies(method, tests, batch_size)
    hits = sum(share * len(test) for share, test in zip(found, tests, strict=True))
    return hits / sum(map(len, tests))


def classes_if_task_known(method: Method, stream: Stream) -> Tensor | None:
    """(T, K): the classes that compete for the images of each task if it is known (for ACC_task).

    None where these compete in the scenario anyway, and where tasks have classes in common, as in a
    blurry stream or in data-incremental learning: there a task does not tell the class apart.
    """
    heads, classes = method.learner.heads, stream.classes
    if heads.live.equal(classes) or (classes.sum(0) > 1).any():
        return None
    return classes


def _counts(method: Method, test: Task, batch_size: int, masks: Sequence[Tensor | None]) -> Tensor:
    """(1, 1 + M): the numbers of images with a logit that is not finite, and that are classified
    correctly with each of M masks.

    Of several processes, each counts its own part of the images.
    """
    heads = method.learner.heads
    counts = torch.zeros(1, 1 + len(masks), dtype=torch.long, device=test.y.device)
    for batch, own in method.learner.machine.processes.chunks(test, batch_size):
        if not own:
            continue
        logits = method.predict(batch)
        found = [~logits.isfinite().all(-1)]
        for mask in masks:
            live = heads.competing(batch) if mask is None else mask[batch.t]
            found.append(masked(logits, live).argmax(-1) == batch.y)
        counts += torch.stack(found).sum(1)
    return counts


@torch.no_grad()
def predictions(method: Method, tests: list[Task], batch_size: int) -> dict[str, Tensor]:
    """For all images of these test sets: tested task, label, predicted class, its probability.

    The probability is that of a softmax over the classes that compete. Each value is (N,), on the
    CPU, task by task in the order of the test sets.
    """
    parts = []
    with method.learner.evaluating():
        for test in tests:
            for batch in test.chunks(batch_size):
                logits = masked(method.predict(batch), method.learner.heads.competing(batch))
                probability, predicted = logits.softmax(-1).max(-1)
                parts.append((torch.full_like(batch.y, test.id), batch.y, predicted, probability))
    names = ("task", "label", "predicted", "probability")
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return dict(zip(names, columns, strict=True))
