"""Builds the stream of tasks from a source, a split and a scenario, and variants of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Fraction, Seed, Text
from cl_bench.core.types import Scenario, Stream, Task, Transform
from cl_bench.data import plan
from cl_bench.data import split as cut
from cl_bench.data.augment import rotate
from cl_bench.data.class_ids import Part, numbered
from cl_bench.data.orders import description_of
from cl_bench.data.plan import Heads, Split
from cl_bench.data.published import contents_of
from cl_bench.data.source import Source
from cl_bench.data.split import Order, Sizes


def build(
    name: Text,
    source: Source,
    split: Split,
    heads: Heads,
    tasks: Sizes,
    order: Order,
    train_per_task: Count | None,
    fraction: Fraction,
    imbalance: Fraction,
    seed: Seed,
    transform: Callable[..., Transform],
    scenario: Scenario,
    device: torch.device,
) -> Stream:
    """Cut the source into `tasks` tasks on `device`; `seed` alone decides all random draws.

    split=class        each task has classes of its own, in the order `order`; `tasks` may list how
                       many each task has
    split=sample       each task has a stratified share of all classes; one test set for all tasks
    split=permutation  each task has all images, with its own fixed permutation of the pixels
    split=rotation     each task has all images, rotated by its own angle (`split.angles`)
    With the last three, heads=apart makes class c of task t a class of its own, with id tC + c.
    With split=class, heads=position gives the n-th class of each task the id n (`numbered`).
    Each task keeps `train_per_task` of its training images, or a part `fraction` of them, drawn at
    random with permutation and rotation (as in GEM), and stratified by class otherwise. With
    `imbalance` below 1, the training images have a long tail first (`split.imbalanced_counts`).
    """
    rng = Generator().manual_seed(seed)
    source = _with_long_tail(source, imbalance, seed)
    limit = cut.TrainingLimit(train_per_task, fraction, imbalance)
    angles = cut.angles(plan.number_of(tasks), order, rng) if split == "rotation" else None
    groups = _groups(source, split, tasks, order, limit, rng)
    trains, tests = _cut(source, split, groups, limit, rng, angles)
    own = groups if split == "class" and heads != "position" else None
    groups, trains, tests = numbered(split, heads, groups, trains, tests)
    member = plan.membership(groups, scenario)
    placed = _make_tasks(trains, device), _make_tasks(tests, device), member.to(device)
    description = _description(name, source, member, own, angles)
    return Stream(*placed, scenario, transform(device=device), description)


def _groups(
    source: Source,
    split: Split,
    tasks: int | list[int],
    order: Order,
    limit: cut.TrainingLimit,
    rng: Generator,
) -> list[list[int]]:
    """The classes of each task; raises UserError where the source has too few classes or images."""
    contents = contents_of(source)
    groups = plan.classes_of_tasks(contents, split, tasks, order, rng)
    assert groups is not None  # the classes of a source that was read are known
    plan.limited_sizes(contents, limit, plan.task_sizes(contents, split, groups))
    return groups


def _with_long_tail(source: Source, imbalance: float, seed: int) -> Source:
    """The source with fewer training images of later classes; its own draws, from `seed`."""
    if imbalance == 1:
        return source
    rng = Generator().manual_seed(seed)
    kept = cut.long_tail(source.train_y, len(source.classes), imbalance, rng)
    return replace(source, train_x=source.train_x[kept], train_y=source.train_y[kept])


def _description(
    name: str,
    source: Source,
    member: Tensor,
    own: list[list[int]] | None,
    angles: list[float] | None,
) -> dict[str, Any]:
    """The description of a stream for the record; `member` (T, K) has the classes of each task.

    own  the class ids of each task where no other task has them
    """
    tasks, classes = member.shape
    return {
        "dataset": name,
        "classes_of_task": own,
        "class_names": _class_names(source.classes, classes),
        "task_identities": list(range(tasks)),
        "angles_of_task": angles,
        "sha256": source.sha256,
        "provenance": source.provenance,
    }


def _class_names(names: tuple[str, ...], classes: int) -> list[str]:
    """The name of each of K classes; with heads=apart, each task has the source's classes again."""
    if classes == len(names):
        return list(names)
    if classes < len(names):  # heads=position
        return [f"class {c} of its task" for c in range(classes)]
    return [f"{names[c % len(names)]} (task {c // len(names)})" for c in range(classes)]


