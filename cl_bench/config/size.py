"""Refuses configs whose images, buffer, network or curvature would not fit into memory."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from hydra.utils import get_object
from torch import nn

from cl_bench.base.exceptions import UserError
from cl_bench.base.memory_size import size_key
from cl_bench.config.meta import meta_network, without_weights
from cl_bench.core import runtime
from cl_bench.data.check import shape_and_classes
from cl_bench.data.plan import number_of
from cl_bench.data.published import Contents, known_contents
from cl_bench.methods.shared.feature_sums import FeatureSums
from cl_bench.models.head import name_head
from cl_bench.models.prepare import trained_network

COPIES = 3  # of the parameters, at least: the network as built, theta, and its gradient
BYTES = 4  # of one float32


def check(plain: dict[str, Any]) -> None:
    """Raise UserError where a resolved config needs too much memory for the machine or curvature.

    Nothing is checked of data whose shape is not known before it is read.
    """
    dataset, method = plain["dataset"], plain["method"]
    contents, known = known_contents(dataset["source"]), shape_and_classes(dataset)
    tasks, classes = number_of(dataset["tasks"]), None if known is None else known[1]
    unused = get_object(method["_target_"]).unused(plain)
    stores = "buffer" in method and "method.buffer" not in unused
    if contents is not None:
        _require(
            f"dataset.tasks={dataset['tasks']}: their images", _stream_bytes(dataset, contents)
        )
        if stores:
            _check_buffer(plain, tasks, classes, prod(contents.shape))
    if stores:
        _check_room(plain, classes, tasks)
    width = plain["model"].get("random_features")
    if width is not None and issubclass(get_object(method["_target_"]), FeatureSums):
        _require(f"model.random_features={width}: the products of all pairs", 3 * 8 * width**2)
    if known is not None:
        count = count_parameters(plain["model"], *known)
        if count is not None:
            _require(f"model: {count:,} parameters", COPIES * BYTES * count)
        if count is not None and "curvature" in method:
            _check_curvature(method["curvature"], count)


def _check_buffer(plain: dict[str, Any], tasks: int, classes: int | None, values: int) -> None:
    """Refuse a buffer that is too large; `values`: the bytes of an image."""
    options, budget_mib = plain["method"]["buffer"], plain["budget_mib"]
    if classes is not None and plain["scenario"]["name"] == "data":
        classes *= tasks
    rows = get_object(options["_target_"]).max_samples(options, tasks, classes) or 0
    key = size_key(options)
    named = f"buffer.{key}={options.get(key)}: its images"
    _require(named, rows * values)
    if budget_mib is not None and rows * values > budget_mib * 2**20:
        raise UserError(
            f"{named} take {rows * values / 2**20:.4g} MiB, budget_mib={budget_mib:g}; use a "
            "smaller buffer, or raise the budget"
        )


def _check_room(plain: dict[str, Any], classes: int | None, tasks: int) -> None:
    """Refuse a memory that its classes or tasks share and that has no sample for each of them.

    classes  the number of classes of the stream; None: it is not known before the data are read
    """
    method, options = plain["method"], plain["method"]["buffer"]
    shared = get_object(options["_target_"]).shared_by
    again = plain["scenario"]["name"] == "data"  # all classes come in each task
    if again and shared == "classes":
        raise UserError(
            f"buffer._target_={options['_target_']}: it has its share of each class after the "
            "first task, where all tasks have the same classes; use another buffer"
        )
    learned = min(plain["stream"].get("first") or tasks, tasks)
    count = learned if shared == "tasks" else None
    if classes is not None and shared in ("classes", "classes of each task"):
        every = classes * learned if shared == "classes of each task" else classes
        count = every if again else _first_classes(plain["dataset"]["tasks"], classes, learned)
    owner = get_object(method["_target_"])
    parts = owner.parts_of_memory(method)
    if count is None or not parts or min(parts) >= count:
        return
    part = f" in a part of {min(parts)} samples" if len(parts) > 1 else ""
    if part and (by := owner.divides_memory_by):
        part += f" (method.{by}={method[by]:g} divides the memory)"
    what = shared if again else (shared or "").partition(" of each task")[0]
    raise UserError(
        f"buffer.capacity={options['capacity']}: each of {count} {what} needs a sample{part}; use "
        f"at least {_least_capacity(method, count)}"
    )


def _least_capacity(method: dict[str, Any], count: int) -> int:
    """The smallest capacity of which each part of the memory has `count` samples."""
    for capacity in range(count, 1000 * count):
        options = {**method, "buffer": {**method["buffer"], "capacity": capacity}}
        if min(get_object(method["_target_"]).parts_of_memory(options)) >= count:
            return capacity
    return 1000 * count


def _first_classes(tasks: int | list[int], classes: int, learned: int) -> int:
    """The number of classes of the first tasks, where each task has some of all classes."""
    if isinstance(tasks, list):
        return sum(tasks[:learned])
    return learned * (classes // tasks) + min(learned, classes % tasks)


def _check_curvature(curvature: dict[str, Any], count: int) -> None:
    most = get_object(curvature["_target_"]).most_parameters(curvature)
    if most is not None and count > most:
        raise UserError(
            f"curvature: a dense matrix of {count} parameters (at most {most}); use a smaller "
            "model, kfac or diag_fisher"
        )


def _require(what: str, wanted: int) -> None:
    """Raise UserError where `wanted` bytes are more than the memory of the machine."""
    available = runtime.memory_limit()
    if available is not None and wanted > available:
        raise UserError(
            f"{what} take at least {wanted / 2**30:,.0f} GiB, this machine has "
            f"{available / 2**30:,.0f}; use fewer or smaller ones"
        )


def _stream_bytes(dataset: dict[str, Any], contents: Contents) -> int:
    """The bytes of all images as uint8; each task of permuted or rotated pixels has its own."""
    images, count = contents.images or 0, dataset["train_per_task"]
    train, test = round(dataset["fraction"] * images) if count is None else count, contents.test
    if dataset["split"] in ("permutation", "rotation"):
        total = number_of(dataset["tasks"]) * (train + sum(test or ()))
    else:
        total = images + sum(test or ())
    return total * prod(contents.shape)


def count_parameters(
    model: dict[str, Any], shape: tuple[int, int, int], num_classes: int
) -> int | None:
    """The number of trained parameters of a resolved `model`, without allocating them.

    Biases that folding adds to layers without one are not counted. None where the model cannot be
    built on the meta device, because it reads values of tensors.
    """
    net = meta_network(without_weights(model), shape, num_classes)
    if net is None:
        return None
    name_head(net, model["head"], num_classes)
    keys = ("fixed", "lora", "random_features", "prompts")
    with torch.device("meta"):
        added = {key: model.get(key) for key in keys}
        net = trained_network(net, model["head_mode"], **added)
    norms = nn.modules.batchnorm._BatchNorm if model["norm"] == "folded" else ()
    left_out = {id(p) for m in net.modules() if isinstance(m, norms) for p in m.parameters()}
    kept = [p for p in net.parameters() if p.requires_grad and id(p) not in left_out]
    return sum(p.numel() for p in kept)
