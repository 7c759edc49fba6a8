"""How large a network is, before it is built: whether a curvature and the machine can hold it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from cl_bench.base.exceptions import UserError
from cl_bench.core import runtime
from cl_bench.data.check import shape_and_classes
from cl_bench.data.published import Contents, known_contents
from cl_bench.models.prepare import PREPARE_KEYS

COPIES = 3  # of the parameters at least: as they are built, as one vector, and its gradient
BYTES = 4  # of a float32


def check(plain: dict[str, Any]) -> None:
    """UserError where what a resolved config needs is too large for its curvature or the machine.

    Where the data is not known before it is read, neither is the network.
    """
    dataset, method = plain["dataset"], plain["method"]
    contents, known = known_contents(dataset["source"]), shape_and_classes(dataset)
    if contents is not None:
        _require(f"dataset.tasks={dataset['tasks']}: their images", _stream(dataset, contents))
        if "buffer" in method:
            _check_buffer(method["buffer"], dataset["tasks"], prod(contents.shape))
    if known is not None:
        count = parameters(plain["model"], *known)
        if count is not None:
            _require(f"model: {count:,} parameters", COPIES * BYTES * count)
        if count is not None and "curvature" in method:
            _check_curvature(method["curvature"], count)


def _check_buffer(options: dict[str, Any], tasks: int, values: int) -> None:
    rows = get_object(options["_target_"]).max_samples(options, tasks)
    key = "per_task" if "per_task" in options else "capacity"
    _require(f"buffer.{key}={options.get(key)}: so many images", (rows or 0) * values)


def _check_curvature(curvature: dict[str, Any], count: int) -> None:
    most = get_object(curvature["_target_"]).most_parameters(curvature)
    if most is not None and count > most:
        raise UserError(
            f"curvature: a dense matrix of {count} parameters (at most {most}); use a smaller "
            "model, kfac or diag_fisher"
        )


def _require(what: str, wanted: int) -> None:
    """UserError where the machine has less memory than so many bytes."""
    there = runtime.memory_limit()
    if there is not None and wanted > there:
        raise UserError(
            f"{what} take at least {wanted / 2**30:,.0f} GiB, this machine has "
            f"{there / 2**30:,.0f}; use less"
        )


def _stream(dataset: dict[str, Any], contents: Contents) -> int:
    """The bytes of all tasks, a byte a value: where pixels are changed each has its own images."""
    there, count = contents.images or 0, dataset["train_per_task"]
    train, test = round(dataset["fraction"] * there) if count is None else count, contents.test
    if dataset["split"] in ("permutation", "rotation"):
        images = dataset["tasks"] * (train + sum(test or ()))
    else:
        images = there + sum(test or ())
    return images * prod(contents.shape)


def parameters(model: dict[str, Any], shape: tuple[int, int, int], num_classes: int) -> int | None:
    """The number of parameters of a resolved `model` that are trained; nothing is allocated.

    None where the model cannot be built without storage: one that reads a tensor's values.
    """
    own = {key: value for key, value in model.items() if key not in PREPARE_KEYS}
    make = instantiate(OmegaConf.create(own), _convert_="all")
    try:
        with torch.device("meta"):
            net = make(shape=shape, num_classes=num_classes)
    except (RuntimeError, NotImplementedError):
        return None
    trained = net.head if model["head_mode"] == "head_only" else net
    norms = nn.modules.batchnorm._BatchNorm if model["norm"] == "folded" else ()
    left_out = [p for m in trained.modules() if isinstance(m, norms) for p in m.parameters()]
    return sum(p.numel() for p in trained.parameters()) - sum(p.numel() for p in left_out)
