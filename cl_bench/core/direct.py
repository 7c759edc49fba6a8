"""The gradient of a network that needs no autograd: a perceptron, or a plain convolutional one.

Autograd is used for a loss of the logits, if at all, which is a small graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cl_bench.core.conv_gradient import ConvGradient, conv_gradient
from cl_bench.core.criteria import Criterion
from cl_bench.core.mlp_gradient import (
    CompiledSequence,
    LossesAndGradients,
    MLPGradient,
    mlp_gradient,
)
from cl_bench.core.network import NetworkFunction
from cl_bench.core.types import Batch

LossOfLogits = Callable[..., Tensor]  # (logits (B, K), batch, *args) -> scalar


class DirectGradient:
    """Fills the `grad` of all parameters, or takes plain steps of SGD.

    passes  the forward and backward pass of the network
    """

    def __init__(self, passes: MLPGradient | ConvGradient, network: NetworkFunction) -> None:
        self.passes, self.network = passes, network

    def inputs(self, batch: Batch, criterion: Criterion) -> tuple[Tensor, LossesAndGradients]:
        """What `passes` takes: images as floats, and the criterion of the logits."""
        competing = self.network.heads.competing(batch)
        of_logits = partial(criterion.losses_and_gradients, y=batch.y, live=competing)
        return self._images(batch), of_logits

    def fill(self, batch: Batch, criterion: Criterion) -> Tensor:
        """Fill with the gradient of the mean loss; returns that loss."""
        return self.passes.fill(*self.inputs(batch, criterion), len(batch.y))

    def descend(self, batch: Batch, criterion: Criterion, lr: float) -> Tensor:
        """theta <- theta - lr gradient of the mean loss, which is returned."""
        return self.passes.descend(*self.inputs(batch, criterion), lr)

    def fill_of_logits(
        self, loss: LossOfLogits, batch: Batch, args: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Fill with the gradient of loss(logits, batch, *args); returns it and the logits."""
        found: list[Tensor] = []

        def slope(logits: Tensor) -> tuple[Tensor, Tensor]:
            found.append(logits)
            leaf = logits.detach().requires_grad_()
            with torch.enable_grad():
                value = loss(leaf, batch, *args)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

        return self.passes.fill(self._images(batch), slope, 1), found[0]

    def logits_at(self, theta: Tensor, batch: Batch) -> Tensor | None:
        """(B, K): the logits at any theta (P,); None where the network is no perceptron."""
        if not isinstance(self.passes, MLPGradient):
            return None
        return self.passes.logits(self._images(batch), theta)

    def _images(self, batch: Batch) -> Tensor:
        return self.network.transform.view(batch.x).to(self.network.flat.grad.dtype)


def without_autograd(
    network: NetworkFunction, criterion: Criterion
) -> tuple[DirectGradient | None, CompiledSequence | None]:
    """What a network in single precision has of this; with runtime.compile, of inner loops alone.

    The second is `MLPGradient.sgd_sequence` of a perceptron as one compiled graph.
    """
    machine = network.machine
    if machine.precision != "fp32" or machine.processes.several:
        return None, None
    mlp = mlp_gradient(network.net, network.flat)
    if machine.compiler is None:
        passes = mlp or conv_gradient(network.net)
        return None if passes is None else DirectGradient(passes, network), None
    if mlp is None:
        return None, None
    return None, mlp.compiled_sequence(machine.compiler, criterion.losses_and_gradients)


def of_theta(
    network: NetworkFunction, loss: LossOfLogits, apart: Sequence[int]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The objective (theta, batch, *args) -> (loss, logits) of a loss of the logits.

    apart  sizes of parts of the batch that batch norm in training sees each by itself; (): none
    """

    def objective(theta: Tensor, batch: Batch, *args: Any) -> tuple[Tensor, Tensor]:
        if len(apart) > 1 and network.couples_samples:
            parts = [network.logits(theta, part) for part in batch.split(apart)]
            logits = torch.cat(parts)
        else:
            logits = network.logits(theta, batch)
        return loss(logits, batch, *args), logits

    return objective
