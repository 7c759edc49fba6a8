"""Parameter count of growing methods, and pruning to their `growth` budget (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.state import Stateful, stored_as
from cl_bench.core.types import Task
from cl_bench.methods.shared.low_rank import Layout, layers_of, required_layers, topk_mask
from cl_bench.models.layers import batch_norm_buffers

Pruning = Literal["loss", "magnitude", "ranks"]


def size(learner: Learner, live: Tensor) -> int:
    """Count a network's numbers, with statistics, and with head rows for `live` (K,) only."""
    return int(learner.heads.in_use(live).sum()) + _held(learner)


def _held(learner: Learner) -> int:
    return sum(buffer.numel() for _, buffer in batch_norm_buffers(learner.net))


@stored_as("halrp_task")
@dataclass
class HALRPTask:
    """The parameters of a task after the first, which turn the base into its network."""

    layout: Layout
    phi: Tensor  # (Q,)
    buffers: dict[str, Tensor]
    worth: Tensor  # (L,): what a layer's squared change costs, to a common factor

    @property
    def low(self) -> Tensor:
        """All entries of U and V: a view of phi."""
        start = self.layout.scales
        return self.phi[start : start + self.layout.factors]

    @property
    def alive(self) -> int:
        """The number of entries of U and V that are not 0."""
        return int(self.low.count_nonzero())

    def losses(self) -> Tensor:
        """For each entry of `low`, the estimated loss if it were set to 0."""
        layers, _ = self.layout.split(self.phi)
        found = []
        for layer, worth in zip(layers, self.worth, strict=True):
            u, v = layer.u.square(), layer.v.square()
            found += [worth * u * v.sum(1), worth * v * u.sum(0)[:, None]]
        return torch.cat([part.flatten() for part in found])


@stored_as("halrp_progress")
@dataclass
class HALRPProgress:
    """How far the training of the present task is: in its warm-up, or at its factors."""

    samples: int = 0  # that were trained on
    layout: Layout | None = None  # of the factors; None in the warm-up and in the first task
    worth: Tensor | None = None  # (L,): see `HALRPTask`


class Account(Stateful):
    """Counts the numbers that tasks add to the network of the first, and prunes them to `growth`.

    There are two counts: all that prediction needs, and the authors' ("theirs"), without biases and
    statistics of batch norm. With compat the authors' count and rule of pruning are used, which
    treat all that a task adds as if it could be pruned: scalings, heads and batch norm come on top
    of `growth`.
    """

    def __init__(
        self,
        learner: Learner,
        growth: float | None,
        pruning: Pruning,
        threshold: float,
        compat: bool,
    ) -> None:
        self.learner, self.growth, self.pruning = learner, growth, pruning
        self.threshold, self.compat = threshold, compat
        required_layers(learner.flat, learner.head, "halrp")
        self.single = self.single_theirs = 0  # numbers of the first task's network

    def start(self, task: Task) -> None:
        """Called before the first task; raises UserError where `growth` cannot be kept."""
        live = self.learner.heads.competing_in(task)
        self.single_theirs = int(self.learner.heads.in_use(live).sum())
        self.single = size(self.learner, live)
        if self.growth is None or self.compat:
            return
        bare = self._bare(int(task.t[0]))
        least = sum(bare) / self.single
        if least > self.growth:
            raise UserError(
                f"method.growth={self.growth}: scalings, biases, statistics and heads of all tasks "
                f"after the first ({len(bare)}) alone add {least:.3g} sizes of the network; "
                "allow more, or use null"
            )

    def room(self, first: int) -> int | None:
        """The numbers that a task's factors may have; None where pruning or nothing limits them."""
        if self.growth is None or self.pruning != "ranks":
            return None
        bare = self._bare(first)
        return int((self.growth - sum(bare) / self.single) * self.single / len(bare))

    def _bare(self, first: int) -> list[int]:
        """The numbers that each task after the first adds if all ranks are 0."""
        shapes = tuple(shape for _, shape in layers_of(*self._net))
        others = [live for i, live in enumerate(self.learner.heads.live) if i != first]
        bare = [Layout((), shapes, (0,) * len(shapes), self.own(live)) for live in others]
        return list(map(self.fixed, bare))

    def own(self, live: Tensor) -> Tensor:
        """(M,): indices in theta of biases, batch norm and the head rows of `live` (K,)."""
        mask = self.learner.heads.in_use(live).bool()
        views = self.learner.flat.views(mask)
        for name, _ in layers_of(*self._net):
            views[name].zero_()
        return mask.nonzero().squeeze(1)

    def fixed(self, layout: Layout) -> int:
        """The numbers that a task adds and that are never pruned."""
        return layout.scales + len(layout.own) + _held(self.learner)

    def capacity(self, tasks: Collection[HALRPTask]) -> dict[str, float]:
        """The capacity and its excess over one network's, by both counts."""
        alive = sum(task.alive for task in tasks)
        ours = sum(self.fixed(task.layout) for task in tasks) + alive
        theirs = sum(self._fixed_theirs(task.layout) for task in tasks) + alive
        return {
            "capacity": self.single + ours,
            "growth": ours / max(self.single, 1),
            "capacity_reference": self.single_theirs + theirs,
            "growth_reference": theirs / max(self.single_theirs, 1),
        }

    def prune(self, tasks: Collection[HALRPTask]) -> None:
        """Set entries of the factors to 0 until `growth` holds; they stay 0.

        pruning=loss compares the entries of all tasks, magnitude prunes the same share of each.
        """
        if self.growth is None or self.pruning == "ranks":
            return
        whole = sum(len(task.low) for task in tasks)
        if self.compat:
            fixed = sum(self._fixed_theirs(task.layout) for task in tasks)
            share = self.growth * self.single_theirs / (fixed + whole)
        else:
            fixed = sum(self.fixed(task.layout) for task in tasks)
            share = (self.growth * self.single - fixed) / max(whole, 1)
        if share >= 1:
            return
        if self.pruning == "loss":
            costs = [task.losses() for task in tasks]
            kept = topk_mask(torch.cat(costs), int(share * whole)).split([len(c) for c in costs])
        else:
            kept = [topk_mask(task.low.abs(), int(share * len(task.low))) for task in tasks]
        for task, places in zip(tasks, kept, strict=True):
            task.low.mul_(places & (task.low.abs() > self.threshold))

    @property
    def _net(self) -> tuple:
        return self.learner.flat, self.learner.head

    def _fixed_theirs(self, layout: Layout) -> int:
        """The authors' count of `fixed`: without biases, except that of the head."""
        flat, head = self._net
        both = [(flat.owners[name], shape) for name, shape in flat.shapes.items()]
        biases = sum(
            shape[0]
            for owner, shape in both
            if len(shape) == 1 and owner is not head and isinstance(owner, nn.Linear | nn.Conv2d)
        )
        return layout.scales + len(layout.own) - biases
