"""Which classes and how many images each task has, worked out from counts alone.

`check` asks before a data set is read, from what is known of it; `stream.build` asks again of what
was read. Whatever is refused has the same words in both.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Scenario
from cl_bench.data.published import Contents
from cl_bench.data.split import Keep, Order, class_groups

Split = Literal["class", "sample", "permutation", "rotation"]
Heads = Literal["shared", "apart"]


def groups_of(
    contents: Contents, split: Split, tasks: int, order: Order, rng: Generator
) -> list[list[int]] | None:
    """The classes of each task: their own, or all of them; None where they are not known.

    UserError where the data set does not have them.
    """
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
    if split != "class":
        return [list(range(contents.classes))] * tasks
    owners = contents.groups if order == "superclass" else None
    return class_groups(_class_order(contents, contents.classes, tasks, order, rng), tasks, owners)


def _class_order(
    contents: Contents, classes: int, tasks: int, order: Order, rng: Generator
) -> list[int]:
    """The classes as they come: by id, shuffled by `rng`, or coarse class by coarse class."""
    if tasks > classes:
        raise UserError(f"dataset.tasks={tasks}: {contents.name} has {classes} classes")
    if order == "random":
        return torch.randperm(classes, generator=rng).tolist()
    groups = contents.groups
    if order == "superclass" and groups is not None:
        return sorted(range(classes), key=lambda c: groups[c])
    return list(range(classes))


def membership(groups: list[list[int]], scenario: Scenario) -> Tensor:
    """(T, K) bool: the classes of each task; UserError where one class would stand alone."""
    classes = len({c for group in groups for c in group})
    member = torch.zeros(len(groups), classes, dtype=torch.bool)
    for task, group in enumerate(groups):
        member[task, group] = True
    if scenario(member, len(groups) - 1).sum(1).min() < 2:
        most = classes // 2
        fewer = f"dataset.tasks={most}" + (" or fewer" if most > 1 else "")
        advice = fewer if len(groups) > most else "another dataset.order"
        raise UserError(
            f"dataset.tasks={len(groups)}: in this scenario a task of one class leaves nothing "
            f"to tell apart; use {advice}, or scenario=class or data"
        )
    return member


def sizes(contents: Contents, split: Split, groups: list[list[int]]) -> list[int] | None:
    """The training images of each task before some are left out; None where they are unknown."""
    tasks, total = len(groups), contents.images
    if split == "class":
        counts = contents.train
        return None if counts is None else [sum(counts[c] for c in group) for group in groups]
    if total is None or split != "sample":
        return None if total is None else [total] * tasks
    if tasks > total:
        raise UserError(f"dataset.tasks={tasks}: {contents.name} has {total} training images")
    return [total // tasks + (task < total % tasks) for task in range(tasks)]


def kept(contents: Contents, keep: Keep, there: list[int] | None) -> list[int] | None:
    """The training images of each task; None where they are unknown.

    UserError where more are asked for than a task has, or than all have together.
    """
    keep.require_one()
    if there is not None:
        return [keep.of(count) or count for count in there]
    if contents.images is not None:
        keep.of(contents.images)
    return None if keep.count is None else [keep.count]


def held_out(task: int, images: int, holdout: float) -> int:
    """How many of a task's training images are tested on; UserError where none or all would be."""
    count = round(images * holdout)
    if not 0 < count < images:
        raise UserError(
            f"evaluation.holdout={holdout}: {count} of {images} training images of task "
            f"{task} would be held out; at least one must be, and one must stay"
        )
    return count