def _cut(
    source: Source,
    split: Split,
    groups: list[list[int]],
    limit: cut.TrainingLimit,
    rng: Generator,
    angles: list[float] | None,
) -> tuple[list[Part], list[Part]]:
    """The training and test images of each task."""
    if angles is not None:
        changes = [partial(rotate, degrees=angle) for angle in angles]
        return _transformed(source, iter(changes), limit, rng)
    if split == "permutation":
        pixels = source.train_x[0].numel()
        orders = (torch.randperm(pixels, generator=rng) for _ in groups)
        return _transformed(
            source, (partial(_permute_pixels, pixels=o) for o in orders), limit, rng
        )
    if split == "class":
        trains = _parts(source.train_x, source.train_y, cut.by_class(source.train_y, groups))
        tests = _parts(source.test_x, source.test_y, cut.by_class(source.test_y, groups))
    else:
        shares = cut.by_sample(source.train_y, len(groups), rng)
        trains = _parts(source.train_x, source.train_y, shares)
        tests = [(source.test_x, source.test_y)] * len(groups)
    return [_subsample(part, limit, rng) for part in trains], tests


def sequential(stream: Stream, first: Count | None) -> Stream:
    """The tasks one after the other; with `first`, only that many, from the first on."""
    if first is None or first == len(stream.tests):
        return stream
    parts = {name: getattr(stream, name)[:first] for name in ("tasks", "tests", "classes")}
    return replace(stream, **parts, description=description_of(stream, range(first)))


def joint(stream: Stream, first: Count | None) -> Stream:
    """One task with the data of all tasks: joint training, the usual upper bound."""
    stream = sequential(stream, first)
    return replace(stream, tasks=[joined(stream.tasks)])


def joined(tasks: list[Task], in_parts: bool = False) -> Task:
    """All tasks as one, with the id of the last; `in_parts`, they are learned in their order."""
    x, y, t = (torch.cat([getattr(task, f) for task in tasks]) for f in ("x", "y", "t"))
    return Task(tasks[-1].id, x, y, t, tuple(map(len, tasks)) if in_parts else ())


def validation(stream: Stream, fraction: float, seed: int) -> Stream:
    """The stream with a stratified part of each task's training data as its test data."""
    kept, held = _apart(stream, fraction, seed, "evaluation.holdout")
    return replace(stream, tasks=kept, tests=held)


def with_held_out(stream: Stream, fraction: float, seed: int) -> Stream:
    """The stream with a stratified part of each task's training data as `held_out`."""
    kept, held = _apart(stream, fraction, seed, "schedule.holdout")
    return replace(stream, tasks=kept, held_out=held)


def _apart(stream: Stream, fraction: float, seed: int, key: str) -> tuple[list[Task], list[Task]]:
    """Each task's training data in two parts, of which the second has a share `fraction`."""
    rng = Generator().manual_seed(seed)
    kept, held = [], []
    for task in stream.tasks:
        labels = task.y.cpu()
        count = plan.holdout_size(task.id, len(task), fraction, key)
        out = torch.zeros(len(task), dtype=torch.bool)
        out[cut.stratified(labels, count, rng)] = True
        held.append(task.rows(out.nonzero().squeeze(1)))
        kept.append(task.rows((~out).nonzero().squeeze(1)))
    return kept, held


def _parts(x: Tensor, y: Tensor, shares: list[Tensor]) -> list[Part]:
    return [(x[index], y[index]) for index in shares]


def _subsample(part: Part, limit: cut.TrainingLimit, rng: Generator) -> Part:
    x, y = part
    count = limit.count_of(len(y))
    if count is None or count == len(y):
        return part
    index = cut.stratified(y, count, rng)
    return x[index], y[index]


def _transformed(
    source: Source,
    changes: Iterator[Callable[[Tensor], Tensor]],
    limit: cut.TrainingLimit,
    rng: Generator,
) -> tuple[list[Part], list[Part]]:
    """For each change, a task: a random training subset and all test images, both changed."""
    total, trains, tests = len(source.train_y), [], []
    count = limit.count_of(total)
    for change in changes:
        index = cut.random_subset(total, total if count is None else count, rng)
        trains.append((change(source.train_x[index]), source.train_y[index]))
        tests.append((change(source.test_x), source.test_y))
    return trains, tests


def _permute_pixels(x: Tensor, pixels: Tensor) -> Tensor:
    return x.flatten(1)[:, pixels].view_as(x)


def _make_tasks(parts: list[Part], device: torch.device) -> list[Task]:
    """Tasks on the device; tensors that several parts share are copied once."""
    placed = {id(part): part.to(device) for pair in parts for part in pair}
    return [
        Task(number, placed[id(x)], placed[id(y)], torch.full_like(placed[id(y)], number))
        for number, (x, y) in enumerate(parts)
    ]
