"""Inner loops: plain SGD within one step of a method, on single samples one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from cl_bench.core.mlp_gradient import CompiledSequence
from cl_bench.core.network import BatchNorm, NetworkFunction
from cl_bench.core.types import Batch

By = Literal["batch", "running", "whole"]


class InnerLoop:
    """Steps on the network's theta without optimizer, momentum or weight decay.

    Batches come augmented already, by one draw for all the steps on their samples.

    descend   (batch, lr) -> loss: theta <- theta - lr gradient of the batch's loss
    count     called with each batch whose gradients `sequence` evaluates
    sequence  all steps on single samples as one compiled graph; None: step by step
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
        """`descend` on each slice; after each, theta <- theta_0 + shrink (theta - theta_0).

        shrink (P,); None: 1. Returns the mean loss along the way. With runtime.compile a
        perceptron's loop over single samples is one graph for each length of batch; a batch whose
        length is not the usual one (`compiled_length` false) goes step by step.
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
    def normalised(self, by: By, batch: Batch) -> Iterator[None]:
        """How batch norm treats the small batches inside the block, single samples perhaps.

        `batch`: what they are cut from, augmented already.
        by=batch    by their own statistics, as in training; a single sample by the running ones
        by=running  by its running statistics, which take in `batch` first
        by=whole    by the statistics of `batch`, which the running ones take in, unbiased as these
        Its weights are trained in each case. But for by=batch, gradients take the statistics as
        constants, and several steps under constant statistics are stable at small rates alone.
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
    """From the statistics before, a step towards those that are there, as training would take."""
    assert layer.momentum is not None
    for new, old in zip(layer.buffers(), before, strict=True):
        if new.is_floating_point():
            torch.lerp(old, new, layer.momentum, out=new)
