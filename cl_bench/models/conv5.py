"""Convolutions with batch norm, then two wide linear layers (van de Ven et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from torch import Tensor, nn

from cl_bench.base.bounds import Size
from cl_bench.models.layers import (
    ACTIVATIONS,
    Activation,
    HeadInit,
    Init,
    batch_norm,
    initialise,
    linear_layers,
)


class Conv5(nn.Module):
    """3x3 convolutions (`convs`), linear layers (`layers`), and a linear head.

    channels  outputs of each convolution, which batch norm and the activation follow; all but the
              first one halve the side of their input (rounded up)
    hidden    widths of the linear layers, each followed by the activation
    """

    batch_norm = True

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        channels: list[Size],
        hidden: list[Size],
        activation: Activation,
        init: Init,
        head_init: HeadInit,
    ) -> None:
        super().__init__()
        stages, (before, height, width) = [], shape
        for number, after in enumerate(channels):
            stride = 2 if number else 1
            conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            stages += [conv, batch_norm(after), ACTIVATIONS[activation]()]
            before, height, width = after, ceil(height / stride), ceil(width / stride)
        widths = [before * height * width, *hidden]
        self.convs = nn.Sequential(*stages, nn.Flatten())
        self.layers = nn.Sequential(*linear_layers(widths, activation))
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.layers(self.convs(x)))
