"""Builds the network of a config: on the meta device, where only sizes are known, or in memory."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from cl_bench.base.exceptions import UserError, one_line
from cl_bench.models.prepare import PREPARE_KEYS

SHAPES = ((3, 32, 32), (3, 224, 224), (1, 28, 28))  # one of them suits most networks
CLASSES = 10


def bare_network(model: dict[str, Any], shape: Sequence[int], num_classes: int) -> nn.Module:
    """The network of a resolved `model`, neither pre-trained nor prepared.

    The class or function gets its own keys, and of `shape` and `num_classes` what it takes.
    """
    own = {key: value for key, value in model.items() if key not in PREPARE_KEYS}
    make = instantiate(OmegaConf.create(own), _convert_="all")
    taken = inspect.signature(get_object(model["_target_"])).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    given = {"shape": tuple(shape), "num_classes": num_classes}
    return make(**{key: value for key, value in given.items() if every or key in taken})


def meta_network(model: dict[str, Any], shape: Sequence[int], num_classes: int) -> nn.Module | None:
    """The network without values; None where it cannot be built on the meta device.

    Raises UserError where its class or function does not take the model's keys.
    """
    try:
        with torch.device("meta"):
            return bare_network(model, shape, num_classes)
    except (RuntimeError, NotImplementedError):
        return None
    except TypeError as error:
        raise UserError(f"model._target_={model['_target_']}: {one_line(error, 200)}") from None


def has_batch_norm(model: dict[str, Any]) -> bool:
    """Whether a network has batch norm, by its class attribute `batch_norm`, or as it is built.

    True where it can be built for none of `SHAPES`.
    """
    known = getattr(get_object(model["_target_"]), "batch_norm", None)
    return _as_built(json.dumps(model, sort_keys=True)) if known is None else known


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """A `model` without the weights of a library, which would be downloaded."""
    return {**model, "weights": None} if "weights" in model else model


@lru_cache(maxsize=16)
def _as_built(model: str) -> bool:
    for shape in SHAPES:
        try:
            net = meta_network(without_weights(json.loads(model)), shape, CLASSES)
        except Exception:  # of a class that is not ours
            continue
        if net is not None:
            return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    return True
