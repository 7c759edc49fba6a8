"""Cutting a data set into tasks: pure functions from labels to indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Index, Tasks
from cl_bench.base.exceptions import UserError

SEEDED = "seed:"  # of an order that NumPy draws
WAYS = "one of natural, random, superclass, uniform, or seed:<n>, or a list of class ids"
Order = (
    Literal["natural", "random", "superclass", "uniform"]
    | Annotated[str, Field(pattern=rf"^{SEEDED}\d{{1,9}}$", description=WAYS)]
    | list[Index]
)
Sizes = Tasks | Annotated[list[Count], Field(min_length=1)]  # number of tasks, or classes of each


@dataclass(frozen=True)
class TrainingLimit:
    """How many training images each task keeps: a `count`, or a `fraction` of what it has."""

    count: int | None
    fraction: float
    imbalance: float = 1.0  # named in a message alone; the long tail has been applied already

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
            tail = f" with dataset.imbalance={self.imbalance}" if self.imbalance < 1 else ""
            raise UserError(
                f"dataset.train_per_task={self.count}: a task has {there} training images{tail}; "
                f"use {there} or fewer, or null for all"
            )
        return max(round(self.fraction * there), 1) if self.fraction < 1 else self.count


def numpy_order(seed: int, classes: int) -> list[int]:
    """The class order that `numpy.random.seed(seed)` and `shuffle` give.

    With 100 classes, seed 1993 is the order of LUCIR's public code (Hou et al. 2019) and of much
    class-incremental work since. iCaRL's own code has this seed, too, but draws from it before.
    """
    return np.random.RandomState(seed).permutation(classes).tolist()


def imbalanced_counts(there: Sequence[int], imbalance: float) -> list[int]:
    """The training images of each class that a long tail keeps: n_k imbalance^(k / (K - 1)).

    The first class keeps all of its n_0 images, the last one a share `imbalance`; at least one.
    Class ids decide, as in CIFAR-100-LT (Cui et al. 2019; Cao et al. 2019, arXiv:1906.07413).
    """
    last = max(len(there) - 1, 1)
    return [max(int(count * imbalance ** (k / last)), 1) for k, count in enumerate(there)]


def long_tail(y: Tensor, classes: int, imbalance: float, rng: Generator) -> Tensor:
    """Sorted indices of the samples that a long tail keeps (`imbalanced_counts`), at random."""
    counts = imbalanced_counts(y.bincount(minlength=classes).tolist(), imbalance)
    return (_rank_within_class(y, rng) < torch.tensor(counts)[y]).nonzero().squeeze(1)


def by_class(y: Tensor, groups: list[list[int]]) -> list[Tensor]:
    """The indices of the samples of each group of classes, in the order of the source."""
    return [torch.isin(y, torch.tensor(group)).nonzero().squeeze(1) for group in groups]


def class_groups(
    order: list[int], tasks: int | list[int], owners: tuple[int, ...] | None = None
) -> list[list[int]]:
    """Cut the class order into groups: of the given sizes, or T that differ by at most one.

    Of the T groups the larger ones come first. Where the classes belong to exactly T superclasses
    (`owners`), each of these is a group.
    """
    if isinstance(tasks, list):
        return [part.tolist() for part in torch.tensor(order).split(tasks)]
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
