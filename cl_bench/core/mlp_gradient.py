"""The gradient of a multi-layer perceptron without autograd, and inner loops of such steps.

At batch sizes of 1 to 100 autograd's graph costs more than the arithmetic. Without it, the gradient
of a sample takes half the time. A loop of single-sample steps is one function of theta, which can
be compiled into one graph and then takes a quarter of the time of separate steps (MER in
scripts/bench.py --online).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.core.flat import FlatParams
from cl_bench.core.gradient import Compiler
from cl_bench.models.mlp import MLP

# s (N, out) and a (N, in): the gradients of a layer's weight are the N outer products s a'
LayerFactors = tuple[Tensor, Tensor]
# a criterion's `losses_and_gradients`, of logits (B, K) alone and of (logits, y, live)
LossesAndGradients = Callable[[Tensor], tuple[Tensor, Tensor]]
MaskedLossesAndGradients = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
CompiledSequence = Callable[..., tuple[Tensor, Tensor]]  # `sgd_sequence` of one criterion
LEAKY_RELU_BACKWARD = torch.ops.aten.leaky_relu_backward.default
NEGATIVE_SLOPE = {nn.ReLU: 0.0, nn.LeakyReLU: 0.01}
LAYERS = (nn.Linear, nn.Conv2d, nn.Flatten)  # what is no activation


class MLPGradient:
    """Forward and backward pass of z_i = a_{i-1} W_i' + b_i, a_i = act(z_i); z_n are the logits."""

    def __init__(self, layers: list[nn.Linear], negative_slope: float, flat: FlatParams) -> None:
        self.weights = [layer.weight.detach() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]
        self.grads: list[Any] = [(layer.weight.grad, layer.bias.grad) for layer in layers]
        self.negative_slope, self.flat = negative_slope, flat

    @torch.no_grad()
    def logits(self, x: Tensor, theta: Tensor) -> Tensor:
        """(N, K): the logits of x at any theta (P,)."""
        *hidden, (weight, bias) = self._pairs(theta)
        a = x.flatten(1)
        for below in hidden:
            a = F.leaky_relu(F.linear(a, *below), self.negative_slope)
        return F.linear(a, weight, bias)

    @torch.no_grad()
    def fill(self, x: Tensor, criterion: LossesAndGradients, count: int) -> Tensor:
        """Write the samples' gradients / `count` into the layers' `grad`; returns the mean loss."""
        losses, factors = self.factors(x, criterion, count)
        self.write(factors, None)
        return losses.mean()

    @torch.no_grad()
    def factors(
        self, x: Tensor, criterion: LossesAndGradients, count: float | Tensor
    ) -> tuple[Tensor, list[LayerFactors]]:
        """The losses (N,), and for each layer the factors of all samples' gradients / `count`.

        count  a number, or one (N,) for each sample
        """
        inputs, outputs = [], []
        a = x.flatten(1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs.append(a)
            z = F.linear(a, weight, bias)
            outputs.append(z)
            a = F.leaky_relu(z, self.negative_slope)
        losses, s = criterion(outputs.pop())
        slopes = [(s.T / count).T]
        for weight, z in zip(self.weights[:0:-1], reversed(outputs), strict=True):
            s = LEAKY_RELU_BACKWARD(slopes[-1] @ weight, z, self.negative_slope, False)
            slopes.append(s)
        return losses, list(zip(slopes[::-1], inputs, strict=True))

    @torch.no_grad()
    def write(self, factors: list[LayerFactors], weights: Tensor | None) -> None:
        """Write the sum of the samples' gradients, weighted by `weights` (N,), into `grad`."""
        for (weight, bias), (s, a) in zip(self.grads, factors, strict=True):
            s = s if weights is None else (s.T * weights).T
            torch.mm(s.T, a, out=weight)
            torch.sum(s, 0, out=bias)

    @torch.no_grad()
    def descend(self, x: Tensor, criterion: LossesAndGradients, lr: float) -> Tensor:
        """theta <- theta - lr gradient of the mean loss, without writing the gradient out."""
        losses, factors = self.factors(x, criterion, len(x))
        for weight, bias, (s, a) in zip(self.weights, self.biases, factors, strict=True):
            weight.addmm_(s.T, a, alpha=-lr)
            bias.add_(s.sum(0), alpha=-lr)
        return losses.mean()

    def sgd_sequence(
        self,
        criterion: MaskedLossesAndGradients,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        live: Tensor | None,
        lr: Tensor,
        shrink: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`descend` on each of the samples x (n, ...) in turn, as a pure function of theta (P,).

        After each, theta <- theta_0 + shrink (theta - theta_0). Returns theta and the mean loss.
        Products are written as elementwise products and sums, which a compiler fuses.
        """
        start, pulls = self._pairs(theta), None if shrink is None else self._pairs(shrink)
        now, total = start, torch.zeros_like(theta[0])
        for k in range(len(x)):
            inputs, outputs, a = [], [], x[k].flatten()
            for weight, bias in now:
                inputs.append(a)
                outputs.append((weight * a).sum(1) + bias)
                a = F.leaky_relu(outputs[-1], self.negative_slope)
            some = None if live is None else live[k : k + 1]
            losses, s = criterion(outputs[-1].unsqueeze(0), y[k : k + 1], some)
            total, s, moved = total + losses[0], s[0], []
            for i in range(len(now) - 1, -1, -1):
                weight, bias = now[i]
                moved.append((weight - lr * s.unsqueeze(1) * inputs[i], bias - lr * s))
                if i:
                    below = (weight * s.unsqueeze(1)).sum(0)
                    s = torch.where(outputs[i - 1] > 0, below, self.negative_slope * below)
            now = moved[::-1]
            if pulls is not None:
                now = [_interpolated(*parts) for parts in zip(start, now, pulls, strict=True)]
        return torch.cat([part.flatten() for pair in now for part in pair]), total / len(x)

    def compiled_sequence(
        self, compiler: Compiler, criterion: MaskedLossesAndGradients
    ) -> CompiledSequence:
        """`sgd_sequence` for a criterion, as one compiled graph."""
        return compiler(partial(self.sgd_sequence, criterion))

    def _pairs(self, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split a vector (P,) into (weight, bias) of each layer."""
        parts = list(self.flat.views(vector).values())
        return list(zip(parts[::2], parts[1::2], strict=True))


def _interpolated(
    start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], share: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """start + share (end - start), for a weight and a bias."""
    (w0, b0), (w1, b1), (w, b) = start, end, share
    return w0 + w * (w1 - w0), b0 + b * (b1 - b0)


def mlp_gradient(net: nn.Module, flat: FlatParams) -> MLPGradient | None:
    """The `MLPGradient` of a network; None where it does not apply.

    It applies to an `MLP` with ReLU or leaky ReLU after each hidden layer, if all are trained.
    """
    if type(net) is not MLP:
        return None
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    slope = slope_after_each(layers, net)
    return None if slope is None else MLPGradient(layers, slope, flat)


def slope_after_each(layers: Sequence[nn.Module], net: Any) -> float | None:
    """The negative slope of the activation that follows each layer but the last, the head.

    It is 0 for ReLU, and where there is only a head. None: not each layer is trained and followed
    by ReLU or leaky ReLU.
    """
    activations = [type(m) for m in net.features if not isinstance(m, LAYERS)]
    if len(activations) < len(layers) - 1 or not {*activations} <= {*NEGATIVE_SLOPE}:
        return None
    if any(p.grad is None for p in net.parameters()):
        return None
    return NEGATIVE_SLOPE[activations[0]] if activations else 0.0
