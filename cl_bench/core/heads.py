"""Which classes compete for a sample, and which rows of the head belong to them.

The head has a row for each class of the whole stream from the start, so that the number of
parameters never changes. A scenario is a mask over these classes: it says which of them the loss
and the prediction take into account.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cl_bench.core.flat import FlatParams
from cl_bench.core.types import Batch, Task


class Heads:
    """The scenario's mask over the classes of the head while a task is learned.

    live         (T, K) bool: the classes that compete for a sample of each task now
    live_at_end  (T, K) bool: `live` after the last task; None: all classes
    masked       whether the mask excludes a class, now or earlier in the run
    """

    def __init__(self, flat: FlatParams, head: nn.Module) -> None:
        self.flat, self.head = flat, head
        self.live: Tensor
        self.live_at_end: Tensor | None = None
        self.masked = False

    def reveal(self, live: Tensor, live_at_end: Tensor | None) -> None:
        """Set the classes that compete from now on."""
        self.live, self.live_at_end = live, live_at_end
        # it stays true, as a compiled graph either takes a mask or not
        self.masked = self.masked or not bool(live.all())

    def competing(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that compete for each sample; None: all of them."""
        return self.live[batch.t] if self.masked else None

    def competing_in(self, task: Task) -> Tensor:
        """(K,) bool: the classes that compete for at least one sample of the task."""
        return self.live[task.t.unique()].any(0)

    def reachable(self, batch: Batch) -> Tensor | None:
        """(B, K) bool: the classes that compete for each sample after the last task; None: all."""
        return None if self.live_at_end is None else self.live_at_end[batch.t]

    def in_use(self, live: Tensor) -> Tensor:
        """(P,): 0 in the head's rows of classes that are not `live` (K,), 1 everywhere else."""
        mask = torch.ones_like(self.flat.grad)
        for rows in self._parts(mask):
            rows[~live] = 0.0
        return mask

    def rows_of(self, vector: Tensor) -> Tensor:
        """(K, d): the part of a vector (P,) for the weight of the head."""
        return next(part for part in self._parts(vector) if part.ndim > 1)

    def bias_of(self, vector: Tensor) -> Tensor | None:
        """(K,): the part of a vector (P,) for the bias of the head; None: it has none."""
        return next((part for part in self._parts(vector) if part.ndim == 1), None)

    def with_rows(
        self, theta: Tensor, classes: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """A copy of theta (P,) whose head has, for these classes (K,), rows of `weight` (K, d).

        bias  (K,), for a head that has one; None: 0

        Rows and bias may lie on another device.
        """
        found = theta.detach().clone()
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        for rows in self._parts(found):
            new = (weight if rows.ndim > 1 else bias).to(rows)
            rows.copy_(torch.where(classes.view(-1, *[1] * (rows.ndim - 1)), new, rows))
        return found

    def keep_unused_(self, new: Tensor, old: Tensor, batch: Batch) -> None:
        """Copy from `old` to `new` (P,) the head's rows of classes that compete for no sample."""
        if not self.masked:
            return
        unused = ~self.live[batch.t].any(0)
        for after, before in zip(self._parts(new), self._parts(old), strict=True):
            rows = unused.view(-1, *[1] * (after.ndim - 1))
            after.copy_(torch.where(rows, before, after))

    def _parts(self, vector: Tensor) -> Iterator[Tensor]:
        """The parts of a vector (P,) for the head: its weight, and its bias if it has one."""
        return self.flat.parts(vector, lambda module: module is self.head)
