"""PackNet: each task prunes the weights that are free, and keeps the rest (Mallya & Lazebnik 2018).

arXiv:1711.05769
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.bounds import Count, Share
from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.state import stored_as
from cl_bench.core.types import Batch, Snapshot, Task
from cl_bench.methods.base import Separate
from cl_bench.methods.shared.low_rank import required_layers


@stored_as("packnet_task")
@dataclass
class PackNetTask:
    """What a learned task needs beside the shared parameters."""

    number: int  # from 1, in the order of learning
    buffers: dict[str, Tensor]  # batch norm's statistics


class PackNet(Separate):
    """A task trains the free weights, sets a `share` of them in each layer to 0, and retrains.

    The weights with the smallest size are pruned, and are free for the next task; those that are
    left belong to the task and do not change again. A network for task t has the weights of tasks
    1 to t, and 0 elsewhere, so that nothing is forgotten. Pruning comes after `prune_after` epochs,
    out of schedule.epochs; the optimizer starts anew with it. All parameters but the weights of
    linear and convolutional layers are trained in the first task alone, as the paper says of biases
    and batch norm; heads are separate. Batch norm's statistics are those of each task, where the
    paper keeps those of the first.
    """

    forbids_weight_decay = True

    def __init__(self, learner: Learner, share: Share, prune_after: Count) -> None:
        super().__init__(learner)
        self.share, self.prune_after = share, prune_after
        self.names = required_layers(learner.flat, learner.head, "packnet")
        self.owner = torch.zeros_like(learner.flat.grad, dtype=torch.int16)  # (P,): 0 is free
        self.trained = torch.ones_like(learner.flat.grad)  # (P,): 1 where this task trains
        self.number, self.samples, self.pruned = 0, 0, False
        self.learned: dict[int, PackNetTask] = {}

    @staticmethod
    def check(config: dict[str, Any]) -> None:
        if config["schedule"].get("patience") is not None:
            raise UserError(
                f"schedule.patience={config['schedule']['patience']}: an epoch before "
                "method=packnet prunes would be kept as the best one; use schedule.patience=null"
            )
        after, epochs = config["method"]["prune_after"], config["schedule"]["epochs"]
        if after >= (min(epochs) if isinstance(epochs, list) else epochs):
            raise UserError(
                f"method.prune_after={after}: of schedule.epochs={epochs} some must be left to "
                "retrain; use fewer, or more epochs"
            )

    def begin_task(self, task: Task) -> None:
        self.number, self.samples, self.pruned = self.number + 1, 0, False
        flat, head = self.learner.flat, self.learner.head
        self.trained.fill_(float(self.number == 1))
        for rows in flat.parts(self.trained, lambda module: module is head):
            rows.fill_(1.0)
        free = flat.views(self.owner)
        for name, view in flat.views(self.trained).items():
            if name in self.names:
                view.copy_(free[name] == 0)

    def observe(self, batch: Batch) -> Tensor:
        task, learner = self.learner.task, self.learner
        assert task is not None
        if not self.pruned and self.samples >= self.prune_after * len(task):
            self._prune()
        loss = learner.gradient(batch)
        learner.flat.grad.mul_(self.trained)
        learner.step()
        self.samples += len(batch.y)
        return loss

    def end_task(self, task: Task) -> None:
        if not self.pruned:  # fewer samples came than the epochs have
            self._prune()
        self.learned[task.id] = PackNetTask(self.number, self.learner.snapshot().buffers)
        self.ready.cache_clear()

    def network(self, task: int) -> Snapshot | None:
        if task not in self.learned:
            return None
        mine, flat = self.learned[task], self.learner.flat
        theta = flat.theta.detach().clone()
        owners = flat.views(self.owner)
        for name, view in flat.views(theta).items():
            if name in self.names:
                view.mul_((owners[name] > 0) & (owners[name] <= mine.number))
        return Snapshot(theta, mine.buffers)

    def capacity(self) -> dict[str, float]:
        """The share of the layers' weights that tasks have taken."""
        owners = self.learner.flat.views(self.owner)
        taken = sum(int((owners[name] > 0).sum()) for name in self.names)
        return {"used": taken / max(1, sum(owners[name].numel() for name in self.names))}

    @torch.no_grad()
    def _prune(self) -> None:
        """Give the largest of the free weights of each layer to this task; the others become 0."""
        flat = self.learner.flat
        parts = (flat.views(v) for v in (flat.theta.detach(), self.owner, self.trained))
        weights, owners, trained = parts
        for name in self.names:
            weight, owner = weights[name].reshape(-1), owners[name].reshape(-1)
            free = owner == 0
            size = torch.where(free, weight.abs(), torch.inf)
            smallest = size.argsort(stable=True)[: round(self.share * int(free.sum()))]
            kept = free.index_fill(0, smallest, False).view_as(weights[name])
            gone = torch.zeros_like(free).index_fill(0, smallest, True).view_as(weights[name])
            owners[name][kept] = self.number
            weights[name][gone] = 0.0
            trained[name][gone] = 0.0
        self.pruned = True
        # its moments would move the weights that are 0 now
        self.learner.restart_optimizer(self.learner.flat.theta)
