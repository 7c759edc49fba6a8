"""Inner loops of MER, La-MAML and EMCL: plain SGD on small slices of a batch, within one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from cl_bench.core.mlp_gradient import CompiledSequence
from cl_bench.core.network import BatchNorm, NetworkFunction
from cl_bench.core.types import Batch

By = Literal["batch", "running", "whole"]  # see `InnerLoop.batch_norm_mode`


class InnerLoop:
    """SGD steps on the network's theta, without optimizer, momentum or weight decay.

    Batches are augmented already, by one draw for all the steps on their samples.

    descend   (batch, lr) -> loss: theta <- theta - lr gradient of the batch's mean loss
    count     is called with each batch that `sequence` computes gradients of
    sequence  one compiled graph of all steps on single samples; None: each step is a call
    """

    def __init__(
        self,
        network: NetworkFunction,
        descend: Callable[[Batch, float], Tensor],
        count: Callable[[Batch], None],
        sequence: CompiledSequence | None,
    ) -> None:
        self.network, self.descend = network, descend
        self._count, self._sequence = count, sequence

    @torch.no_grad()
    def sgd_sequence(
        self,
        batch: Batch,
        lr: float,
        shrink: Tensor | None,
        compiled_length: bool,
        size: int = 1,
    ) -> Tensor:
        """`descend` on each slice of `size` samples; returns the mean of their losses.

        After each step, theta <- theta_0 + shrink (theta - theta_0) with shrink (P,); None: 1.
        With runtime.compile, a perceptron's loop over single samples is one graph for each length
        of batch. `compiled_length` says whether this batch has the length to compile for; the
        shorter last batch of an epoch has not, and takes its steps one by one.
        """
        network, theta = self.network, self.network.flat.theta
        if self._sequence is not None and compiled_length and size == 1:
            self._count(batch)
            x = network.transform.view(batch.x).to(theta.dtype)
            live, rate = network.heads.competing(batch), theta.new_full((), lr)
            found, loss = self._sequence(theta.detach(), x, batch.y, live, rate, shrink)
            theta.copy_(found)
            return loss
        losses, start = [], theta.clone()
        for some in batch.slices(size):
            with torch.enable_grad():
                losses.append(self.descend(some, lr) * (len(some.y) / len(batch.y)))
            if shrink is not None:
                torch.lerp(start, theta, shrink, out=theta)
        return torch.stack(losses).sum()

    @contextmanager
    def batch_norm_mode(self, by: By, batch: Batch) -> Iterator[None]:
        """Choose the statistics that batch norm uses for slices of `batch` inside the block.

        by=batch    those of each slice, as in training; the running ones for a single sample
        by=running  the running statistics, after an update by the whole `batch`
        by=whole    those of the whole `batch` (unbiased variance), which also update the running

        `batch` is augmented already. Batch norm's weights are trained in each case. With running
        and whole, gradients treat the statistics as constants, and several steps under constant
        statistics are stable at small learning rates only.
        """
        network = self.network
        layers = [m for m in network.net.modules() if isinstance(m, BatchNorm) and m.training]
        layers = layers if by != "batch" else []
        rates = [layer.momentum for layer in layers]
        before = [[b.clone() for b in layer.buffers()] for layer in layers if by == "whole"]
        try:
            for layer in layers:
                layer.momentum = 1.0 if by == "whole" else layer.momentum
            if layers:
                with torch.no_grad():
                    network.logits(network.flat.theta, batch)
            for layer in layers:
                layer.eval()
            yield
        finally:
            for layer, rate in zip(layers, rates, strict=True):
                layer.momentum = rate
                layer.train()
            for layer, old in zip(layers, before, strict=False):
                _update_statistics(layer, old)


def _update_statistics(layer: BatchNorm, before: list[Tensor]) -> None:
    """running <- (1 - momentum) before + momentum now, as one training step would update it."""
    assert layer.momentum is not None
    for new, old in zip(layer.buffers(), before, strict=True):
        if new.is_floating_point():
            torch.lerp(old, new, layer.momentum, out=new)
