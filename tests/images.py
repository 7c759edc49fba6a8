"""Small images and image folders for the tests of data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cl_bench.base.exceptions import UserError


def paint(file: Path, shade: int, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(file)


def image_folder(root: Path, classes: str, train: int, test: int) -> None:
    """Image i of class k has shade 10 k + i in train and 100 more in test."""
    for k, name in enumerate(classes.split()):
        for split, count, base in (("train", train, 10 * k), ("test", test, 10 * k + 100)):
            for i in reversed(range(count)):
                paint(root / split / name / f"{i}.png", base + i)


def shades(x: torch.Tensor) -> list[int]:
    return x[:, 0, 0, 0].tolist()


def refusal(load: Callable[..., object], *args: str | int) -> str:
    """The one line that `load(*args)` ends in."""
    with pytest.raises(UserError) as error:
        load(*args)
    assert "\n" not in str(error.value)
    return str(error.value)
