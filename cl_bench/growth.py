"""How much a method that grows has grown, and what keeps it from growing further (papers/004)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from cl_bench.learner import Learner
from cl_bench.lowrank import Layout, largest, layers_of
from cl_bench.types import UserError


@dataclass
class Learned:
    """A task after the first: what turns the base into its network."""

    layout: Layout
    phi: Tensor  # (Q,)
    buffers: dict[str, Tensor]

    @property
    def low(self) -> Tensor:
        """All U and V: a view of phi."""
        start = self.layout.scales
        return self.phi[start : start + self.layout.factors]

    @property
    def alive(self) -> int:
        """Entries of U and V that are not 0."""
        return int(self.low.count_nonzero())


class Account:
    """Counts what tasks add to the network of the first; prunes them down to `growth` of it.

    "Theirs" is the authors' count, without biases and batch norm's statistics. compat prunes by it,
    the same share of the factors as if all that a task adds could be pruned, and takes entries that
    are 0 already for the smallest: what is left may be above or below `growth`.
    """

    def __init__(
        self, learner: Learner, growth: float | None, threshold: float, compat: bool
    ) -> None:
        self.learner, self.growth = learner, growth
        self.threshold, self.compat = threshold, compat
        self.single = (0, 0)  # numbers of the first task's network, by both counts

    def start(self, live: Tensor) -> None:
        """The first task's classes, (K,) bool; UserError where pruning cannot reach `growth`."""
        values = int(self.learner.in_use(live).sum())
        self.single = values + self._statistics(), values
        if self.growth is None or self.compat:
            return
        head, flat = self.learner.net.head, self.learner.flat
        shapes = tuple(shape for _, shape in layers_of(flat, head))
        bare = Layout((), shapes, (0,) * len(shapes), self.own(live))
        later = len(self.learner.live) - 1
        least = later * self.fixed(bare, theirs=False) / self.single[0]
        if least > self.growth:
            raise UserError(
                f"method.growth={self.growth}: scalings, biases, statistics and heads of {later} "
                f"tasks alone add {least:.2f} sizes of the network; allow more, or use null"
            )

    def own(self, live: Tensor) -> Tensor:
        """(M,): where biases, batch norm and the head of the classes `live` (K,) lie in theta."""
        learner = self.learner
        mask = learner.in_use(live).bool()
        views = learner.flat.views(mask)
        for name, _ in layers_of(learner.flat, learner.net.head):
            views[name].zero_()
        return mask.nonzero().squeeze(1)

    def fixed(self, layout: Layout, theirs: bool) -> int:
        """What a task adds that is not pruned."""
        return layout.scales + len(layout.own) + (-self._biases() if theirs else self._statistics())

    def capacity(self, tasks: Iterable[Learned], theirs: bool) -> int:
        """Numbers that prediction needs: those that are 0 are not."""
        added = sum(self.fixed(task.layout, theirs) + task.alive for task in tasks)
        return self.single[theirs] + added

    def facts(self, tasks: Collection[Learned]) -> dict[str, float]:
        """The capacity, and how much more it is than one network's; the same by their count."""
        ours, theirs = self.capacity(tasks, False), self.capacity(tasks, True)
        return {
            "capacity": ours,
            "growth": ours / self.single[False] - 1,
            "capacity_reference": theirs,
            "growth_reference": theirs / self.single[True] - 1,
        }

    def prune(self, tasks: Collection[Learned]) -> None:
        """Set the smallest entries of all tasks' factors to 0, in each task the same share."""
        if self.growth is None:
            return
        room = self.growth * self.single[self.compat]
        added = self.capacity(tasks, self.compat) - self.single[self.compat]
        alive = sum(task.alive for task in tasks)
        keep = room / added if self.compat else (room - added + alive) / max(alive, 1)
        if keep >= 1:
            return
        for task in tasks:
            low = task.low
            kept = largest(low, int(keep * (len(low) if self.compat else task.alive)))
            low.copy_(kept.where(kept.abs() > self.threshold, 0.0))

    def _statistics(self) -> int:
        return sum(buffer.numel() for buffer in self.learner.net.buffers())

    def _biases(self) -> int:
        """Of linear and convolutional layers but the head."""
        flat, head = self.learner.flat, self.learner.net.head
        both = [(flat.owners[name], shape) for name, shape in flat.shapes.items()]
        return sum(
            shape[0]
            for owner, shape in both
            if len(shape) == 1 and owner is not head and isinstance(owner, nn.Linear | nn.Conv2d)
        )
