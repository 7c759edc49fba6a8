"""Reads ImageNet32's published pickles safely.

Nothing in any data file is executed. A pickle may name any function and have it called. The files
of ImageNet32 have no published checksums, so that they are read by an unpickler that accepts arrays
of numbers only. torchvision reads CIFAR's pickles and SVHN's mat files after it has verified their
published MD5 sums (`readers`). The other formats are plain numbers (idx, csv, safetensors), text,
and images (`decode`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.data.arrays import Part, Source, make_source, versions

CLASSES = 1000
ALLOWED = {  # the functions that a pickled array of numbers needs
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers and arrays; anything else is an UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_imagenet32(files: Sequence[Path]) -> Source:
    """ImageNet32 from `train_data_batch_1` to `_10` and `val_data`, which is the last of `files`.

    Each has rows of 3 x 32 x 32 bytes and labels 1 to 1000.
    """
    parts = [_part(file) for file in files]
    x, y = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    provenance = {"order": "as published", "resize": "none", "versions": versions("torch", "numpy")}
    names = tuple(str(i + 1) for i in range(CLASSES))
    return make_source("imagenet32", (x, y), parts[-1], names, None, provenance)


def _part(file: Path) -> Part:
    try:
        held = ArrayUnpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        rows, labels = (_entry(held, key) for key in ("data", "labels"))
        x = torch.from_numpy(np.asarray(rows, np.uint8)).view(-1, 3, 32, 32)
        y = torch.as_tensor(np.asarray(labels, np.int64)) - 1
    except Exception as error:  # a damaged pickle may raise any
        reason = one_line(error)
        raise UserError(
            f"imagenet32: {file} is not one of the published pickles: {reason}"
        ) from error
    if len(x) != len(y) or not _within(y):
        counts = f"{len(x)} images and {len(y)} labels of 1..{CLASSES}"
        raise UserError(f"imagenet32: {file} has {counts}")
    return x, y


def _entry(held: dict, key: str) -> Any:
    """An entry of the dictionary, whose keys are bytes if it was pickled by Python 2."""
    return held[key.encode()] if key.encode() in held else held[key]


def _within(y: Tensor) -> bool:
    return bool(len(y)) and int(y.min()) >= 0 and int(y.max()) < CLASSES
