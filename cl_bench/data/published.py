"""What is known of a published data set before it is read: classes, images, shape.

With it a config that asks for more than there is is refused before anything is loaded, and a
network is measured before it is built. Image folders are not known until they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cl_bench.types import UserError

Shape = tuple[int, int, int]  # C, H, W


@dataclass(frozen=True)
class Published:
    """A data set as it is published."""

    classes: int
    train: int  # images
    test: int
    shape: Shape
    even: bool = True  # whether every class has as many training images
    groups: bool = False  # whether its classes have superclasses


DIGITS = Published(10, 60_000, 10_000, (1, 28, 28), even=False)
KNOWN: dict[str, Published] = {  # by the names of the loaders in `source`
    "mnist5k": Published(10, 4_000, 1_000, (1, 28, 28)),
    "mnist": DIGITS,
    "fashion": replace(DIGITS, even=True),
    "kmnist": replace(DIGITS, even=True),
    "cifar10": Published(10, 50_000, 10_000, (3, 32, 32)),
    "cifar100": Published(100, 50_000, 10_000, (3, 32, 32), groups=True),
    "svhn": Published(10, 73_257, 26_032, (3, 32, 32), even=False),
    "tinyimagenet": Published(200, 100_000, 10_000, (3, 64, 64)),
    "miniimagenet": Published(100, 50_000, 10_000, (3, 84, 84)),
    "imagenet32": Published(1_000, 1_281_167, 50_000, (3, 32, 32), even=False),
}
CHARACTERS, DRAWINGS = 1_623, (16, 4)  # of Omniglot: training and test drawings of each


def published(source: dict[str, Any]) -> Published | None:
    """What is known of a config's `dataset.source`; None: nothing before it is read."""
    module, _, name = source["_target_"].rpartition(".")
    if module == "cl_bench.data.source":
        return _omniglot(source["size"]) if name == "omniglot" else KNOWN.get(name)
    composed: dict[str, Callable[[dict[str, Any]], Published | None]] = {
        "rgb32": lambda node: _coloured(node["of"]),
        "joined": lambda node: _joined(node["of"]),
        "turned_omniglot": lambda node: _turned(node["classes"], node["size"]),
    }
    found = composed.get(name) if module == "cl_bench.data.composed" else None
    return None if found is None else found(source)


def _omniglot(size: int) -> Published:
    train, test = (CHARACTERS * drawings for drawings in DRAWINGS)
    return Published(CHARACTERS, train, test, (3, size, size))


def _coloured(name: str) -> Published | None:
    found = KNOWN.get(name)
    return None if found is None else replace(found, shape=(3, 32, 32))


def _joined(names: list[str]) -> Published | None:
    parts = [part for name in names if (part := _coloured(name)) is not None]
    if not parts or len(parts) < len(names):
        return None
    classes, train, test = (
        sum(getattr(part, field) for part in parts) for field in ("classes", "train", "test")
    )
    return Published(classes, train, test, (3, 32, 32), even=False, groups=True)


def _turned(classes: int, size: int) -> Published:
    train, test = (4 * classes * drawings for drawings in DRAWINGS)
    return Published(classes, train, test, (3, size, size))


def shape_and_classes(dataset: dict[str, Any]) -> tuple[Shape, int] | None:
    """What a network sees of a resolved `dataset`, and how many outputs it needs; None: unknown."""
    known = published(dataset["source"])
    if known is None:
        return None
    channels, height, width = known.shape
    crop, resize = dataset["transform"]["crop"], dataset["transform"]["resize"]
    side = resize or crop
    shape = (channels, side or height, side or width)
    apart = dataset["split"] != "class" and dataset["heads"] == "apart"
    return shape, known.classes * (dataset["tasks"] if apart else 1)


def check(plain: dict[str, Any]) -> None:
    """UserError where a resolved config asks for what its data set does not have."""
    dataset = plain["dataset"]
    count, fraction = dataset["train_per_task"], dataset["fraction"]
    if count is not None and fraction < 1:
        raise UserError(
            f"dataset.fraction={fraction}: dataset.train_per_task={count} says how many already; "
            "one of the two"
        )
    known = published(dataset["source"])
    _check_channels(dataset["transform"], known)
    if known is None:
        return
    if dataset["split"] == "class":
        _check_classes(dataset, plain["scenario"], known)
    there = _images_of_a_task(dataset, known)
    if count is not None and count > there:
        raise UserError(f"dataset.train_per_task={count}: a task has {there} training images")
    _check_crop(dataset["transform"], known)
    _check_holdout(plain["evaluation"], there if count is None else count)


def _check_channels(transform: dict[str, Any], known: Published | None) -> None:
    mean, std = transform["mean"], transform["std"]
    if len(mean) != len(std):
        raise UserError(
            f"dataset.transform.mean={mean}: has {len(mean)} values and dataset.transform.std has "
            f"{len(std)}; each needs one for every channel"
        )
    if known is not None and len(mean) not in (1, known.shape[0]):
        raise UserError(
            f"dataset.transform.mean={mean}: the images have {known.shape[0]} channels, not "
            f"{len(mean)}; give one value for each"
        )


def _check_classes(dataset: dict[str, Any], scenario: dict[str, Any], known: Published) -> None:
    tasks = dataset["tasks"]
    if tasks > known.classes:
        raise UserError(f"dataset.tasks={tasks}: {dataset['name']} has {known.classes} classes")
    if dataset["order"] == "superclass" and not known.groups:
        raise UserError(
            f"dataset.order=superclass: {dataset['name']} has no superclasses; use natural, random"
        )
    if scenario["name"] == "task" and known.classes // tasks < 2:
        raise UserError(alone(tasks))


def alone(tasks: int) -> str:
    """What is said of a stream in which one class stands alone."""
    return (
        f"dataset.tasks={tasks}: in this scenario a task of one class leaves nothing to tell "
        "apart; use fewer tasks, or scenario=class or data"
    )


def _images_of_a_task(dataset: dict[str, Any], known: Published) -> int:
    """The training images of every task, or at least those that no task has more of."""
    tasks, split = dataset["tasks"], dataset["split"]
    if split in ("permutation", "rotation"):
        return known.train
    if split == "sample":
        return -(-known.train // tasks)
    if not known.even:
        return known.train
    return known.train // known.classes * -(-known.classes // tasks)


def _check_crop(transform: dict[str, Any], known: Published) -> None:
    crop, side = transform["crop"], known.shape[-1] + 2 * transform["padding"]
    if crop is not None and crop > side:
        raise UserError(
            f"dataset.transform.crop={crop}: images have {known.shape[-1]} pixels and a padding of "
            f"{transform['padding']} on each side, {side} in all; use at most that"
        )


def _check_holdout(evaluation: dict[str, Any], images: int) -> None:
    if evaluation["split"] != "val":
        return
    count = round(images * evaluation["holdout"])
    if not 0 < count < images:
        raise UserError(
            f"evaluation.holdout={evaluation['holdout']}: {count} of {images} training images of a "
            "task would be held out; at least one must be, and one must stay"
        )
