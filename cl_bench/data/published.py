"""What is known of a data set before it is read: its image shape, and the images of each class.

With these numbers `check` refuses a config that asks for more than the data set has, and
`config.size` computes the size of a network, both before anything is loaded. Of an image folder
only the shape is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Source
from cl_bench.data.superclasses import GROUPS

SIDE = 32  # pixels of an image's side in `composed.rgb32`
CHARACTERS, DRAWINGS = 1623, (16, 4)  # of Omniglot: classes; training and test images of each
TURNS = 4  # orientations of each drawing in `composed.turned_omniglot`


Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Contents:
    """The shape of a data set's images and their numbers; None where a number is not known."""

    name: str
    shape: Shape  # of each image
    classes: int | None = None
    train: tuple[int, ...] | None = None  # training images of each class
    test: tuple[int, ...] | None = None  # test images of each class
    groups: tuple[int, ...] | None = None  # superclass of each class; None: there are none
    total: int | None = None  # training images in all, where only this is known

    @property
    def images(self) -> int | None:
        """The number of training images."""
        return self.total if self.train is None else sum(self.train)


def contents_of(source: Source) -> Contents:
    """The contents of a source, counted."""
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


def known_contents(node: dict[str, Any]) -> Contents | None:
    """The contents of the data set that `dataset.source` of a config names; None where not known.

    Raises UserError where the node asks for what the data set does not have.
    """
    module, _, name = str(node.get("_target_")).rpartition(".")
    if module == "cl_bench.data.source" and name in PUBLISHED:
        return PUBLISHED[name]
    made = COMPUTED.get(f"{module}.{name}")
    return None if made is None else made(node)


def _balanced(
    name: str, side: int, classes: int, train: int, test: int, channels: int = 3
) -> Contents:
    """The contents of a data set with the same number of images in each class."""
    shape = (channels, side, side)
    return Contents(name, shape, classes, (train,) * classes, (test,) * classes)


PUBLISHED = {
    "mnist5k": _balanced("mnist5k", 28, 10, 400, 100, channels=1),
    "mnist": Contents(
        "mnist",
        (1, 28, 28),
        10,
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion": _balanced("fashion", 28, 10, 6000, 1000, channels=1),
    "kmnist": _balanced("kmnist", 28, 10, 6000, 1000, channels=1),
    "cifar10": _balanced("cifar10", 32, 10, 5000, 1000),
    "cifar100": replace(_balanced("cifar100", 32, 100, 500, 100), groups=GROUPS),
    "svhn": Contents(
        "svhn",
        (3, 32, 32),
        10,
        (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    ),
    "notmnist": Contents("notmnist", (3, 28, 28), 10),
    "tinyimagenet": _balanced("tinyimagenet", 64, 200, 500, 50),
    "miniimagenet": _balanced("miniimagenet", 84, 100, 500, 100),
    "mit67": Contents("mit67", (3, 256, 256), 67),
    "imagenet32": Contents("imagenet32", (3, 32, 32), 1000, test=(50,) * 1000, total=1_281_167),
}
# data sets of at most 32 x 32 pixels
SMALL = ("cifar10", "cifar100", "mnist", "mnist5k", "fashion", "kmnist", "notmnist", "svhn")


def require_small(of: str) -> None:
    """Raise UserError unless `of` names a data set of `SMALL`."""
    if of not in SMALL:
        raise UserError(f"dataset.source.of={of}: no such data set; there are {', '.join(SMALL)}")


def require_joinable(of: list[str]) -> None:
    """Raise UserError unless `of` names two or more data sets of `SMALL`, each once."""
    if len(of) < 2 or len(set(of)) < len(of):
        raise UserError(f"dataset.source.of={of}: two or more data sets are joined, each once")
    for name in of:
        require_small(name)


def require_characters(classes: int, there: int) -> None:
    """Raise UserError where more characters are asked for than there are."""
    if classes > there:
        raise UserError(f"dataset.source.classes={classes}: Omniglot has {there}")


def _folder(node: dict[str, Any]) -> Contents:
    return Contents(PurePath(node["path"]).name, _square(node["size"]))


def _omniglot(node: dict[str, Any]) -> Contents:
    return _balanced("omniglot", node["size"], CHARACTERS, *DRAWINGS)


def _turned(node: dict[str, Any]) -> Contents:
    require_characters(node["classes"], CHARACTERS)
    counts = (TURNS * drawings for drawings in DRAWINGS)
    return _balanced("omniglot-turned", node["size"], node["classes"], *counts)


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


COMPUTED: dict[str, Callable[[dict[str, Any]], Contents]] = {
    "cl_bench.data.source.folder": _folder,
    "cl_bench.data.source.omniglot": _omniglot,
    "cl_bench.data.composed.turned_omniglot": _turned,
    "cl_bench.data.composed.rgb32": _rgb32,
    "cl_bench.data.composed.joined": _joined,
}
