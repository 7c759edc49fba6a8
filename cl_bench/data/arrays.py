"""Source: the arrays of one data set and the hash that identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor

TENSORS = ("train_x", "train_y", "test_x", "test_y")
Part = tuple[Tensor, Tensor]  # x (N, C, H, W) uint8, y (N,) int64


@dataclass(frozen=True)
class Source:
    """A data set in memory, before it is cut into tasks."""

    name: str
    train_x: Tensor  # (N, C, H, W) uint8
    train_y: Tensor  # (N,) int64 class ids 0..K-1
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]  # class names, index = class id
    groups: tuple[int, ...] | None  # coarse class of each class (CIFAR-100)
    sha256: str  # `digest` of the four tensors
    provenance: dict[str, str]  # origin, layout, order, resize, versions


def sealed(
    name: str,
    train: Part,
    test: Part,
    classes: tuple[str, ...],
    groups: tuple[int, ...] | None,
    provenance: dict[str, str],
) -> Source:
    """A source with the hash of its tensors."""
    return Source(name, *train, *test, classes, groups, digest(*train, *test), provenance)


def digest(*tensors: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of contiguous CPU tensors, in order; copies nothing."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).numpy().data)
    return sha.hexdigest()


def versions(*packages: str) -> str:
    """`package version, package version`, of installed packages."""
    return ", ".join(f"{package} {version(package)}" for package in packages)
