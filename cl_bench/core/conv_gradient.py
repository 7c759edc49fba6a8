"""The gradient of a plain convolutional network without autograd.

The inner loops of MER, La-MAML and EMCL take steps on one or two images. There autograd's graph and
its passes over a whole vector (zeroing, accumulating, subtracting the gradient) cost as much as the
convolutions (EMCL in scripts/bench.py --online).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.core.mlp_gradient import LEAKY_RELU_BACKWARD, LossesAndGradients, slope_after_each
from cl_bench.models.strided import StridedConvNet

CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
# What a layer's gradient is made of: the layer; the gradient s (N, out, ...) in its output; its
# input a (N, in, ...); the gradient in its weight, None for a linear layer, where that is s'a
LayerGradient = tuple[Any, Tensor, Tensor, Tensor | None]
BIAS_DIMS = {2: (0,), 4: (0, 2, 3)}  # over which s is summed for the bias, by the dimensions of s


class ConvGradient:
    """Forward and backward pass of z_i = layer_i(a_{i-1}), a_i = act(z_i); z_n are the logits."""

    def __init__(self, layers: list[Any], negative_slope: float) -> None:
        self.layers, self.negative_slope = layers, negative_slope

    @torch.no_grad()
    def fill(self, x: Tensor, criterion: LossesAndGradients, count: int) -> Tensor:
        """Write the samples' gradients / `count` into the layers' `grad`; returns the mean loss."""
        losses, steps = self._passes(x, criterion, count)
        for layer, s, a, weight in steps:
            if weight is None:
                torch.mm(s.T, a, out=layer.weight.grad)
            else:
                layer.weight.grad.copy_(weight)
            torch.sum(s, BIAS_DIMS[s.ndim], out=layer.bias.grad)
        return losses.mean()

    @torch.no_grad()
    def descend(self, x: Tensor, criterion: LossesAndGradients, lr: float) -> Tensor:
        """theta <- theta - lr gradient of the mean loss, without writing the gradient out."""
        losses, steps = self._passes(x, criterion, len(x))
        for layer, s, a, weight in steps:
            if weight is None:
                layer.weight.addmm_(s.T, a, alpha=-lr)
            else:
                layer.weight.sub_(weight, alpha=lr)
            layer.bias.sub_(s.sum(BIAS_DIMS[s.ndim]), alpha=lr)
        return losses.mean()

    def _passes(
        self, x: Tensor, criterion: LossesAndGradients, count: int
    ) -> tuple[Tensor, Iterator[LayerGradient]]:
        """The losses (N,), and what each layer's gradient is made of, from the last layer down."""
        inputs, outputs = [], []
        for layer in self.layers:
            a = F.leaky_relu(outputs[-1], self.negative_slope) if outputs else x
            inputs.append(a.flatten(1) if isinstance(layer, nn.Linear) else a)
            outputs.append(layer(inputs[-1]))
        losses, s = criterion(outputs[-1])
        return losses, self._backward(s / count, inputs, outputs)

    def _backward(
        self, s: Tensor, inputs: list[Tensor], outputs: list[Tensor]
    ) -> Iterator[LayerGradient]:
        """What each layer's gradient is made of, from the last layer down.

        The gradient in a layer's input is computed before the layer is yielded, so that the caller
        may change the layer.
        """
        for i in reversed(range(len(self.layers))):
            layer, a, weight = self.layers[i], inputs[i], None
            if isinstance(layer, nn.Linear):
                below = s @ layer.weight if i else None
            else:
                below, weight = _convolution_backward(layer, s, a, needs_input=i > 0)
            yield layer, s, a, weight
            if below is not None:
                z = outputs[i - 1]
                s = LEAKY_RELU_BACKWARD(below.view_as(z), z, self.negative_slope, False)


def _convolution_backward(
    layer: nn.Conv2d, s: Tensor, a: Tensor, needs_input: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients in the input (None if it is not needed) and in the weight."""
    sizes = layer.stride, layer.padding, layer.dilation
    wanted = [needs_input, True, False]
    below, weight, _ = CONVOLUTION_BACKWARD(
        s, a, layer.weight, None, *sizes, False, [0, 0], layer.groups, wanted
    )
    return below, weight


def conv_gradient(net: nn.Module) -> ConvGradient | None:
    """The `ConvGradient` of a network; None where it does not apply.

    It applies to a `StridedConvNet` with ReLU or leaky ReLU after each layer but the head, of which
    all are trained.
    """
    if type(net) is not StridedConvNet:
        return None
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    slope = slope_after_each(layers, net)
    return None if slope is None else ConvGradient(layers, slope)
