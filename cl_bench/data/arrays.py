"""Source: the arrays of one data set, and the hash that identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor

TENSORS = ("train_x", "train_y", "test_x", "test_y")
Part = tuple[Tensor, Tensor]  # x (N, C, H, W) uint8, y (N,) int64


@dataclass(frozen=True)
class Source:
    """A data set in memory, on the CPU, before it is cut into tasks."""

    name: str
    train_x: Tensor  # (N, C, H, W) uint8
    train_y: Tensor  # (N,) int64 class ids 0 to K - 1
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]  # class names, index = class id
    groups: tuple[int, ...] | None  # superclass of each class; None: there are none
    sha256: str  # `digest` of the four tensors
    provenance: dict[str, str]  # origin, layout, order, resize, versions


def make_source(
    name: str,
    train: Part,
    test: Part,
    classes: tuple[str, ...],
    groups: tuple[int, ...] | None,
    provenance: dict[str, str],
) -> Source:
    """Build a `Source` from its parts, and compute the hash of its tensors."""
    return Source(name, *train, *test, classes, groups, digest(*train, *test), provenance)


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the dtype, shape and bytes of contiguous CPU tensors, without copying them."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).numpy().data)
    return sha.hexdigest()


def versions(*packages: str) -> str:
    """The installed versions of some packages, as `package version, package version`."""
    return ", ".join(f"{package} {version(package)}" for package in packages)
