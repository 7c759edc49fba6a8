"""The classes and the number of images of each task, computed from counts alone.

`check` calls these functions before a data set is read, with its published counts, and
`stream.build` calls them with the counts of the images read. Both refuse with the same message.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Scenario
from cl_bench.data.published import Contents
from cl_bench.data.split import (
    SEEDED,
    Order,
    TrainingLimit,
    class_groups,
    imbalanced_counts,
    numpy_order,
)

Split = Literal["class", "sample", "permutation", "rotation"]
Heads = Literal["shared", "apart", "position"]


def classes_of_tasks(
    contents: Contents, split: Split, tasks: int | list[int], order: Order, rng: Generator
) -> list[list[int]] | None:
    """The classes of each task: some of them with split=class, else all; None where not known.

    tasks  the number of tasks, or with split=class the number of classes of each one

    Raises UserError where the data set does not have enough classes, or no superclasses.
    """
    if isinstance(tasks, list) and split != "class":
        raise UserError(
            f"dataset.tasks={tasks}: only classes are cut unevenly, and dataset.split={split}; use "
            "a number"
        )
    if contents.classes == 1:
        raise UserError(
            f"dataset.source: {contents.name} has a single class, which leaves nothing to tell "
            "apart; use a data set of two or more"
        )
    if split == "class" and order == "superclass" and contents.groups is None:
        raise UserError(
            f"dataset.order=superclass: {contents.name} has no superclasses; use natural, random"
        )
    if contents.classes is None:
        return None
    if not isinstance(tasks, list) and split != "class":
        return [list(range(contents.classes))] * tasks
    owners = contents.groups if order == "superclass" else None
    return class_groups(_class_order(contents, contents.classes, tasks, order, rng), tasks, owners)


def _class_order(
    contents: Contents, classes: int, tasks: int | list[int], order: Order, rng: Generator
) -> list[int]:
    """The class ids in the order `order`: by id, random, by superclass, or as they are listed."""
    whole = sum(tasks) == classes if isinstance(tasks, list) else tasks <= classes
    if not whole:
        there = f"dataset.tasks={tasks}: {contents.name} has {classes} classes"
        if isinstance(tasks, list):
            raise UserError(f"{there}, and these numbers add up to {sum(tasks)}")
        raise UserError(f"{there}; use {max(classes // 2, 1)} or fewer, so that each task has two")
    if isinstance(order, list):
        if sorted(order) != list(range(classes)):
            raise UserError(
                f"dataset.order={order}: not each of the classes 0 to {classes - 1} of "
                f"{contents.name} once"
            )
        return order
    if order.startswith(SEEDED):
        return numpy_order(int(order.removeprefix(SEEDED)), classes)
    if order == "random":
        return torch.randperm(classes, generator=rng).tolist()
    groups = contents.groups
    if order == "superclass" and groups is not None:
        return sorted(range(classes), key=lambda c: groups[c])
    return list(range(classes))


def number_of(tasks: int | list[int]) -> int:
    """The number of tasks that `dataset.tasks` means."""
    return len(tasks) if isinstance(tasks, list) else tasks


def with_imbalance(contents: Contents, imbalance: float) -> Contents:
    """The contents after the classes have got a long tail."""
    if contents.train is None or imbalance == 1:
        return contents
    return replace(contents, train=tuple(imbalanced_counts(contents.train, imbalance)))


def membership(groups: list[list[int]], scenario: Scenario) -> Tensor:
    """(T, K) bool: the classes of each task.

    Raises UserError where only one class would compete for the samples of a task.
    """
    classes = len({c for group in groups for c in group})
    member = torch.zeros(len(groups), classes, dtype=torch.bool)
    for task, group in enumerate(groups):
        member[task, group] = True
    if scenario(member, len(groups) - 1).sum(1).min() < 2:
        limit = classes // 2
        fewer = f"dataset.tasks={limit}" + (" or fewer" if limit > 1 else "")
        advice = fewer if len(groups) > limit else "another dataset.order"
        raise UserError(
            f"dataset.tasks={len(groups)}: in this scenario a task of one class leaves nothing "
            f"to tell apart; use {advice}, or scenario=class or data"
        )
    return member


def task_sizes(contents: Contents, split: Split, groups: list[list[int]]) -> list[int] | None:
    """The number of training images of each task before `TrainingLimit`; None where not known."""
    tasks, total = len(groups), contents.images
    if split == "class":
        counts = contents.train
        return None if counts is None else [sum(counts[c] for c in group) for group in groups]
    if total is None or split != "sample":
        return None if total is None else [total] * tasks
    if tasks > total:
        raise UserError(f"dataset.tasks={tasks}: {contents.name} has {total} training images")
    return [total // tasks + (task < total % tasks) for task in range(tasks)]


def limited_sizes(
    contents: Contents, limit: TrainingLimit, sizes: list[int] | None
) -> list[int] | None:
    """The number of training images of each task after `limit`; None where not known.

    sizes  the numbers before the limit; None where not known

    Raises UserError where more are asked for than a task has, or than the data set has.
    """
    limit.require_single()
    if sizes is not None:
        return [limit.count_of(count) or count for count in sizes]
    if contents.images is not None:
        limit.count_of(contents.images)
    return None if limit.count is None else [limit.count]


def holdout_size(task: int, images: int, holdout: float, key: str = "evaluation.holdout") -> int:
    """How many training images of a task are held out to test on, a share `holdout`, named `key`.

    Raises UserError where it would be none or all of them.
    """
    count = round(images * holdout)
    if not 0 < count < images:
        raise UserError(
            f"{key}={holdout}: {count} of {images} training images of task "
            f"{task} would be held out; at least one must be, and one must stay"
        )
    return count
