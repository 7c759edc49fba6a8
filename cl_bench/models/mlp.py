"""Multi-layer perceptron on flattened pixels: 784-100-100-10 has 89,610 parameters."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from cl_bench.base.bounds import Size
from cl_bench.models.layers import (
    Activation,
    HeadInit,
    Init,
    WithSignedFeatures,
    initialise,
    linear_layers,
    sequence,
)


class MLP(WithSignedFeatures, nn.Module):
    """Linear layers of widths `hidden`, each followed by the activation, and a linear head.

    With `signed_features` no activation follows the last hidden layer.
    """

    batch_norm = False

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        hidden: list[Size],
        activation: Activation,
        init: Init,
        head_init: HeadInit,
        signed_features: bool = False,
    ) -> None:
        super().__init__()
        widths = [prod(shape), *hidden]
        layers = [nn.Flatten(), *linear_layers(widths, activation)]
        self.features = sequence(layers, signed_features)
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.features(x))
