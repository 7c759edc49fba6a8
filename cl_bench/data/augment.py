"""Augmentation and normalisation of images on the device, drawn for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cl_bench.base.bounds import Padding, Pixels, Positive, Share
from cl_bench.base.exceptions import UserError


class Transform:
    """Turns uint8 pixels into the network's input.

    draw  augments at random: pad with black, crop at a random place, flip with probability 1/2,
          multiply with a factor from [1 - brightness, 1 + brightness]
    view  is deterministic: crop the centre if not cropped yet, resize, (x / 255 - mean) / std

    augment=anew  an image is augmented for each use, and a memory stores it raw
    augment=once  it is augmented when its batch comes, and a memory stores it so
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[Positive],
        crop: Pixels | None,
        padding: Padding,
        flip: bool,
        resize: Pixels | None,
        brightness: Share,
        augment: Literal["anew", "once"],
        device: torch.device,
    ) -> None:
        self.crop, self.padding, self.flip, self.resize = crop, padding, flip, resize
        self.brightness, self.once = brightness, augment == "once"
        centre = torch.tensor(mean, device=device).view(-1, 1, 1)
        spread = torch.tensor(std, device=device).view(-1, 1, 1)
        self.scale, self.shift = 1 / (255 * spread), -centre / spread
        self.centred = any(mean)

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """`augment`, where images are not augmented."""
        keys = ("crop", "padding", "flip", "brightness")
        return set() if any(options[key] for key in keys) else {"augment"}

    def draw(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, crop or H, crop or W) uint8, one random draw per sample."""
        if self.crop is not None or self.flip or self.padding:
            x = self._windows(x, rng)
        if self.brightness:
            uniform = torch.rand(len(x), 1, 1, 1, generator=rng, device=x.device)
            factor = 1 + self.brightness * (2 * uniform - 1)
            x = (x * factor).clamp(max=255).to(torch.uint8)  # rounded down, as torchvision does
        return x

    def _windows(self, x: Tensor, rng: Generator) -> Tensor:
        """A random window of each padded image, mirrored at random."""
        height, width = self.crop or x.shape[-2], self.crop or x.shape[-1]
        x = F.pad(x, [self.padding] * 4) if self.padding else x
        rows = _window(x.shape[-2], height, len(x), rng)
        columns = _window(x.shape[-1], width, len(x), rng)
        if self.flip:
            mirrored = torch.rand(len(x), 1, generator=rng, device=x.device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        return x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def view(self, x: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, h, w) float32; UserError for another number of channels."""
        if self.crop is not None and x.shape[-1] > self.crop:
            top, left = (x.shape[-2] - self.crop) // 2, (x.shape[-1] - self.crop) // 2
            x = x[..., top : top + self.crop, left : left + self.crop]
        if len(self.scale) != x.shape[1]:
            raise UserError(
                f"dataset.transform: mean and std of {len(self.scale)} channels, "
                f"the images have {x.shape[1]}; give one value for each, such as "
                f"dataset.transform.mean={_halves(x.shape[1])} "
                f"dataset.transform.std={_halves(x.shape[1])}"
            )
        pixels = x.float() * self.scale
        pixels = pixels + self.shift if self.centred else pixels
        if self.resize is None:
            return pixels
        return F.interpolate(pixels, size=(self.resize,) * 2, mode="bilinear", antialias=True)


def _halves(channels: int) -> str:
    """[0.5,0.5,0.5] for three channels."""
    return f"[{','.join(['0.5'] * channels)}]"


def _window(size: int, out: int, count: int, rng: Generator) -> Tensor:
    """(count, out): for each sample, the indices of a random window of length `out` in `size`."""
    if out > size:
        raise UserError(f"dataset.transform.crop={out}: the padded images have {size} pixels")
    start = torch.randint(size - out + 1, (count, 1), generator=rng, device=rng.device)
    return start + torch.arange(out, device=rng.device)


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate images (N, C, H, W) uint8 counter-clockwise: nearest pixel, black outside."""
    from torchvision.transforms.functional import rotate

    return torch.cat([rotate(part, degrees) for part in x.split(5_000)])
