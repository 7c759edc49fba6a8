"""Augmentation per sample against torchvision's functional operations, one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from conftest import CPU, DEVICES
from torch import Generator

from cl_bench.base.exceptions import UserError
from cl_bench.data.augment import Transform

X = torch.randint(0, 256, (64, 3, 10, 10), generator=Generator().manual_seed(0)).byte()
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def transform(device: torch.device = CPU, **changes: object) -> Transform:
    options = {
        "crop": None,
        "padding": 0,
        "flip": False,
        "resize": None,
        "brightness": 0.0,
        "augment": "anew",
    }
    return Transform(MEAN, STD, **{**options, **changes}, device=device)  # type: ignore[arg-type]


def test_every_sample_is_a_crop_of_its_padded_self_flipped_or_not() -> None:
    drawn = transform(crop=10, padding=2, flip=True).draw(X, Generator().manual_seed(1))
    assert drawn.dtype == torch.uint8 and drawn.shape == X.shape
    seen = set()
    for image, out in zip(X, drawn, strict=True):
        padded = tv.pad(image, [2, 2, 2, 2])
        options = {
            (top, left, mirrored): crop.flip(-1) if mirrored else crop
            for top in range(5)
            for left in range(5)
            for crop in [tv.crop(padded, top, left, 10, 10)]
            for mirrored in (False, True)
        }
        found = [key for key, option in options.items() if option.equal(out)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 30, "each sample has its own draw"


def test_draws_are_uniform() -> None:
    """Each of the nine places and both directions at its share, over 9,000 samples."""
    image = torch.arange(16).view(1, 1, 4, 4).byte().expand(9_000, 1, 4, 4)
    drawn = transform(crop=2, flip=True).draw(image, Generator().manual_seed(0))
    corners = drawn[:, 0, 0].long() @ torch.tensor([16, 1])
    counts = corners.bincount()
    counts = counts[counts > 0]
    assert len(counts) == 18 and counts.min() > 400 and counts.max() < 600


def test_padding_alone_moves_the_window_and_keeps_the_size() -> None:
    made = transform(padding=2)
    drawn = made.draw(X, Generator().manual_seed(1))
    assert drawn.shape == X.shape and not drawn.equal(X)
    assert made.view(drawn).shape == made.view(X).shape


def test_channels_must_agree() -> None:
    with pytest.raises(UserError, match="mean and std of 3 channels, the images have 1"):
        transform().view(X[:, :1])


def test_a_crop_larger_than_the_image() -> None:
    with pytest.raises(UserError, match=r"dataset\.transform\.crop=16: the padded images have 14"):
        transform(crop=16, padding=2).draw(X, Generator())


def test_nothing_to_draw_is_no_copy() -> None:
    assert transform().draw(X, Generator()) is X


def test_view_normalises_as_torchvision() -> None:
    expected = tv.normalize(X.float() / 255, MEAN, STD)
    torch.testing.assert_close(transform().view(X), expected, rtol=1e-5, atol=1e-5)
    cropped = tv.center_crop(expected, [6, 6])
    torch.testing.assert_close(transform(crop=6).view(X), cropped, rtol=1e-5, atol=1e-5)
    same = transform(crop=6).view(transform(crop=6).draw(X, Generator()))
    assert same.shape == cropped.shape, "what is cropped already is left as it is"


def test_view_resizes_as_torchvision() -> None:
    expected = tv.resize(tv.normalize(X.float() / 255, MEAN, STD), [7, 7], antialias=True)
    torch.testing.assert_close(transform(resize=7).view(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_on_the_device(device: str) -> None:
    where = torch.device(device)
    made = transform(where, crop=8, padding=1, flip=True)
    rng = Generator(where).manual_seed(0)
    drawn = made.draw(X.to(where), rng)
    assert drawn.device.type == device and drawn.shape == (64, 3, 8, 8)
    again = made.draw(X.to(where), Generator(where).manual_seed(0))
    assert again.equal(drawn) and made.view(drawn).device.type == device


def test_brightness_is_a_factor_for_each_image() -> None:
    """As torchvision's, of factors uniform in [1 - b, 1 + b]."""
    drawn = transform(brightness=0.3).draw(X, Generator().manual_seed(1))
    factors = 1 + 0.3 * (2 * torch.rand(64, generator=Generator().manual_seed(1)) - 1)
    for image, out, factor in zip(X, drawn, factors.tolist(), strict=True):
        off = out.int() - tv.adjust_brightness(image, factor).int()
        assert off.abs().max() <= 1 and (off != 0).float().mean() < 0.01, "but for rounding"
    white = torch.full((9_000, 1, 1, 1), 100, dtype=torch.uint8)
    levels = transform(brightness=0.2).draw(white, Generator().manual_seed(0)).flatten()
    assert int(levels.min()) == 80 and int(levels.max()) == 119
    counts = levels.int().bincount()[80:]
    assert counts.min() > 150 and counts.max() < 300


def test_brightness_comes_after_the_windows() -> None:
    """The same windows as without it, and the border stays black."""
    changes: dict[str, Any] = {"crop": 10, "padding": 2, "flip": True}
    rng = Generator().manual_seed(1)
    plain = transform(**changes).draw(X, rng)
    factors = 1 + 0.5 * (2 * torch.rand(64, 1, 1, 1, generator=rng) - 1)
    found = transform(**changes, brightness=0.5).draw(X, Generator().manual_seed(1))
    assert found.equal((plain * factors).clamp(max=255).byte()) and not found.equal(plain)
