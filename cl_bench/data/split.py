"""How a source is cut into tasks: pure functions from labels to index sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError

Order = Literal["natural", "random", "superclass", "uniform"]


@dataclass(frozen=True)
class Keep:
    """How many training images of a task are kept."""

    count: int | None
    fraction: float

    def require_one(self) -> None:
        """UserError where both say how many."""
        if self.count is not None and self.fraction < 1:
            raise UserError(
                f"dataset.fraction={self.fraction}: dataset.train_per_task={self.count} says how "
                "many already; one of the two"
            )

    def of(self, there: int) -> int | None:
        """How many of those that are there; None: all of them."""
        self.require_one()
        if self.count is not None and self.count > there:
            raise UserError(
                f"dataset.train_per_task={self.count}: a task has {there} training images"
            )
        return max(round(self.fraction * there), 1) if self.fraction < 1 else self.count


def by_class(y: Tensor, groups: list[list[int]]) -> list[Tensor]:
    """The samples of each group of classes, in the source's order: T index sets."""
    return [torch.isin(y, torch.tensor(group)).nonzero().squeeze(1) for group in groups]


def class_groups(
    order: list[int], tasks: int, owners: tuple[int, ...] | None = None
) -> list[list[int]]:
    """The class order cut into T runs whose lengths differ by one at most, longer ones first.

    Where the classes have T owners and come by them, into what each owner has.
    """
    if owners is not None and len(set(owners)) == tasks:
        return [[c for c in order if owners[c] == owner] for owner in sorted(set(owners))]
    return [part.tolist() for part in torch.tensor(order).tensor_split(tasks)]


def by_sample(y: Tensor, tasks: int, rng: Generator) -> list[Tensor]:
    """A stratified partition: each class dealt out evenly, which task gets the rest by turns."""
    rank = _rank_within_class(y, rng)
    offset = torch.cat([torch.zeros(1, dtype=torch.long), y.bincount().cumsum(0)])[y]
    owner = (rank + offset) % tasks
    return [(owner == task).nonzero().squeeze(1) for task in range(tasks)]


def stratified(y: Tensor, count: int, rng: Generator) -> Tensor:
    """`count` of the samples, every class at its share to within one: sorted indices."""
    sizes = y.bincount()
    share = sizes * count / max(len(y), 1)
    take = share.floor().long()
    short = count - int(take.sum())
    if short:
        take[(share - take).topk(short).indices] += 1
    return (_rank_within_class(y, rng) < take[y]).nonzero().squeeze(1)


def random_subset(total: int, count: int, rng: Generator) -> Tensor:
    """`count` of `total` indices without replacement."""
    return torch.randperm(total, generator=rng)[:count]


def angles(tasks: int, order: Order, rng: Generator) -> list[float]:
    """Degrees: a draw from each of T equal parts of [0, 180) (GEM), rising or in any order.

    order=uniform: each drawn from all of [0, 180) (DER).
    """
    if order == "uniform":
        return (180 * torch.rand(tasks, generator=rng, dtype=torch.float64)).tolist()
    start = torch.arange(tasks)
    if order == "random":
        start = torch.randperm(tasks, generator=rng)
    draws = torch.rand(tasks, generator=rng, dtype=torch.float64)
    return ((start + draws) * (180 / tasks)).tolist()


def _rank_within_class(y: Tensor, rng: Generator) -> Tensor:
    """(N,): each sample's place in a random order of its own class."""
    shuffled = torch.randperm(len(y), generator=rng)
    by_label = shuffled[y[shuffled].argsort(stable=True)]
    starts = y.bincount().cumsum(0) - y.bincount()
    rank = torch.empty_like(y)
    rank[by_label] = torch.arange(len(y)) - starts[y[by_label]]
    return rank
