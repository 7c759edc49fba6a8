"""What the target of each group must be able to do, before it is built: its methods by name."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from hydra.utils import get_object

from cl_bench.base.exceptions import UserError
from cl_bench.core.buffer import Buffer
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.dense import Small
from cl_bench.curvature.diagonal import PerSample
from cl_bench.curvature.kfac import Factored
from cl_bench.methods.base import Method, Rehearsal, Separate

RULES = (
    "check",
    "unused",
    "scenarios",
    "requires_plain_sgd",
    "forbids_weight_decay",
    "curvature_is_penalty",
)
NEEDED: dict[str, tuple[str, ...]] = {
    "method": ("begin_task", "observe", "end_task", "predict", "networks", "capacity", *RULES),
    "buffer": ("begin_task", "end_task", "add", "sample", "max_samples"),
    "curvature": ("__call__", "check", "linear", "penalty", "may_be_negative"),
    "criterion": ("__call__", "losses_and_gradients", "hessian_root", "squared"),
    "schedule": ("steps", "factor", "epochs", "batch_size", "batch_norm", "warm_up"),
    "evaluation": ("columns", "split", "holdout", "batch_size"),
    "optimizer": ("step", "state_dict", "load_state_dict"),
    "model": ("forward", "batch_norm"),
    "runtime": ("device", "autocast", "place", "order", "memory", "draws"),
    "tracking": ("describe", "replay", "log", "finish", "__enter__", "__exit__"),
    "dataset": ("tasks", "tests", "classes", "scenario", "transform", "description"),
    "stream": ("tasks", "tests", "classes", "scenario", "transform", "description"),
    "dataset.source": ("train_x", "train_y", "test_x", "test_y", "classes", "sha256"),
    "dataset.transform": ("draw", "view"),
    "probe": ("__call__",),
}
READ: dict[str, tuple[str, ...]] = {  # options of a node that the program reads itself
    "dataset": (
        *("name", "source", "split", "heads", "tasks", "order", "train_per_task", "fraction"),
        *("seed", "transform"),
    ),
    "dataset.transform": ("mean", "std", "crop", "padding", "resize"),
    "stream": ("first",),
    "evaluation": ("split", "holdout"),
    "schedule": ("epochs", "batch_norm", "warm_up"),
    "runtime": ("compile",),
}
CLASSES = ("method", "model", "criterion", "curvature", "buffer", "optimizer")
BASES = (Method, Rehearsal, Separate, Buffer, Estimator, PerSample, Factored, Small)


def check(key: str, node: dict[str, Any]) -> None:
    """UserError where what a node makes lacks something that its place calls.

    A class makes its instances; a function what its return annotation says.
    """
    place = key if key in NEEDED else key.rpartition(".")[2] if key.startswith("method.") else key
    needed = NEEDED.get(place, ())
    target = get_object(node["_target_"])
    made = target if inspect.isclass(target) else _returned(target)
    if place in CLASSES and not inspect.isclass(target):
        raise UserError(
            f"{key}._target_={node['_target_']}: must be a class, whose attributes say what it "
            f"serves; use one of conf/{place}"
        )
    if inspect.isclass(target) and (getattr(target, "_is_protocol", False) or target in BASES):
        raise UserError(
            f"{key}._target_={node['_target_']}: is a base class, which cannot serve itself; use "
            f"one of conf/{place.partition('.')[0]}"
        )
    lacking = [name for name in needed if not _has(made, name)]
    lacking += ["observe"] if getattr(made, "observe", None) is Method.observe else []
    if lacking:
        raise UserError(
            f"{key}._target_={node['_target_']}: cannot serve as {place}: it lacks "
            f"{', '.join(lacking)}; use one of conf/{place.partition('.')[0]}, or see their classes"
        )
    for name in READ.get(key, ()):
        if name not in node:
            raise UserError(f"{key}.{name}: missing; a {key} has {', '.join(READ[key])}")


def _returned(function: Any) -> Any:
    """The class of what a function returns; object where it does not say."""
    try:
        return typing.get_type_hints(function).get("return", object)
    except Exception:  # a foreign annotation may be any text
        return object


def _has(made: Any, name: str) -> bool:
    """Whether instances of a class have a method, a field, or an annotated attribute."""
    if hasattr(made, name) and name != "__call__":
        return True
    if name == "__call__":
        return any("__call__" in vars(base) for base in getattr(made, "__mro__", ()))
    bases = getattr(made, "__mro__", ())
    return any(name in getattr(base, "__annotations__", {}) for base in bases)
