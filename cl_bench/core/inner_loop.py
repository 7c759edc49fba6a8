"""Inner loops: plain SGD within one step of a method, on single samples one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cl_bench.core.mlp_gradient import Chain
from cl_bench.core.types import Batch

if TYPE_CHECKING:
    from cl_bench.core.learner import Learner

By = Literal["batch", "running", "whole"]


class Inner:
    """What `learner.inner` does to the learner's theta; no optimizer, momentum or weight decay.

    Batches come augmented already, by one draw for all the steps on their samples.
    """

    def __init__(self, learner: Learner, perceptron: Chain | None) -> None:
        self.learner = learner
        self._whole: Callable[..., tuple[Tensor, Tensor]] | None = None
        if perceptron is not None and learner.machine.compiler is not None:
            loop = partial(perceptron.walk, learner.criterion.with_slope)
            self._whole = learner.machine.compiler(loop)

    def descend(self, batch: Batch, lr: float) -> Tensor:
        """theta <- theta - lr gradient of the batch's loss, which is returned."""
        learner = self.learner
        if learner.chain is not None:
            learner.evaluated += len(batch.y)
            return learner.chain.descend(*learner.seen(batch), lr)
        loss = learner.differentiate(learner.loss, batch)
        learner.flat.theta.detach().sub_(learner.flat.grad, alpha=lr)
        return loss

    @torch.no_grad()
    def walk(
        self, batch: Batch, lr: float, shrink: Tensor | None, usual: bool, size: int = 1
    ) -> Tensor:
        """`descend` on each slice; after each, theta <- theta_0 + shrink (theta - theta_0).

        shrink (P,); None: 1. Returns the mean loss along the way. With runtime.compile a
        perceptron's loop over single samples is one graph for each length; a batch that is not of
        the `usual` one goes step by step.
        """
        learner, theta = self.learner, self.learner.flat.theta
        if self._whole is not None and usual and size == 1:
            learner.evaluated += len(batch.y)
            x = learner.transform.view(batch.x).to(theta.dtype)
            live, rate = learner.competing(batch), theta.new_full((), lr)
            found, loss = self._whole(theta.detach(), x, batch.y, live, rate, shrink)
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
        """How batch norm sees the small batches inside, single samples perhaps.

        `batch`: what they are cut from, augmented already.
        by=batch    by their own statistics, as in training; a single sample by the running ones
        by=running  by its running statistics, which take in `batch` first
        by=whole    by the statistics of `batch`, which the running ones take in, unbiased as these
        Its weights train, whatever it sees. But by=batch, gradients take the statistics as given,
        and several steps under those of one moment hold at small learning rates alone.
        """
        learner, kind = self.learner, nn.modules.batchnorm._BatchNorm
        layers = [m for m in learner.net.modules() if isinstance(m, kind) and m.training]
        layers = layers if by != "batch" else []
        rates = [layer.momentum for layer in layers]
        before = [[b.clone() for b in layer.buffers()] for layer in layers if by == "whole"]
        try:
            for layer in layers:
                layer.momentum = 1.0 if by == "whole" else layer.momentum
            if layers:
                with torch.no_grad():
                    learner.logits(learner.flat.theta, batch)
            for layer in layers:
                layer.eval()
            yield
        finally:
            for layer, rate in zip(layers, rates, strict=True):
                layer.momentum = rate
                layer.train()
            for layer, old in zip(layers, before, strict=False):
                _take_in(layer, old)


def _take_in(layer: nn.modules.batchnorm._BatchNorm, before: list[Tensor]) -> None:
    """From the statistics before, a step towards those that are there, as training would take."""
    assert layer.momentum is not None
    for new, old in zip(layer.buffers(), before, strict=True):
        if new.is_floating_point():
            torch.lerp(old, new, layer.momentum, out=new)
