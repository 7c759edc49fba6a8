"""The order of the tasks: one of HALRP's five (Li et al. 2024), random, or a list."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.core.types import Stream, Task

PUBLISHED = {  # by number of tasks; order A, in all cases, is 0, 1, 2, ...
    10: {
        "B": [1, 7, 4, 5, 2, 0, 8, 6, 9, 3],
        "C": [7, 0, 5, 1, 8, 4, 3, 6, 2, 9],
        "D": [5, 8, 2, 9, 0, 4, 3, 7, 6, 1],
        "E": [2, 9, 5, 4, 8, 0, 6, 1, 3, 7],
    },
    20: {
        "B": [15, 12, 5, 9, 7, 16, 18, 17, 1, 0, 3, 8, 11, 14, 10, 6, 2, 4, 13, 19],
        "C": [17, 1, 19, 18, 12, 7, 6, 0, 11, 15, 10, 5, 13, 3, 9, 16, 4, 14, 2, 8],
        "D": [11, 9, 6, 5, 12, 4, 0, 10, 13, 7, 14, 3, 15, 16, 8, 1, 2, 19, 18, 17],
        "E": [6, 14, 0, 11, 12, 17, 13, 4, 9, 1, 7, 19, 8, 10, 3, 15, 18, 5, 2, 16],
    },
}


def task_order(order: str | list[int], tasks: int) -> list[int]:
    """The task ids in the order that `scenario.order` names.

    order  A: 0, 1, 2, ...; B to E: HALRP's, for 10 or 20 tasks; seed:<n>: random; or a list

    Raises UserError for any other.
    """
    if isinstance(order, list):
        if sorted(order) != list(range(tasks)):
            raise UserError(f"scenario.order={order}: not each of the tasks 0 to {tasks - 1} once")
        return order
    if order == "A":
        return list(range(tasks))
    kind, _, seed = order.partition(":")
    if kind == "seed" and seed.isdecimal() and len(seed) < 18:
        return torch.randperm(tasks, generator=Generator().manual_seed(int(seed))).tolist()
    known = PUBLISHED.get(tasks, {})
    if order not in known:
        there = ["A", *known, "seed:<n>"]
        raise UserError(
            f"scenario.order={order}: of {tasks} tasks there are {', '.join(there)}, or a list "
            f"such as [{', '.join(map(str, reversed(range(tasks))))}]"
        )
    return known[order]


def reorder_tasks(stream: Stream, order: str | list[int]) -> Stream:
    """The stream with its tasks in another order, renumbered from 0.

    `task_identities` of its description keeps the original numbers.
    """
    chosen = task_order(order, len(stream.tests))
    return replace(
        stream,
        tasks=[renumbered(stream.tasks[i], n) for n, i in enumerate(chosen)],
        tests=[renumbered(stream.tests[i], n) for n, i in enumerate(chosen)],
        classes=stream.classes[chosen],
        description=description_of(stream, chosen),
    )


def description_of(stream: Stream, places: Iterable[int]) -> dict[str, Any]:
    """The stream's description, with only the entries at `places` in its lists per task."""
    description, chosen = dict(stream.description), list(places)
    for key in [k for k in description if k.endswith("_of_task") or k == "task_identities"]:
        if isinstance(listed := description.get(key), list):
            description[key] = [listed[i] for i in chosen]
    return description


def renumbered(task: Task, number: int) -> Task:
    """The task with another id, which all of its samples get."""
    return Task(number, task.x, task.y, torch.full_like(task.t, number))
