"""Which classes compete for a sample, and the rows of the head that are theirs (D3, D4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_bench.core.flat import FlatParams
from cl_bench.core.types import Batch, Task


class Heads:
    """The scenario's mask over the classes of the one head, as it is while a task is learned.

    live    (T, K) bool: the classes that compete for a sample of each task now
    ever    (T, K) bool: those that will have competed at the stream's end; None: all of them
    masked  whether some class has not competed for some sample, now or earlier in the run
    """

    def __init__(self, flat: FlatParams, head: nn.Module) -> None:
        self.flat, self.head = flat, head
        self.live: Tensor
        self.ever: Tensor | None = None
        self.masked = False

    def reveal(self, live: Tensor, ever: Tensor | None) -> None:
        """Let these classes compete from now on."""
        self.live, self.ever = live, ever
        self.masked = self.masked or not bool(live.all())  # stays: one compiled graph for all

    def competing(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that are live for each sample's task; None: all of them."""
        return self.live[batch.t] if self.masked else None

    def competing_in(self, task: Task) -> Tensor:
        """(K,) bool: the classes that are live for some of a task's samples."""
        return self.live[task.t.unique()].any(0)

    def reachable(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that will ever compete for each sample's task; None: all."""
        return None if self.ever is None else self.ever[batch.t]

    def in_use(self, live: Tensor) -> Tensor:
        """(P,): 1 for each parameter, 0 in the head's rows of classes that are not `live` (K,)."""
        mask = torch.ones_like(self.flat.grad)
        for rows in self.flat.parts(mask, lambda module: module is self.head):
            rows[~live] = 0.0
        return mask
