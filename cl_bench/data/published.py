"""What is known of a data set before it is read: how many images of which shape and classes.

With it a config that asks for more than there is is refused before anything is loaded (`check`),
and a network is measured before it is built (`size`). Of an image folder the shape alone is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Source
from cl_bench.data.superclasses import GROUPS

SIDE = 32  # of the images of composed data sets
CHARACTERS, DRAWINGS = 1623, (16, 4)  # Omniglot's, and of each those for training and for test
TURNS = 4  # of each drawing in turned Omniglot


Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Contents:
    """The numbers of a data set; None is unknown, but for groups, where it is none."""

    name: str
    shape: Shape  # of every image
    classes: int | None = None
    train: tuple[int, ...] | None = None  # training images of each class
    test: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None  # coarse class of each class
    total: int | None = None  # training images, where only their sum is known

    @property
    def images(self) -> int | None:
        """All training images."""
        return self.total if self.train is None else sum(self.train)


def measured(source: Source) -> Contents:
    """The contents of a source that was read."""
    classes = len(source.classes)
    channels, height, width = source.train_x.shape[1:]
    return Contents(
        name=source.name,
        shape=(channels, height, width),
        classes=classes,
        train=tuple(source.train_y.bincount(minlength=classes).tolist()),
        test=tuple(source.test_y.bincount(minlength=classes).tolist()),
        groups=source.groups,
    )


def published(node: dict[str, Any]) -> Contents | None:
    """What is known of the source that a config's `dataset.source` describes; None: nothing.

    UserError where the node asks for what the data set does not have.
    """
    module, _, name = str(node.get("_target_")).rpartition(".")
    if module == "cl_bench.data.source" and name in PUBLISHED:
        return PUBLISHED[name]
    made = MADE.get(f"{module}.{name}")
    return None if made is None else made(node)


def _even(name: str, side: int, classes: int, train: int, test: int, channels: int = 3) -> Contents:
    """As many images of each class."""
    shape = (channels, side, side)
    return Contents(name, shape, classes, (train,) * classes, (test,) * classes)


PUBLISHED = {
    "mnist5k": _even("mnist5k", 28, 10, 400, 100, channels=1),
    "mnist": Contents(
        "mnist",
        (1, 28, 28),
        10,
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion": _even("fashion", 28, 10, 6000, 1000, channels=1),
    "kmnist": _even("kmnist", 28, 10, 6000, 1000, channels=1),
    "cifar10": _even("cifar10", 32, 10, 5000, 1000),
    "cifar100": replace(_even("cifar100", 32, 100, 500, 100), groups=GROUPS),
    "svhn": Contents(
        "svhn",
        (3, 32, 32),
        10,
        (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    ),
    "notmnist": Contents("notmnist", (3, 28, 28), 10),
    "tinyimagenet": _even("tinyimagenet", 64, 200, 500, 50),
    "miniimagenet": _even("miniimagenet", 84, 100, 500, 100),
    "mit67": Contents("mit67", (3, 256, 256), 67),
    "imagenet32": Contents("imagenet32", (3, 32, 32), 1000, test=(50,) * 1000, total=1_281_167),
}
SMALL = ("cifar10", "cifar100", "mnist", "mnist5k", "fashion", "kmnist", "notmnist", "svhn")


def require_small(of: str) -> None:
    """UserError unless a data set of 32 pixels or fewer has this name."""
    if of not in SMALL:
        raise UserError(f"dataset.source.of={of}: no such data set; there are {', '.join(SMALL)}")


def require_joinable(of: list[str]) -> None:
    """UserError unless these are two or more data sets of 32 pixels or fewer, each once."""
    if len(of) < 2 or len(set(of)) < len(of):
        raise UserError(f"dataset.source.of={of}: two or more data sets are joined, each once")
    for name in of:
        require_small(name)


def require_characters(classes: int, there: int) -> None:
    """UserError unless so many of Omniglot's characters are there."""
    if classes > there:
        raise UserError(f"dataset.source.classes={classes}: Omniglot has {there}")


def _folder(node: dict[str, Any]) -> Contents:
    return Contents(PurePath(node["path"]).name, _square(node["size"]))


def _omniglot(node: dict[str, Any]) -> Contents:
    return _even("omniglot", node["size"], CHARACTERS, *DRAWINGS)


def _turned(node: dict[str, Any]) -> Contents:
    require_characters(node["classes"], CHARACTERS)
    counts = (TURNS * drawings for drawings in DRAWINGS)
    return _even("omniglot-turned", node["size"], node["classes"], *counts)


def _rgb32(node: dict[str, Any]) -> Contents:
    require_small(node["of"])
    known = PUBLISHED[node["of"]]
    return replace(known, name=f"{known.name}-rgb32", shape=_square(SIDE))


def _joined(node: dict[str, Any]) -> Contents:
    require_joinable(node["of"])
    parts = [PUBLISHED[name] for name in node["of"]]
    groups = tuple(i for i, part in enumerate(parts) for _ in range(part.classes or 0))
    trains, tests = [part.train for part in parts], [part.test for part in parts]
    return Contents(
        "+".join(node["of"]),
        _square(SIDE),
        sum(part.classes or 0 for part in parts),
        _together(trains),
        _together(tests),
        groups,
    )


def _together(parts: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = [part for part in parts if part is not None]
    return tuple(n for part in known for n in part) if len(known) == len(parts) else None


def _square(side: int) -> Shape:
    return 3, side, side


MADE: dict[str, Callable[[dict[str, Any]], Contents]] = {
    "cl_bench.data.source.folder": _folder,
    "cl_bench.data.source.omniglot": _omniglot,
    "cl_bench.data.composed.turned_omniglot": _turned,
    "cl_bench.data.composed.rgb32": _rgb32,
    "cl_bench.data.composed.joined": _joined,
}
