"""A network as a function of theta (P,) and a batch, which gives logits (B, K)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.core.heads import Heads
from cl_bench.core.parallel import prepare
from cl_bench.core.runtime import Runtime
from cl_bench.core.state import Rebuilt
from cl_bench.core.types import Batch, Snapshot, Task, Transform, at_least_float32
from cl_bench.models.fold import fold_in_place
from cl_bench.models.head import head_input, head_name, head_of
from cl_bench.models.layers import (
    accept_single_samples,
    batch_norm_buffers,
    plain_attention,
    set_dropout_generator,
)

BatchNorm = nn.modules.batchnorm._BatchNorm


class NetworkFunction(Rebuilt):
    """Computes logits at any theta, takes and restores snapshots, and switches modes.

    A method keeps a teacher, or a network of its own for each task, as a snapshot; modules are
    never copied.
    """

    def __init__(self, net: nn.Module, transform: Transform, machine: Runtime) -> None:
        self.net, self.transform, self.machine = net, transform, machine
        self.flat = FlatParams(net, machine.channels_last)
        self.head = head_of(net)
        self.heads = Heads(self.flat, self.head)
        self.full_precision = self.frozen = self.sharing = False
        self._whole: int | None = None  # the samples of a batch, while processes share it
        self._norms = _batch_norms(net)
        set_dropout_generator(net, machine.draws)
        accept_single_samples(net)
        prepare(net, machine.processes, lambda: self._whole)

    def arriving(self, batch: Batch) -> Batch:
        """A batch as methods get it: augmented where images are augmented once, else raw."""
        return self._augment(batch) if self.transform.once else batch

    def augmented(self, batch: Batch) -> Batch:
        """The batch with its images augmented at random, unless they were when they came."""
        return batch if self.transform.once else self._augment(batch)

    def logits(self, theta: Tensor, batch: Batch) -> Tensor:
        """(B, K) logits of all classes at `theta`.

        It changes nothing but batch norm's running statistics in training mode.
        """
        return self._whole_batch(partial(self._logits, theta), batch)

    def _whole_batch(self, function: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """`function` of the batch's pixels; each of several processes computes its share."""
        if not self.sharing:
            return function(batch.x)
        processes, self._whole = self.machine.processes, len(batch.y)
        own = function(batch.x[processes.share(self._whole)])
        return processes.gathered(own, self._whole)

    def _logits(self, theta: Tensor, pixels: Tensor) -> Tensor:
        if theta is not self.flat.theta:
            return self._called(self.flat.views(theta), pixels)
        with self._autocast():
            return self.net(self.transform.view(pixels).to(theta.dtype))

    def _called(self, views: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """The outputs of the network with other parameters, by their names."""
        x = self.transform.view(pixels).to(next(iter(views.values())).dtype)
        with self._autocast(), plain_attention(self.net):
            return functional_call(self.net, dict(views), (x,))

    def features_and_logits(
        self, theta: Tensor, batch: Batch, rows: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, d), the input of the head in float32 or more, and (B, K) logits at `theta`.

        One forward pass gives both: the head gets d further rows, those of the identity. The
        network must not be linearised: its features are not the input of a layer.

        rows  changes the head's weight (K, d), which then has no bias. A loss must not read theta
              in another way: several processes would each count its gradient
        """
        return self._with_features(self.flat.views(theta), batch, rows)

    def _with_features(
        self,
        values: dict[str, Tensor],
        batch: Batch,
        rows: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features and logits with these parameters and buffers, by their names."""
        name, views = head_name(self.net), dict(values)
        weight, bias = views[f"{name}.weight"], views.get(f"{name}.bias")
        if rows is not None:
            weight, bias = rows(weight), None if bias is None else torch.zeros_like(bias)
        width = weight.shape[1]
        views[f"{name}.weight"] = torch.cat(
            [weight, torch.eye(width, dtype=weight.dtype, device=weight.device)]
        )
        if bias is not None:
            views[f"{name}.bias"] = torch.cat([bias, bias.new_zeros(width)])
        outputs = self._whole_batch(lambda pixels: self._called(views, pixels), batch)
        logits, features = outputs.split([len(weight), width], 1)
        return at_least_float32(features), logits

    def keep_equal(self) -> None:
        """Give all processes the parameters and statistics of the first one, between steps."""
        self.machine.processes.same_(self.flat.theta.detach(), *self.net.buffers())

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside the block, each of several processes computes a part of the logits of a batch."""
        self.sharing = self.machine.processes.several
        try:
            yield
        finally:
            self.sharing, self._whole = False, None

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """(B, d): the input of the head."""
        x = self.transform.view(batch.x).to(self.flat.theta.dtype)
        with self._autocast():
            return head_input(self.net, x)

    def unit_features(self, batches: Iterable[Batch]) -> Tensor:
        """(N, d): the features of all samples in evaluation mode, each of length 1."""
        with self.evaluating():
            return torch.cat([F.normalize(self.features(b).float(), dim=-1) for b in batches])

    def class_directions(self, batches: Iterable[Batch], y: Tensor, classes: int) -> Tensor:
        """(K, d): the mean of each class's `unit_features`, of length 1; 0 where it has no sample.

        y  (N,): the labels of the samples of all batches
        """
        found = self.unit_features(batches)
        total = found.new_zeros(classes, found.shape[1])
        return F.normalize(total.index_add_(0, y, found), dim=1)

    def snapshot(self) -> Snapshot:
        """A copy of theta and of batch norm's statistics."""
        buffers = {name: b.detach().clone() for name, b in batch_norm_buffers(self.net)}
        return Snapshot(self.flat.theta.detach().clone(), buffers)

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Set theta and batch norm's statistics to those of a snapshot, in place."""
        self.flat.theta.copy_(snapshot.theta)
        for name, buffer in batch_norm_buffers(self.net):
            buffer.copy_(snapshot.buffers[name])

    def network_state(self) -> dict[str, Any]:
        """Parameters and statistics, for a checkpoint."""
        return {
            "theta": self.flat.theta.detach(),
            "channels_last": self.flat.channels_last,
            "buffers": dict(self.net.named_buffers()),
        }

    @torch.no_grad()
    def load_network_state(self, state: dict[str, Any]) -> None:
        """Load what `network_state` returned; UserError where it has another memory layout."""
        before = state["channels_last"]
        if before != self.flat.channels_last:
            raise UserError(
                f"it was written with runtime.channels_last={str(before).lower()}, on another "
                "device; go on there"
            )
        self.flat.theta.copy_(state["theta"])
        for name, buffer in self.net.named_buffers():
            buffer.copy_(state["buffers"][name])

    def snapshot_logits(self, snapshot: Snapshot, batch: Batch) -> Tensor:
        """(B, K): the logits of a snapshot, in evaluation mode and without a graph."""
        x = self.transform.view(batch.x).to(snapshot.theta.dtype)
        values = {**self.flat.views(snapshot.theta), **snapshot.buffers}
        with self.evaluating(self.full_precision), torch.no_grad(), self._autocast():
            return functional_call(self.net, values, (x,))

    def snapshot_features(self, snapshot: Snapshot, batch: Batch) -> Tensor:
        """(B, d): the input of the head of a snapshot, as `snapshot_logits`."""
        views = {**self.flat.views(snapshot.theta), **snapshot.buffers}
        with self.evaluating(self.full_precision), torch.no_grad():
            return self._with_features(views, batch)[0]

    @contextmanager
    def evaluating(self, full_precision: bool = False) -> Iterator[None]:
        """Evaluation mode inside the block; with `full_precision`, no autocast to bfloat16."""
        before = self.net.training, self.full_precision
        self._set_mode(False)
        self.full_precision = full_precision
        try:
            yield
        finally:
            self._set_mode(before[0])
            self.full_precision = before[1]

    def fold_batch_norm(self, task: Task) -> None:
        """Fold batch norm into the layers before it; theta keeps its shape (`fold_in_place`)."""
        fold_in_place(self.net, self.transform.view(task.x[:1]).to(self.flat.theta.dtype))
        self._norms = _batch_norms(self.net)

    @property
    def couples_samples(self) -> bool:
        """Whether the logits of a sample depend on the rest of its batch, by batch norm."""
        return any(norm.training or norm.running_mean is None for norm in self._norms)

    def _augment(self, batch: Batch) -> Batch:
        return batch._replace(x=self.transform.draw(batch.x, self.machine.draws))

    def _autocast(self) -> AbstractContextManager:
        if self.full_precision:  # of curvatures
            return plain_attention(self.net)
        return self.machine.autocast()

    def _set_mode(self, training: bool) -> None:
        self.net.train(training)
        if self.frozen:
            for norm in self._norms:
                norm.eval()


def _batch_norms(net: nn.Module) -> list[BatchNorm]:
    return [module for module in net.modules() if isinstance(module, BatchNorm)]
