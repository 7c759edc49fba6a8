"""EfficientNet-Lite (Liu 2020, in Google's TPU repository), without squeeze-and-excitation.

Its activation is ReLU6. As in TensorFlow, a convolution gives ceil(n / stride) rows of n, and where
an odd number of zeros is put around the image, the extra one is at the bottom and at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from cl_bench.base.bounds import Positive
from cl_bench.base.exceptions import UserError
from cl_bench.models.layers import (
    ACTIVATIONS,
    Activation,
    Init,
    PublishedHead,
    batch_norm,
    initialise,
)

STEM, LAST = 32, 1280  # channels of the first and of the last convolution, at every width
MULTIPLE = 8  # channels are rounded to multiples of it


class Stage(NamedTuple):
    """Equal blocks in sequence, of which only the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (  # of EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946, table 1)
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SamePadding(nn.Module):
    """Zeros around images, for a convolution without padding: TensorFlow's padding "SAME"."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        (top, bottom), (left, right) = (self._zeros(n) for n in x.shape[-2:])
        return F.pad(x, (left, right, top, bottom))

    def _zeros(self, length: int) -> tuple[int, int]:
        """The number of zeros before and after a row of `length` pixels."""
        covered = (ceil(length / self.stride) - 1) * self.stride + self.kernel
        zeros = max(covered - length, 0)
        return zeros // 2, zeros - zeros // 2


def convolution(
    before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Padding (where the kernel needs it), a convolution without bias, and batch norm."""
    conv = nn.Conv2d(before, after, kernel, stride, groups=groups, bias=False)
    # published with momentum 0.01, which follows in some 300 steps; a task may have 50
    norm = batch_norm(after, eps=1e-3, momentum=0.1)
    return [SamePadding(kernel, stride), conv, norm] if kernel > 1 else [conv, norm]


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, a depthwise one, and a 1x1 convolution to fewer.

    Batch norm follows each of the three, and the activation the first two. The input is added where
    it has the shape of the output.
    """

    def __init__(self, before: int, stage: Stage, stride: int, activation: Activation) -> None:
        super().__init__()
        act, inner, after = ACTIVATIONS[activation], before * stage.expansion, stage.channels
        self.expand = nn.Sequential()
        if stage.expansion != 1:
            self.expand = nn.Sequential(*convolution(before, inner), act())
        depthwise = convolution(inner, inner, stage.kernel, stride, groups=inner)
        self.depthwise = nn.Sequential(*depthwise, act())
        self.project = nn.Sequential(*convolution(inner, after))
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """A 3x3 convolution of stride 2, seven stages of blocks, a 1x1 convolution, mean, head.

    width  factor of the channels of EfficientNet-B0's stages, which are rounded to multiples of 8
    depth  factor of the number of blocks of a stage, rounded up; not of the first and the last

    head_init=pretrained keeps the head of the pre-trained network, with its 1,000 classes.
    """

    batch_norm = True

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        width: Positive,
        depth: Positive,
        activation: Activation,
        init: Init,
        head_init: PublishedHead,
    ) -> None:
        super().__init__()
        if shape[0] != 3:
            raise UserError(f"model: EfficientNet-Lite sees 3 channels, the data has {shape[0]}")
        act = ACTIVATIONS[activation]
        self.stem = nn.Sequential(*convolution(3, STEM, 3, 2), act())
        blocks, before = [], STEM
        for stage in scaled_stages(width, depth):
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(before, stage, stride, activation))
                before = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*convolution(before, LAST), act())
        self.head = nn.Linear(LAST, num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, K)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, 1280)."""
        return self.last(self.blocks(self.stem(x))).mean((2, 3))


def scaled_stages(width: float, depth: float) -> list[Stage]:
    """The stages with more channels and blocks."""
    ends = (0, len(STAGES) - 1)
    return [
        stage._replace(
            channels=_rounded(width * stage.channels),
            blocks=stage.blocks if index in ends else ceil(depth * stage.blocks),
        )
        for index, stage in enumerate(STAGES)
    ]


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, or the next one where that is more than a tenth smaller."""
    nearest = max(MULTIPLE, int(channels + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return nearest + MULTIPLE if nearest < 0.9 * channels else nearest
