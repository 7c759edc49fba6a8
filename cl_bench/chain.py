"""The loss and the gradient of a multi-layer perceptron without autograd.

At batches of 1 to 100 autograd's graph costs more than the arithmetic: without it a sample's
gradient takes a third of the time. The products are those that autograd would call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.models.mlp import MLP

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]  # logits (B, K) -> losses (B,), slopes (B, K)
BACK = torch.ops.aten.leaky_relu_backward.default
BENDS = {nn.ReLU: 0.0, nn.LeakyReLU: 0.01}  # their slopes below zero


class Chain:
    """z_i = a_{i-1} W_i' + b_i, a_i = act(z_i); the last z are the logits."""

    def __init__(self, layers: list[nn.Linear], bend: float) -> None:
        self.weights = [layer.weight.detach() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]
        self.grads: list[Any] = [(layer.weight.grad, layer.bias.grad) for layer in layers]
        self.bend = bend

    @torch.no_grad()
    def fill(self, x: Tensor, slope: Slope) -> Tensor:
        """Write the gradient of the mean loss into the layers' `grad`; returns that loss."""
        loss, inputs, slopes = self._passes(x, slope)
        for (weight, bias), s, a in zip(self.grads, slopes, inputs, strict=True):
            torch.mm(s.T, a, out=weight)
            torch.sum(s, 0, out=bias)
        return loss

    @torch.no_grad()
    def descend(self, x: Tensor, slope: Slope, lr: float) -> Tensor:
        """theta <- theta - lr gradient, layer by layer: the gradient is written nowhere."""
        loss, inputs, slopes = self._passes(x, slope)
        for weight, bias, s, a in zip(self.weights, self.biases, slopes, inputs, strict=True):
            weight.addmm_(s.T, a, alpha=-lr)
            bias.add_(s.sum(0), alpha=-lr)
        return loss

    def _passes(self, x: Tensor, slope: Slope) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The mean loss; of each layer what it read (B, in) and the loss's slope there (B, out)."""
        inputs, outputs = [], []
        a = x.flatten(1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs.append(a)
            z = F.linear(a, weight, bias)
            outputs.append(z)
            a = F.leaky_relu(z, self.bend)
        losses, s = slope(outputs.pop())
        slopes = [s / len(losses)]
        for weight, z in zip(self.weights[:0:-1], reversed(outputs), strict=True):
            s = BACK(slopes[-1] @ weight, z, self.bend, False)
            slopes.append(s)
        return losses.mean(), inputs, slopes[::-1]


def chain(net: nn.Module) -> Chain | None:
    """The network as a chain on its own parameters and gradients; None where it is none.

    Not one whose body is fixed (head_only), nor with an activation that is not two straight lines.
    """
    if type(net) is not MLP:
        return None
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    kinds = {type(m) for m in net.features} - {nn.Linear, nn.Flatten}
    if not kinds <= set(BENDS) or any(p.grad is None for p in net.parameters()):
        return None
    return Chain(layers, BENDS[kinds.pop()] if kinds else 0.0)
