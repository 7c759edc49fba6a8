"""Which tasks are tested after each task, and the accuracies on their test sets."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
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


@torch.no_grad()
def accuracies(
    method: Method, tests: list[Task], batch_size: int, competing: Tensor | None = None
) -> list[float]:
    """The share of each test set that is classified correctly.

    The classes of row t of `competing` (T, K) compete for the images of task t; without it, they
    are those of the scenario. The device is synchronised once, at the end. Raises UserError where a
    parameter or a logit is not finite.
    """
    learner = method.learner
    apart = competing is not None or learner.heads.masked
    counts: list[Tensor] = []
    known: dict[object, Tensor] = {}  # data-IL: tasks share a test set, which is tested once
    with learner.evaluating():
        for test in tests:
            key = id(test) if apart else test.storage
            if key not in known:
                known[key] = _counts(method, test, batch_size, competing)
            counts.append(known[key])
    whole = torch.stack(counts) if counts else learner.heads.live.new_zeros(0, 2).long()
    learner.machine.processes.sum_(whole)
    bad = (~learner.flat.theta.isfinite()).sum()
    *found, (bad, _) = torch.cat([whole, torch.stack([bad, bad]).unsqueeze(0)]).tolist()
    now = 0 if learner.task is None else learner.task.id
    if bad:
        raise diverged(f"{bad} of {learner.flat.theta.numel()} parameters are not finite", now)
    for (_, infinite), test in zip(found, tests, strict=True):
        if infinite:
            raise diverged(f"logits of {infinite} images of task {test.id} are not finite", now)
    return [hits / len(test) for (hits, _), test in zip(found, tests, strict=True)]


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


def accuracy_with_known_task(method: Method, stream: Stream, batch_size: int) -> float | None:
    """ACC_task: the mean accuracy on all tasks where only the classes of its task compete for an
    image, or None where that is so in the scenario anyway, or where a task has all classes.

    Of a class-incremental run it is what DER's paper (Buzzega et al. 2020) calls Task-IL.
    """
    heads, classes = method.learner.heads, stream.classes
    if not heads.masked or heads.live.equal(classes):
        return None
    return mean(accuracies(method, stream.tests, batch_size, classes))


def _counts(method: Method, test: Task, batch_size: int, competing: Tensor | None) -> Tensor:
    """(2,): the numbers of images classified correctly, and with a logit that is not finite.

    Of several processes, each counts its own part of the images.
    """
    counts, heads = torch.zeros(2, dtype=torch.long, device=test.y.device), method.learner.heads
    for batch, own in method.learner.machine.processes.chunks(test, batch_size):
        if not own:
            continue
        logits = method.predict(batch)
        bad = ~logits.isfinite().all(-1)
        live = heads.competing(batch) if competing is None else competing[batch.t]
        hits = masked(logits, live).argmax(-1) == batch.y
        counts += torch.stack([hits.sum(), bad.sum()])
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
