"""Convolutions of stride 2 without batch norm, as in La-MAML (Gupta et al. 2020, `pc_cnn`)."""

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
    WithSignedFeatures,
    initialise,
    linear_layers,
    sequence,
)


class StridedConvNet(WithSignedFeatures, nn.Module):
    """3x3 convolutions of stride 2, each followed by the activation, and linear layers.

    channels         outputs of each convolution, which halves the side of its input (rounded up)
    hidden           widths of the linear layers before the head, each followed by the activation
    signed_features  no activation follows the last layer before the head
    """

    batch_norm = False

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        channels: list[Size],
        hidden: list[Size],
        activation: Activation,
        init: Init,
        head_init: HeadInit,
        signed_features: bool = False,
    ) -> None:
        super().__init__()
        act, layers, (before, height, width) = ACTIVATIONS[activation], [], shape
        for after in channels:
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), act()]
            before, height, width = after, ceil(height / 2), ceil(width / 2)
        widths = [before * height * width, *hidden]
        layers += [nn.Flatten(), *linear_layers(widths, activation)]
        self.features = sequence(layers, signed_features)
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.features(x))
