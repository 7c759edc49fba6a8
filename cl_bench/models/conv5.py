"""Convolutions with batch norm, then two wide linear layers (van de Ven et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal

from torch import Tensor, nn

from cl_bench.base.bounds import Size
from cl_bench.models.layers import (
    ACTIVATIONS,
    Activation,
    HeadInit,
    Init,
    WithSignedFeatures,
    batch_norm,
    initialise,
    linear_layers,
    sequence,
)


class Conv5(WithSignedFeatures, nn.Module):
    """3x3 convolutions (`convs`), linear layers (`layers`), and a linear head.

    channels         outputs of each convolution, which batch norm and the activation follow; all
                     but the first one halve the side of their input (rounded up)
    last             linear: neither batch norm nor the activation follows the last convolution, as
                     in the authors' code; same: both follow it, too
    hidden           widths of the linear layers, each followed by the activation
    signed_features  no activation follows the last layer before the head
    """

    batch_norm = True

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        channels: list[Size],
        last: Literal["linear", "same"],
        hidden: list[Size],
        activation: Activation,
        init: Init,
        head_init: HeadInit,
        signed_features: bool = False,
    ) -> None:
        super().__init__()
        stages, (before, height, width) = [], shape
        for number, after in enumerate(channels):
            stride, alone = 2 if number else 1, last == "linear" and number == len(channels) - 1
            stages.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=alone))
            stages += [] if alone else [batch_norm(after), ACTIVATIONS[activation]()]
            before, height, width = after, ceil(height / stride), ceil(width / stride)
        widths = [before * height * width, *hidden]
        self.convs = sequence([*stages, nn.Flatten()], signed_features and not hidden)
        self.layers = sequence(linear_layers(widths, activation), signed_features)
        self.head = nn.Linear(widths[-1], num_classes)
        initialise(self, self.head, init, head_init)

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """With last=same a config has the hash that it had before there was this option."""
        last = {"last"} if options["last"] == "same" else set()
        return last | super().unused_options(options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.layers(self.convs(x)))
