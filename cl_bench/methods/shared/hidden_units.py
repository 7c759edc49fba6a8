"""The hidden units of a plain network: which parameters lead to a unit, and which units feed it.

A unit is an output of a linear layer or an output channel of a convolution, before the head. With
ReLU or leaky ReLU, act(a z) = a act(z) for a >= 0. Multiplying the output of a unit by a therefore
equals multiplying its row of the weight, and its bias, by a. Max-pooling and dropout change nothing
about this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cl_bench.base.exceptions import UserError
from cl_bench.core.flat import FlatParams
from cl_bench.core.state import Rebuilt
from cl_bench.models.added import Added
from cl_bench.models.conv5 import Conv5
from cl_bench.models.convnet import ConvNet
from cl_bench.models.layers import ACTIVATIONS
from cl_bench.models.linearized import Linearized
from cl_bench.models.mlp import MLP
from cl_bench.models.strided import StridedConvNet

NETWORKS = (MLP, ConvNet, StridedConvNet, Conv5)  # a plain sequence of layers, and `head`
BATCH_NORM = nn.modules.batchnorm._BatchNorm
HOMOGENEOUS = ("relu", "leaky_relu")  # act(a z) = a act(z) for a >= 0


class Layer(NamedTuple):
    """A layer with hidden units as its outputs."""

    parameters: tuple[str, ...]  # names of its weight and, if it has one, its bias
    outputs: slice  # its units among all U
    inputs: slice | None  # the units that feed it; None: the pixels


class HiddenUnits(Rebuilt):
    """The `count` (U) hidden units of a network, numbered layer by layer."""

    def __init__(self, net: nn.Module, flat: FlatParams, method: str) -> None:
        check(net, flat, method)
        self.flat, self.layers, self.count = flat, list[Layer](), 0
        for name, layer in _layers(net):
            outputs = slice(self.count, self.count + len(layer.weight))
            inputs = self.layers[-1].outputs if self.layers else None
            own = tuple(f"{name}.{key}" for key, _ in layer.named_parameters())
            self.layers.append(Layer(own, outputs, inputs))
            self.count = outputs.stop

    def spread(self, values: Tensor) -> Tensor:
        """(P,): the value (U,) of the unit that each parameter leads to; 1 in the head."""
        spread = torch.ones_like(self.flat.grad)
        for view, layer in self._views(spread):
            view.copy_(_as_rows(values[layer.outputs], view))
        return spread

    def sums(self, vector: Tensor) -> Tensor:
        """(U,): the sum of a vector (P,) over the parameters that lead to each unit."""
        sums = vector.new_zeros(self.count)
        for view, layer in self._views(vector):
            sums[layer.outputs].add_(view.reshape(len(view), -1).sum(1))
        return sums

    def smaller(self, values: Tensor) -> Tensor:
        """(P,): for each weight the smaller value (U,) of its two units, its output and its input.

        Biases, and weights from pixels, have the value of their output; parameters of the head 0.
        After flattening, the positions of a channel follow each other, so that a unit that feeds a
        linear layer may have several columns of its weight.
        """
        smaller = torch.zeros_like(self.flat.grad)
        for view, layer in self._views(smaller):
            found = _as_rows(values[layer.outputs], view)
            if layer.inputs is not None and view.dim() > 1:
                into = values[layer.inputs]
                columns = into.repeat_interleave(view.shape[1] // len(into))
                found = torch.minimum(found, _as_rows(columns, view[0]))
            view.copy_(found)
        return smaller

    def _views(self, vector: Tensor) -> Iterator[tuple[Tensor, Layer]]:
        """The parts (out, ...) of a vector (P,) for the parameters of each layer."""
        views = self.flat.views(vector)
        for layer in self.layers:
            for name in layer.parameters:
                yield views[name], layer


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    """View (n,) as (n, 1, ...) with as many axes as `like`, to broadcast over its rows."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _layers(net: Any) -> list[tuple[str, Any]]:
    """The layers before the head, in their order, with their names."""
    found = ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return [(name, layer) for name, layer in found if name.split(".")[0] != "head"]


def check(net: Any, flat: FlatParams, method: str) -> None:
    """Raise UserError where a unit of this network cannot be scaled by its row of weights."""
    if isinstance(net, Linearized):
        raise UserError(
            f"model.linearize=true: method={method} gates the hidden units of a network, which its "
            "tangent does not have; use model.linearize=false"
        )
    if isinstance(net, Added):
        raise UserError(
            f"model.lora, random_features or prompts: method={method} gates the units of the "
            "network alone; use null for all three"
        )
    if type(net) not in NETWORKS:
        raise UserError(
            f"model: method={method} gates the units of a plain sequence of layers, and "
            f"{type(net).__name__} is none; use model=mlp, pc_cnn, or conv5, lenet, "
            "large_lenet or alexnet with model.norm=folded"
        )
    if any(isinstance(module, BATCH_NORM) for module in net.modules()):
        raise UserError(
            f"model.norm=batch: method={method} gates a unit by its row of weights, which batch "
            "norm would undo; use model.norm=folded"
        )
    activations = {name for name, kind in ACTIVATIONS.items() if kind in map(type, net.modules())}
    for name in sorted(activations - {*HOMOGENEOUS}):
        raise UserError(
            f"model.activation={name}: method={method} gates a unit by its row of weights, which "
            f"needs act(a z) = a act(z); use {' or '.join(HOMOGENEOUS)}"
        )
    layers = _layers(net)
    if not layers:
        raise UserError(f"model.hidden=[]: method={method} gates hidden units; use one layer more")
    if any(f"{name}.weight" not in flat.shapes for name, _ in layers):
        raise UserError(
            f"model.head_mode=head_only or model.fixed: method={method} gates hidden units that "
            "are trained; use model.head_mode=bilinear and model.fixed=null"
        )
