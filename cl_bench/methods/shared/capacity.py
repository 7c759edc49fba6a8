"""How much a method that grows has grown, and what keeps it from more (Li et al. 2024)."""

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
from cl_bench.methods.shared.low_rank import Layout, layers_of, topk_mask
from cl_bench.models.layers import batch_norm_buffers

Pruning = Literal["loss", "magnitude", "ranks"]


def size(learner: Learner, live: Tensor) -> int:
    """Numbers of a network with the classes `live` (K,), batch norm's statistics included."""
    return int(learner.heads.in_use(live).sum()) + _held(learner)


def _held(learner: Learner) -> int:
    return sum(buffer.numel() for _, buffer in batch_norm_buffers(learner.net))


@stored_as("halrp_task")
@dataclass
class HALRPTask:
    """A task after the first: what turns the base into its network."""

    layout: Layout
    phi: Tensor  # (Q,)
    buffers: dict[str, Tensor]
    worth: Tensor  # (L,): what a layer's squared change costs, to a common factor

    @property
    def low(self) -> Tensor:
        """All U and V: a view of phi."""
        start = self.layout.scales
        return self.phi[start : start + self.layout.factors]

    @property
    def alive(self) -> int:
        """Entries of U and V that are not 0."""
        return int(self.low.count_nonzero())

    def losses(self) -> Tensor:
        """As `low`: what it would cost to set one entry to 0, by the layer's worth."""
        layers, _ = self.layout.split(self.phi)
        found = []
        for layer, worth in zip(layers, self.worth, strict=True):
            u, v = layer.u.square(), layer.v.square()
            found += [worth * u * v.sum(1), worth * v * u.sum(0)[:, None]]
        return torch.cat([part.flatten() for part in found])


class Account(Stateful):
    """Counts what tasks add to the network of the first; keeps it within `growth` of it.

    Two counts: all that prediction needs; and the authors' ("theirs"), without biases and batch
    norm's statistics. compat prunes by theirs and as they do, as if all that a task adds could be
    pruned: scalings, heads and batch norm come on top of `growth`.
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
        if not any(layers_of(*self._net)):
            raise UserError(
                "method=halrp: it perturbs linear and convolutional layers before the head, and "
                "this model trains none; use another model"
            )
        self.single = self.single_theirs = 0  # numbers of the first task's network

    def start(self, task: Task) -> None:
        """Before the first task; UserError where `growth` cannot be reached."""
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
        """What a task's factors may cost; None: they are pruned, or nothing bounds them."""
        if self.growth is None or self.pruning != "ranks":
            return None
        bare = self._bare(first)
        return int((self.growth - sum(bare) / self.single) * self.single / len(bare))

    def _bare(self, first: int) -> list[int]:
        """What tasks but the first one add, each of them, if all ranks are 0."""
        shapes = tuple(shape for _, shape in layers_of(*self._net))
        others = [live for i, live in enumerate(self.learner.heads.live) if i != first]
        bare = [Layout((), shapes, (0,) * len(shapes), self.own(live)) for live in others]
        return list(map(self.fixed, bare))

    def own(self, live: Tensor) -> Tensor:
        """(M,): where biases, batch norm and the head of the classes `live` (K,) lie in theta."""
        mask = self.learner.heads.in_use(live).bool()
        views = self.learner.flat.views(mask)
        for name, _ in layers_of(*self._net):
            views[name].zero_()
        return mask.nonzero().squeeze(1)

    def fixed(self, layout: Layout) -> int:
        """What a task adds that is not pruned."""
        return layout.scales + len(layout.own) + _held(self.learner)

    def capacity(self, tasks: Collection[HALRPTask]) -> dict[str, float]:
        """The capacity, and how much more it is than one network's; the same by their count."""
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
        """Cut all factors down to `growth`: together, or in each task the same share of them.

        What was cut stays cut.
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
        return self.learner.flat, self.learner.net.head

    def _fixed_theirs(self, layout: Layout) -> int:
        """Without biases of linear and convolutional layers but the head's."""
        flat, head = self._net
        both = [(flat.owners[name], shape) for name, shape in flat.shapes.items()]
        biases = sum(
            shape[0]
            for owner, shape in both
            if len(shape) == 1 and owner is not head and isinstance(owner, nn.Linear | nn.Conv2d)
        )
        return layout.scales + len(layout.own) - biases
