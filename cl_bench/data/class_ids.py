"""New ids for classes: outputs of its own for each task, or outputs that all tasks share."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.data.plan import Heads, Split

Part = tuple[Tensor, Tensor]  # x (N, C, H, W) uint8, y (N,)


def numbered(
    split: Split,
    heads: Heads,
    groups: list[list[int]],
    trains: list[Part],
    tests: list[Part],
) -> tuple[list[list[int]], list[Part], list[Part]]:
    """The class ids of each task, and its parts, by `heads` where it has something to say.

    heads=apart     class c of task t gets the id tC + c, of C classes
    heads=position  the n-th class of each task gets the id n, so that all tasks share their outputs
                    (domain-incremental learning of van de Ven et al. 2022)

    groups  the class ids of each task, in their order
    """
    if heads == "position":
        return positions_of(groups), _renumbered(trains, groups), _renumbered(tests, groups)
    if heads == "shared" or split == "class":
        return groups, trains, tests
    classes = len(groups[0])
    own = [[task * classes + c for c in range(classes)] for task in range(len(trains))]
    return own, _shifted(trains, classes), _shifted(tests, classes)


def _shifted(parts: list[Part], classes: int) -> list[Part]:
    return [(x, y + task * classes) for task, (x, y) in enumerate(parts)]


def positions_of(groups: list[list[int]]) -> list[list[int]]:
    """The class ids of each task; UserError where tasks have different numbers of classes."""
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        raise UserError(
            "dataset.heads=position: tasks share their outputs, and have from "
            f"{min(sizes)} to {max(sizes)} classes; give all the same number"
        )
    return [list(range(len(group))) for group in groups]


def _renumbered(parts: list[Part], groups: list[list[int]]) -> list[Part]:
    found = []
    for (x, y), group in zip(parts, groups, strict=True):
        place = torch.zeros(max(group) + 1, dtype=y.dtype)
        place[group] = torch.arange(len(group), dtype=y.dtype)
        found.append((x, place[y]))
    return found
