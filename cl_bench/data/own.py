"""Images of the user's own: arrays or data sets in the way of torchvision, from a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_bench.base.bounds import Text
from cl_bench.base.exceptions import UserError
from cl_bench.data.arrays import Part, Source, make_source, versions
from cl_bench.data.decode import shown_progress

KEY = "dataset.source.load"
CHANNELS = (1, 3)


def arrays(load: Any, data_dir: Text, cache_dir: Text | None = None) -> Source:
    """A data set from a function of yours, `load._target_`, called with the other keys of `load`.

    It returns (train, test), each of them (images, labels) or a data set in the way of torchvision,
    with len() and [i], which gives an image and its label. Images are pixels from 0 to 255, all of
    one size: arrays, tensors or PIL images, grey (H, W) or in three channels, (H, W, 3) or
    (3, H, W). Labels are 0 to K - 1. `classes`, where a data set has it, are the class names.

    It is called in each run, and nothing is kept on disk.
    """
    if not isinstance(load, Sequence) or isinstance(load, str) or len(load) != 2:
        raise UserError(f"{KEY}: returned {_kind(load)}; wanted is a pair (train, test)")
    if all(hasattr(part, "ndim") for part in load):
        raise UserError(
            f"{KEY}: returned two arrays; wanted is a pair (train, test), each of them (images, "
            "labels) or a data set"
        )
    (train_x, train_y), (test_x, test_y) = (
        _part(part, name) for part, name in zip(load, ("train", "test"), strict=True)
    )
    if train_x.shape[1:] != test_x.shape[1:]:
        shapes = tuple(train_x.shape[1:]), tuple(test_x.shape[1:])
        raise UserError(f"{KEY}: training images are {shapes[0]}, test images {shapes[1]}")
    count = int(max(train_y.max(), test_y.max())) + 1
    missing = sorted({*range(count)} - {*train_y.unique().tolist()})
    if missing:
        raise UserError(f"{KEY}: no training image has label {missing[0]}; labels are 0 to K - 1")
    names = tuple(map(str, getattr(load[0], "classes", range(count))))
    if len(names) != count:
        raise UserError(f"{KEY}: has {len(names)} class names, and labels 0 to {count - 1}")
    origin = {"origin": "a function of the user's own", "versions": versions("torch")}
    return make_source("arrays", (train_x, train_y), (test_x, test_y), names, None, origin)


def _part(part: Any, name: str) -> Part:
    """The images (N, C, H, W) uint8 and labels (N,) of the training or test set."""
    if isinstance(part, tuple | list) and len(part) == 2:
        images, labels = part
    elif hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        images, labels = _items(part, name)
    else:
        raise UserError(
            f"{KEY}: its {name} part is {_kind(part)}; wanted is (images, labels) or a data set "
            "with len() and [i]"
        )
    x, y = _pixels(images, name), torch.as_tensor(np.asarray(labels))
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool or len(y) != len(x):
        raise UserError(
            f"{KEY}: {name} labels are {tuple(y.shape)} {y.dtype}; wanted are integers "
            f"({len(x)},), one for each image"
        )
    if not len(y) or int(y.min()) < 0:
        raise UserError(f"{KEY}: {name} has {'a negative label' if len(y) else 'no images'}")
    return x, y.long().contiguous()


def _items(part: Any, name: str) -> tuple[np.ndarray, list[int]]:
    """The images and labels of a data set, one by one."""
    images, labels = [], []
    for i in shown_progress(range(len(part)), len(part), f"{name} images"):
        image, label = part[i]
        images.append(np.asarray(image))
        labels.append(int(label))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        few = ", ".join(map(str, sorted(shapes)[:3]))
        raise UserError(f"{KEY}: {name} images differ in size ({few}); resize them in the function")
    return np.stack(images) if images else np.zeros((0, 1, 1), np.uint8), labels


def _pixels(images: Any, name: str) -> Tensor:
    """Images as (N, C, H, W) uint8; of four dimensions, C is the one that is 1 or 3."""
    x = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    if x.dtype != torch.uint8:
        raise UserError(
            f"{KEY}: {name} images are {x.dtype}; wanted are raw pixels, uint8 from 0 to 255 "
            "(dataset.transform normalises and augments them)"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[-1] in CHANNELS:
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in CHANNELS:
        raise UserError(
            f"{KEY}: {name} images are {tuple(x.shape)}; wanted are (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with 1 or 3 channels"
        )
    return x.cpu().contiguous()


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
