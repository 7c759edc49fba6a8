"""Residual networks (He et al. 2016, arXiv:1512.03385), for small images and for 224 pixels.

ResNet-32 is the paper's network for CIFAR (section 4.2), with 464,154 parameters for 10 outputs.
ResNet-18 of width 20 is the "reduced ResNet-18" of GEM (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)
with 1,109,240 parameters for 100 outputs, and of width 64 the usual network for 32x32 images with
11,220,132.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from cl_bench.base.bounds import Size
from cl_bench.base.exceptions import UserError
from cl_bench.models.layers import (
    ACTIVATIONS,
    Activation,
    HeadInit,
    Init,
    PublishedHead,
    WithSignedFeatures,
    batch_norm,
    drop_batch_count,
    initialise,
)

SAFE_CHANNELS = 8  # fewer input channels need the workaround in `Block`


class Block(nn.Module):
    """conv3x3 - BN - act - conv3x3 - BN, plus the shortcut, then act.

    Where shapes change, the shortcut is a strided 1x1 convolution with BN (the paper's option B);
    with projected=False it has every `stride`-th pixel, and zeros in new channels (option A). With
    fewer than eight input channels, the image is subsampled before a 1x1 convolution without
    stride: on CPUs without AVX-512, in channels_last, the backward pass of a strided one in PyTorch
    2.14 writes beyond its memory.
    """

    def __init__(
        self, before: int, after: int, stride: int, activation: Activation, projected: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = batch_norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = batch_norm(after)
        self.shortcut = nn.Sequential()
        self.subsample = stride if before < SAFE_CHANNELS or not projected else 1
        if not projected and after != before:
            self.shortcut.append(nn.ZeroPad3d((0, 0, 0, 0, 0, after - before)))
        elif projected and (stride != 1 or before != after):
            conv = nn.Conv2d(before, after, 1, stride // self.subsample, bias=False)
            self.shortcut = nn.Sequential(conv, batch_norm(after))
        self.act1, self.act2 = ACTIVATIONS[activation](), ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        kept = x if self.subsample == 1 else x[:, :, :: self.subsample, :: self.subsample]
        return self.act2(self.bn2(self.conv2(out)) + self.shortcut(kept))


class ResNet18(WithSignedFeatures, nn.Module):
    """conv3x3 - BN - act, four stages of two blocks (strides 1, 2, 2, 2), mean, head.

    Each stage has twice the channels of the one before. With `signed_features` no activation
    follows the last block.
    """

    batch_norm = True
    stages: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)  # blocks of each
    projected: ClassVar[bool] = True  # shortcuts where shapes change

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        width: Size,
        activation: Activation,
        init: Init,
        head_init: HeadInit,
        signed_features: bool = False,
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(shape[0], width, 3, 1, 1, bias=False)
        self.stem = nn.Sequential(stem, batch_norm(width), ACTIVATIONS[activation]())
        blocks, before = [], width
        for stage, count in enumerate(self.stages):
            after = width * 2**stage
            for stride in (1 if stage == 0 else 2, *[1] * (count - 1)):
                blocks.append(Block(before, after, stride, activation, self.projected))
                before = after
        if signed_features:
            blocks[-1].act2 = nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, num_classes)
        initialise(self, self.head, init, head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, K)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, d)."""
        return self.blocks(self.stem(x)).mean((2, 3))


class ResNet32(ResNet18):
    """conv3x3 - BN - act, three stages of five blocks (strides 1, 2, 2), mean, head.

    iCaRL was published with it on CIFAR-100, of width 16 and with `signed_features`. LUCIR's has
    projected shortcuts.
    """

    stages = (5, 5, 5)
    projected = False


class TorchvisionResNet18(nn.Module):
    """torchvision's ResNet-18 (7x7 stem, max-pooling), for images of 224 pixels.

    head_init=pretrained keeps the head of the pre-trained network, with its 1,000 classes.
    """

    batch_norm = True
    head_name = "net.fc"

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        activation: Activation,
        head_init: PublishedHead,
    ) -> None:
        from torchvision.models.resnet import BasicBlock, ResNet

        class Added(BasicBlock):
            """torchvision's block without in-place sum, so that hooks see each layer's output."""

            def forward(self, x: Tensor) -> Tensor:
                out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
                return self.relu(out + (x if self.downsample is None else self.downsample(x)))

        super().__init__()
        if shape[0] != 3:
            raise UserError(
                f"model: torchvision's ResNet-18 sees 3 channels, the data has {shape[0]}"
            )
        self.net = ResNet(Added, [2, 2, 2, 2], num_classes)
        for module in list(self.net.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, ACTIVATIONS[activation]())
                if isinstance(child, nn.BatchNorm2d):
                    drop_batch_count(child)
        initialise(self, self.net.fc, "torch", head_init)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, K)."""
        return self.net(x)
