"""Cutting a data set into tasks: pure functions from labels to indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError

Order = Literal["natural", "random", "superclass", "uniform"]


@dataclass(frozen=True)
class TrainingLimit:
    """How many training images each task keeps: a `count`, or a `fraction` of what it has."""

    count: int | None
    fraction: float

    def require_single(self) -> None:
        """Raise UserError where both are given."""
        if self.count is not None and self.fraction < 1:
            raise UserError(
                f"dataset.fraction={self.fraction}: dataset.train_per_task={self.count} says how "
                "many already; one of the two"
            )

    def count_of(self, there: int) -> int | None:
        """How many of `there` images are kept; None: all. UserError where there are too few."""
        self.require_single()
        if self.count is not None and self.count > there:
            raise UserError(
                f"dataset.train_per_task={self.count}: a task has {there} training images"
            )
        return max(round(self.fraction * there), 1) if self.fraction < 1 else self.count


def by_class(y: Tensor, groups: list[list[int]]) -> list[Tensor]:
    """The indices of the samples of each group of classes, in the order of the source."""
    return [torch.isin(y, torch.tensor(group)).nonzero().squeeze(1) for group in groups]


def class_groups(
    order: list[int], tasks: int, owners: tuple[int, ...] | None = None
) -> list[list[int]]:
    """Cut the class order into T groups whose sizes differ by at most one, larger ones first.

    Where the classes belong to exactly T superclasses (`owners`), each of these is a group.
    """
    if owners is not None and len(set(owners)) == tasks:
        return [[c for c in order if owners[c] == owner] for owner in sorted(set(owners))]
    return [part.tolist() for part in torch.tensor(order).tensor_split(tasks)]


def by_sample(y: Tensor, tasks: int, rng: Generator) -> list[Tensor]:
    """A stratified partition into T tasks, as indices.

    Each class is divided evenly; what remains of a class goes to tasks in turn.
    """
    rank = _rank_within_class(y, rng)
    offset = torch.cat([torch.zeros(1, dtype=torch.long), y.bincount().cumsum(0)])[y]
    owner = (rank + offset) % tasks
    return [(owner == task).nonzero().squeeze(1) for task in range(tasks)]


def stratified(y: Tensor, count: int, rng: Generator) -> Tensor:
    """Sorted indices of `count` samples, with each class in proportion to within one sample."""
    sizes = y.bincount()
    share = sizes * count / max(len(y), 1)
    take = share.floor().long()
    short = count - int(take.sum())
    if short:
        take[(share - take).topk(short).indices] += 1
    return (_rank_within_class(y, rng) < take[y]).nonzero().squeeze(1)


def random_subset(total: int, count: int, rng: Generator) -> Tensor:
    """`count` of `total` indices, drawn without replacement."""
    return torch.randperm(total, generator=rng)[:count]


def angles(tasks: int, order: Order, rng: Generator) -> list[float]:
    """The rotation of each task, in degrees.

    order=natural  one angle from each of T equal parts of [0, 180), increasing (GEM)
    order=random   the same in random order
    order=uniform  each angle from [0, 180) (DER)
    """
    if order == "uniform":
        return (180 * torch.rand(tasks, generator=rng, dtype=torch.float64)).tolist()
    start = torch.arange(tasks)
    if order == "random":
        start = torch.randperm(tasks, generator=rng)
    draws = torch.rand(tasks, generator=rng, dtype=torch.float64)
    return ((start + draws) * (180 / tasks)).tolist()


def _rank_within_class(y: Tensor, rng: Generator) -> Tensor:
    """(N,): the rank of each sample in a random order of the samples of its class."""
    shuffled = torch.randperm(len(y), generator=rng)
    by_label = shuffled[y[shuffled].argsort(stable=True)]
    starts = y.bincount().cumsum(0) - y.bincount()
    rank = torch.empty_like(y)
    rank[by_label] = torch.arange(len(y)) - starts[y[by_label]]
    return rank
