"""Plain convolutional networks, among them HALRP's LeNet and AlexNet (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cl_bench.base.bounds import Factor, Padding, Size
from cl_bench.base.exceptions import UserError
from cl_bench.models.layers import (
    ACTIVATIONS,
    Activation,
    Dropout,
    HeadInit,
    Init,
    WithSignedFeatures,
    batch_norm,
    initialise,
    sequence,
)


class ConvNet(WithSignedFeatures, nn.Module):
    """Stages of conv - BN - act - dropout - max-pool 2, linear layers with BN, and a linear head.

    channels, kernels  output channels and kernel size of each stage
    hidden             width of each linear - BN - act - dropout
    dropout            a probability for each stage and then for each layer, or an empty list
    signed_features    no activation follows the last layer before the head
    """

    batch_norm = True

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        channels: list[Size],
        kernels: list[Size],
        padding: Padding,
        hidden: list[Size],
        dropout: list[Factor],
        activation: Activation,
        init: Init,
        head_init: HeadInit,
        signed_features: bool = False,
    ) -> None:
        super().__init__()
        _check_lengths(channels, kernels, hidden, dropout)
        chances = [*dropout, *[0.0] * (len(channels) + len(hidden) - len(dropout))]
        act, layers, before = ACTIVATIONS[activation], [], shape[0]
        for after, kernel, p in zip(channels, kernels, chances, strict=False):
            conv = nn.Conv2d(before, after, kernel, padding=padding)
            layers += [conv, batch_norm(after), act(), *_dropout(p), nn.MaxPool2d(2)]
            before = after
        layers.append(nn.Flatten())
        before = _flat_width(nn.Sequential(*layers), shape)
        for after, p in zip(hidden, chances[len(channels) :], strict=True):
            norm = batch_norm(after, nn.BatchNorm1d)
            layers += [nn.Linear(before, after), norm, act(), *_dropout(p)]
            before = after
        self.features = sequence(layers, signed_features)
        self.head = nn.Linear(before, num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.features(x))


def _check_lengths(
    channels: list[Size], kernels: list[Size], hidden: list[Size], dropout: list[Factor]
) -> None:
    if len(kernels) != len(channels):
        raise UserError(
            f"model.kernels={kernels}: one for each of model.channels={channels} is needed"
        )
    places = len(channels) + len(hidden)
    if dropout and len(dropout) != places:
        raise UserError(f"model.dropout={dropout}: one for each of {places} layers, or []")


def _dropout(p: float) -> list[nn.Module]:
    return [Dropout(p)] if p else []


@torch.no_grad()
def _flat_width(stages: nn.Module, shape: Sequence[int]) -> int:
    """The width of the flattened output for images of this shape; UserError where it is empty."""
    try:
        return stages.eval()(torch.zeros(1, *shape)).shape[1]
    except RuntimeError as error:
        raise UserError(f"model: images of {tuple(shape)} are too small for it ({error})") from None
    finally:
        stages.train()
