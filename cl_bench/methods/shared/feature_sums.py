"""Sums of the features of a network that does not change, from which its head is computed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Batch, Snapshot, Task, in_float64
from cl_bench.methods.base import Method
from cl_bench.methods.shared.head_rows import refuse_linearised, refuse_linearised_head

NEVER = -1e9  # the logit of a class of which no sample came


class FeatureSums(Method):
    """Counts samples and adds up features by class; predictions use the head made of these sums.

    count     (K,): the samples of each class
    sums      (K, d): the sum of the features of each class
    products  (d, d): the sum of x x' over all samples, if it is asked for

    Sums are in float64, so that the order of the samples changes them by rounding alone; they are
    on the CPU where the device has no such numbers (mps). Images are not augmented, and the epochs
    of a task after the first add nothing. With `adapt` the network is trained on the first task,
    with its head, and then stays as it is; only after that the sums of this task begin.
    """

    option: str  # the option of `method` that it is

    def __init__(self, learner: Learner, products: bool, adapt: bool) -> None:
        super().__init__(learner)
        self.adapting = adapt
        classes, size = learner.heads.rows_of(learner.flat.grad).shape
        zeros = in_float64(learner.flat.grad[:0]).new_zeros
        self.count, self.sums = zeros(classes), zeros(classes, size)
        self.products = zeros((size, size) if products else (0, 0))
        self.left = 0  # samples of this task that are still to come in its first epoch
        self.ready = lru_cache(maxsize=1)(self._classifier)

    @staticmethod
    def unused(config: dict[str, Any]) -> set[str]:
        """Without `adapt` nothing is trained, whatever the optimizer and the number of epochs.

        The number of epochs still says when the tests of evaluation.every are made.
        """
        if config["method"]["adapt"]:
            return set()
        idle = {f"optimizer.{key}" for key in config["optimizer"]} | {"method.adapt"}
        idle |= {"schedule.fresh_optimizer"}
        return idle if config["evaluation"]["every"] is not None else idle | {"schedule.epochs"}

    def check_network(self, task: Task) -> None:
        refuse_linearised_head(self.learner.net, self.option)
        if self.adapting:
            refuse_linearised(self.learner.net, f"{self.option} with method.adapt=true")
        if self.learner.heads.bias_of(self.learner.flat.grad) is None:
            raise UserError(
                f"method={self.option}: the head of the model has no bias, which it needs; use "
                "another model"
            )

    def begin_task(self, task: Task) -> None:
        self.left = len(task)

    def observe(self, batch: Batch) -> Tensor:
        """Add the batch to the sums; returns 0, as there is no loss.

        In a first task to which the network adapts, a step of the optimizer; returns the loss.
        """
        if self.adapting:
            return self.learner.descend(batch)
        if self.left > 0:
            self.left -= len(batch.y)
            self._add(batch, self._features(batch))
        return torch.zeros((), device=batch.y.device)

    def end_task(self, task: Task) -> None:
        self._stop_adapting(task)

    def networks(self) -> Iterator[tuple[str, Snapshot]]:
        yield "", self.learner.snapshot() if self.adapting else self.ready()

    def predict(self, batch: Batch) -> Tensor:
        if self.adapting:
            return super().predict(batch)
        with self.learner.evaluating(full_precision=True):  # small gaps between large logits
            return self.learner.snapshot_logits(self.ready(), batch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ready.cache_clear()

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Weight (K, d) and bias (K,) of the head, by the sums so far."""
        raise NotImplementedError

    def _stop_adapting(self, task: Task) -> None:
        """Take the sums of the task to which the network has adapted, if it does so until now."""
        if self.adapting:
            self.adapting = False
            for batch in task.chunks(512):
                self._add(batch, self._features(batch))

    def _features(self, batch: Batch) -> Tensor:
        """(B, d), in float64."""
        with self.learner.evaluating(full_precision=True):
            return in_float64(self.learner.features(batch))

    @torch.no_grad()
    def _add(self, batch: Batch, x: Tensor) -> None:
        """Add the features (B, d) of a batch to the sums."""
        self.ready.cache_clear()
        labels = batch.y.to(x.device)
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=x.dtype))
        self.sums.index_add_(0, labels, x)
        if self.products.numel():
            self.products.addmm_(x.T, x)

    @torch.no_grad()
    def _classifier(self) -> Snapshot:
        """The network, with the head that the sums make."""
        weight, bias = self._rows()
        bias = torch.where(self.count > 0, bias, NEVER)
        now = self.learner.snapshot()
        every = torch.ones(len(weight), dtype=torch.bool, device=now.theta.device)
        return now._replace(theta=self.learner.heads.with_rows(now.theta, every, weight, bias))
