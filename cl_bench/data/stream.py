"""Source + split + scenario -> Stream; and the streams made from a stream: joint, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Fraction, Seed, Tasks, Text
from cl_bench.core.types import Scenario, Stream, Task, Transform
from cl_bench.data import plan
from cl_bench.data import split as cut
from cl_bench.data.augment import turned
from cl_bench.data.orders import description_of
from cl_bench.data.plan import Heads, Split
from cl_bench.data.published import measured
from cl_bench.data.source import Source
from cl_bench.data.split import Order

Part = tuple[Tensor, Tensor]  # x (N, C, H, W) uint8, y (N,)


def build(
    name: Text,
    source: Source,
    split: Split,
    heads: Heads,
    tasks: Tasks,
    order: Order,
    train_per_task: Count | None,
    fraction: Fraction,
    seed: Seed,
    transform: Callable[..., Transform],
    scenario: Scenario,
    device: torch.device,
) -> Stream:
    """Cut the source into `tasks` tasks on `device`; all randomness from `seed`, none of it later.

    split=class        each task its own classes, in the given order
    split=sample       each task a stratified share of all classes; one test set for all
    split=permutation  each task all classes under its own fixed order of the pixels
    split=rotation     each task all classes, turned by its own angle (`split.angles`)
    Under the last three heads=apart gives each task classes of its own: c of task t is tC + c.
    `train_per_task` keeps that many of a task's training images, `fraction` such a part: at random
    under `permutation` and `rotation` (as GEM draws them), stratified otherwise.
    """
    rng = Generator().manual_seed(seed)
    keep = cut.Keep(train_per_task, fraction)
    angles = cut.angles(tasks, order, rng) if split == "rotation" else None
    groups = _groups(source, split, tasks, order, keep, rng)
    trains, tests = _cut(source, split, groups, keep, rng, angles)
    if split != "class" and heads == "apart":
        groups, trains, tests = _apart(len(source.classes), trains, tests)
    member = plan.membership(groups, scenario)
    return Stream(
        tasks=_tasks(trains, device),
        tests=_tasks(tests, device),
        classes=member.to(device),
        scenario=scenario,
        transform=transform(device=device),
        description=_description(name, source, groups if split == "class" else None, tasks, angles),
    )


def _groups(
    source: Source, split: Split, tasks: int, order: Order, keep: cut.Keep, rng: Generator
) -> list[list[int]]:
    """The classes of each task; UserError where the source has too few classes or images."""
    contents = measured(source)
    groups = plan.groups_of(contents, split, tasks, order, rng)
    assert groups is not None  # of a source that was read they are known
    plan.kept(contents, keep, plan.sizes(contents, split, groups))
    return groups


def _description(
    name: str,
    source: Source,
    classes: list[list[int]] | None,
    tasks: int,
    angles: list[float] | None,
) -> dict[str, Any]:
    """What the record says of a stream."""
    return {
        "dataset": name,
        "classes_of_task": classes,
        "task_identities": list(range(tasks)),
        "angles_of_task": angles,
        "sha256": source.sha256,
        "provenance": source.provenance,
    }


def _cut(
    source: Source,
    split: Split,
    groups: list[list[int]],
    keep: cut.Keep,
    rng: Generator,
    angles: list[float] | None,
) -> tuple[list[Part], list[Part]]:
    """Training and test part of each task."""
    if angles is not None:
        changes = [partial(turned, degrees=angle) for angle in angles]
        return _changed(source, iter(changes), keep, rng)
    if split == "permutation":
        pixels = source.train_x[0].numel()
        orders = (torch.randperm(pixels, generator=rng) for _ in groups)
        return _changed(source, (partial(_scrambled, pixels=o) for o in orders), keep, rng)
    if split == "class":
        trains = _parts(source.train_x, source.train_y, cut.by_class(source.train_y, groups))
        tests = _parts(source.test_x, source.test_y, cut.by_class(source.test_y, groups))
    else:
        shares = cut.by_sample(source.train_y, len(groups), rng)
        trains = _parts(source.train_x, source.train_y, shares)
        tests = [(source.test_x, source.test_y)] * len(groups)
    return [_limited(part, keep, rng) for part in trains], tests


def _apart(
    classes: int, trains: list[Part], tests: list[Part]
) -> tuple[list[list[int]], list[Part], list[Part]]:
    """Each task's own classes, where all had the same, and the relabelled parts."""
    groups = [[task * classes + c for c in range(classes)] for task in range(len(trains))]
    return groups, _shifted(trains, classes), _shifted(tests, classes)


def _shifted(parts: list[Part], classes: int) -> list[Part]:
    return [(x, y + task * classes) for task, (x, y) in enumerate(parts)]


def sequential(stream: Stream, first: Count | None) -> Stream:
    """One task after the other: all of them, or the first so many."""
    if first is None or first == len(stream.tests):
        return stream
    parts = {name: getattr(stream, name)[:first] for name in ("tasks", "tests", "classes")}
    return replace(stream, **parts, description=description_of(stream, range(first)))


def joint(stream: Stream, first: Count | None) -> Stream:
    """All tasks at once, as the last one: the upper bound that no order can beat."""
    stream = sequential(stream, first)
    last = stream.tasks[-1].id
    x, y, t = (torch.cat([getattr(task, f) for task in stream.tasks]) for f in ("x", "y", "t"))
    return replace(stream, tasks=[Task(last, x, y, t)])


def validation(stream: Stream, fraction: float, seed: int) -> Stream:
    """A stratified part of each task's training data in place of its test data."""
    rng = Generator().manual_seed(seed)
    kept, held = [], []
    for task in stream.tasks:
        labels = task.y.cpu()
        count = plan.held_out(task.id, len(task), fraction)
        out = torch.zeros(len(task), dtype=torch.bool)
        out[cut.stratified(labels, count, rng)] = True
        held.append(_rows(task, out))
        kept.append(_rows(task, ~out))
    return replace(stream, tasks=kept, tests=held)


def _rows(task: Task, keep: Tensor) -> Task:
    index = keep.nonzero().squeeze(1).to(task.y.device)
    return Task(task.id, task.x[index], task.y[index], task.t[index])


def _parts(x: Tensor, y: Tensor, shares: list[Tensor]) -> list[Part]:
    return [(x[index], y[index]) for index in shares]


def _limited(part: Part, keep: cut.Keep, rng: Generator) -> Part:
    x, y = part
    count = keep.of(len(y))
    if count is None or count == len(y):
        return part
    index = cut.stratified(y, count, rng)
    return x[index], y[index]


def _changed(
    source: Source,
    changes: Iterator[Callable[[Tensor], Tensor]],
    keep: cut.Keep,
    rng: Generator,
) -> tuple[list[Part], list[Part]]:
    """Each task: a random subset for training, all test images, both changed in one way."""
    total, trains, tests = len(source.train_y), [], []
    count = keep.of(total)
    for change in changes:
        index = cut.random_subset(total, total if count is None else count, rng)
        trains.append((change(source.train_x[index]), source.train_y[index]))
        tests.append((change(source.test_x), source.test_y))
    return trains, tests


def _scrambled(x: Tensor, pixels: Tensor) -> Tensor:
    return x.flatten(1)[:, pixels].view_as(x)


def _tasks(parts: list[Part], device: torch.device) -> list[Task]:
    """On the device; parts that share memory share it there too."""
    placed = {id(part): part.to(device) for pair in parts for part in pair}
    return [
        Task(number, placed[id(x)], placed[id(y)], torch.full_like(placed[id(y)], number))
        for number, (x, y) in enumerate(parts)
    ]
