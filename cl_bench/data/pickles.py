"""ImageNet32's published pickles, read without running what else a pickle could hold.

Nothing in any data file is executed. A pickle may name any function and have it called, so the
files of ImageNet32, which have no published checksums, are read by an unpickler that knows arrays
of numbers alone. CIFAR's pickles are read by torchvision, after their MD5 sums are found to be the
published ones (`readers`); SVHN's mat files likewise, and their format holds arrays. The other
formats are plain numbers (idx, csv, safetensors), text, and images (`decode`).
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
from cl_bench.data.arrays import Part, Source, sealed, versions

CLASSES = 1000
HARMLESS = {  # all that an array of numbers needs
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}


class Arrays(pickle.Unpickler):
    """Dictionaries, lists, numbers and arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_imagenet32(files: Sequence[Path]) -> Source:
    """`train_data_batch_1..10` and, last, `val_data`: rows of 3 x 32 x 32 bytes, labels 1..1000."""
    parts = [_part(file) for file in files]
    x, y = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    facts = {"order": "as published", "resize": "none", "versions": versions("torch", "numpy")}
    names = tuple(str(i + 1) for i in range(CLASSES))
    return sealed("imagenet32", (x, y), parts[-1], names, None, facts)


def _part(file: Path) -> Part:
    try:
        held = Arrays(io.BytesIO(file.read_bytes()), encoding="bytes").load()
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
    """Whether it was pickled by Python 2 or 3."""
    return held[key.encode()] if key.encode() in held else held[key]


def _within(y: Tensor) -> bool:
    return bool(len(y)) and int(y.min()) >= 0 and int(y.max()) < CLASSES
