"""Data sets composed of others, as in HALRP (Li et al. 2024): resized, joined or rotated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.base.bounds import Count, Pixels, Text
from cl_bench.base.exceptions import UserError
from cl_bench.data import own, source
from cl_bench.data.arrays import Part, Source, make_source
from cl_bench.data.published import SIDE, TURNS, require_characters, require_joinable, require_small

Fit = Literal["pad", "resize"]
SMALL: dict[str, Callable[..., Source]] = {  # data sets of at most 32 x 32 pixels
    "cifar10": source.cifar10,
    "cifar100": source.cifar100,
    "mnist": source.mnist,
    "mnist5k": source.mnist5k,
    "fashion": source.fashion,
    "kmnist": source.kmnist,
    "notmnist": source.notmnist,
    "svhn": source.svhn,
}


def rgb32(of: str, fit: Fit, data_dir: Text, cache_dir: Text | None = None) -> Source:
    """A data set of small images as (3, 32, 32); a single channel is repeated.

    fit=pad     put black pixels around
    fit=resize  enlarge, bilinear
    """
    require_small(of)
    found = SMALL[of](data_dir, cache_dir)
    wide = _padded if fit == "pad" else _enlarged
    train, test = (wide(found.train_x), found.train_y), (wide(found.test_x), found.test_y)
    provenance = {**found.provenance, "resize": f"by {fit} to 32x32, in three channels"}
    return make_source(f"{found.name}-rgb32", train, test, found.classes, found.groups, provenance)


def joined(of: list[str], data_dir: Text, cache_dir: Text | None = None) -> Source:
    """Several data sets of (3, 32, 32) joined into one, with all of their classes in order.

    Each data set is a superclass, so that order=superclass makes it a task.
    """
    require_joinable(of)
    found = {name: rgb32(name, "pad", data_dir, cache_dir) for name in of}
    return _joined(found, lambda x: x, "+".join(of))


def _joined(of: dict[str, Source], view: Callable[[Tensor], Tensor], name: str) -> Source:
    """One source of several, whose images `view` brings to one shape."""
    found = [*of.values()]
    offsets = torch.tensor([0, *(len(one.classes) for one in found)]).cumsum(0).tolist()
    train = _together([(view(one.train_x), one.train_y) for one in found], offsets)
    test = _together([(view(one.test_x), one.test_y) for one in found], offsets)
    names = tuple(f"{of_name}:{c}" for of_name, one in of.items() for c in one.classes)
    groups = tuple(i for i, one in enumerate(found) for _ in one.classes)
    provenance = {f"{n}: {k}": v for n, one in of.items() for k, v in one.provenance.items()}
    return make_source(name, train, test, names, groups, provenance)


def sequence(
    of: dict[str, str | Source], size: Pixels, data_dir: Text, cache_dir: Text | None = None
) -> Source:
    """Several data sets joined into one as (3, size, size), with all of their classes in order.

    `of` has for each name of a data set either a name of `SMALL`, or a source that was loaded, or
    (train, test) as a function of the user's returns them for `own.arrays`. Each is a superclass,
    so that order=superclass makes it a task. Images of another size are resized, bilinear.
    """
    if not of:
        raise UserError(
            "dataset.source.of: names no data set; +dataset.source.of.<name>=<data set>, for "
            f"example of {', '.join(SMALL)}"
        )
    found: dict[str, Source] = {}
    for name, given in of.items():
        if isinstance(given, str):
            require_small(given)
            found[name] = SMALL[given](data_dir, cache_dir)
        else:
            loaded = isinstance(given, Source)
            found[name] = given if loaded else own.arrays(given, data_dir, cache_dir)
    return _joined(found, lambda x: _resized(x, size), "sequence")


def turned_omniglot(
    classes: Count, size: Pixels, data_dir: Text, cache_dir: Text | None = None
) -> Source:
    """The first `classes` characters of Omniglot, with each drawing in four orientations.

    The rotations by 90, 180 and 270 degrees belong to the drawing's class, as in APD (Yoon et al.
    2020).
    """
    found = source.omniglot(data_dir, size, cache_dir)
    require_characters(classes, len(found.classes))

    def part(x: Tensor, y: Tensor) -> Part:
        x, y = x[y < classes], y[y < classes]
        return torch.cat([x.rot90(k, (2, 3)) for k in range(TURNS)]), y.repeat(TURNS)

    train, test = part(found.train_x, found.train_y), part(found.test_x, found.test_y)
    provenance = {**found.provenance, "turned": "by 0, 90, 180 and 270 degrees"}
    return make_source("omniglot-turned", train, test, found.classes[:classes], None, provenance)


def _enlarged(x: Tensor) -> Tensor:
    """(N, 1 or 3, s, s) uint8 -> (N, 3, 32, 32)."""
    return _resized(x, SIDE)


def _resized(x: Tensor, side: int) -> Tensor:
    """(N, 1 or 3, h, w) uint8 -> (N, 3, side, side)."""
    if x.shape[2:] != (side, side):
        parts = [
            F.interpolate(part.float(), (side, side), mode="bilinear", antialias=True)
            for part in x.split(5_000)
        ]
        x = torch.cat([part.round().byte() for part in parts])
    return x.expand(-1, 3, -1, -1).contiguous()


def _padded(x: Tensor) -> Tensor:
    """(N, 1 or 3, s, s) uint8 -> (N, 3, 32, 32)."""
    before = (SIDE - x.shape[-1]) // 2
    after = SIDE - x.shape[-1] - before
    return F.pad(x, (before, after, before, after)).expand(-1, 3, -1, -1).contiguous()


def _together(parts: list[Part], offsets: list[int]) -> Part:
    xs, ys = zip(*parts, strict=True)
    shifted = [y + offset for y, offset in zip(ys, offsets, strict=False)]
    return torch.cat(xs), torch.cat(shifted)
