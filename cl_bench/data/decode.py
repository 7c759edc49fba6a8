"""Decodes image files into one uint8 tensor; no other module imports PIL.

PIL recognises a file's format by its content. It may open formats of photographs only, because
others, such as EPS, are programs for which PIL would start an interpreter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from cl_bench.base import files
from cl_bench.base.exceptions import UserError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

THREADS = 4
BLOCK = 32  # images that a thread decodes at a time
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF")
PROGRESS_SECONDS = 10.0  # seconds between lines of progress where there is no terminal
Item = TypeVar("Item")
Fit = Callable[["Image", int], "Image"]  # `resize` or `require_size`


def decode(
    name: str, images: Sequence[Path], size: int, fit: Fit, broken: dict[int, str] | None = None
) -> Tensor:
    """Decode `images` in order to (N, 3, size, size) uint8 RGB; `fit` brings each to that size.

    Raises UserError for an image that cannot be read, unless there is `broken`: then the image is
    black, and its index is put there with the reason.
    """
    out = np.zeros((len(images), 3, size, size), np.uint8)

    def block(start: int) -> None:
        for i in range(start, min(start + BLOCK, len(images))):
            try:
                out[i] = _pixels(name, images[i], size, fit)
            except UserError as error:
                if broken is None:
                    raise
                broken[i] = str(error)

    starts = range(0, len(images), BLOCK)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in shown_progress(pool.map(block, starts), len(images), name, BLOCK):
            pass
    return torch.from_numpy(out)


def resize(image: Image, size: int) -> Image:
    """Resize to size x size, bilinear with antialiasing, whatever the aspect ratio."""
    from PIL.Image import Resampling

    return image.resize((size, size), Resampling.BILINEAR)


def require_size(image: Image, size: int) -> Image:
    """Return the image unchanged; raise ValueError where it is not size x size."""
    if image.size != (size, size):
        raise ValueError(f"is {image.width}x{image.height} instead of {size}x{size}")
    return image


def _pixels(name: str, file: Path, size: int, fit: Fit) -> np.ndarray:
    """(3, size, size) uint8 of one file; UserError where it cannot be decoded."""
    from PIL import Image

    try:
        files.require_regular(file)
        with Image.open(file, formats=FORMATS) as image:
            return np.asarray(fit(_rgb(image), size)).transpose(2, 0, 1)
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        system = error.strerror if isinstance(error, OSError) else None
        reason = system or one_line(error)
        raise UserError(f"{name}: cannot use the image {file}: {reason}") from error


def _rgb(image: Image) -> Image:
    """Convert to RGB without alpha; raise ValueError for more than 8 bits, which PIL would clip."""
    if image.mode[0] in "IF":
        raise ValueError(f"its mode {image.mode} is deeper than 8 bits")
    if "transparency" in image.info:  # PIL warns if a palette with alpha goes straight to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")


def shown_progress(blocks: Iterable[Item], images: int, name: str, size: int = 1) -> Iterator[Item]:
    """Each of the blocks of `size` images, with a progress bar, or a line every PROGRESS_SECONDS.

    The lines are for where there is no terminal.
    """
    from tqdm import tqdm

    total, unit = -(-images // size), f"x{size}" if size > 1 else " images"
    bar = tqdm(blocks, f"{name}: decoding", total, disable=None, unit=unit)
    due = time.monotonic() + PROGRESS_SECONDS
    for done, block in enumerate(bar, 1):
        if bar.disable and time.monotonic() > due:
            print(f"{name}: decoded {min(done * size, images)} of {images} images", file=sys.stderr)
            due += PROGRESS_SECONDS
        yield block
