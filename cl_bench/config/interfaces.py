"""Refuses a `_target_` that lacks a method or an attribute which the run needs of its group."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from hydra.utils import get_object

from cl_bench.base.exceptions import UserError
from cl_bench.core.memory import Buffer
from cl_bench.curvature.base import Estimator
from cl_bench.curvature.dense import Small
from cl_bench.curvature.diagonal import PerSample
from cl_bench.curvature.kfac import Factored
from cl_bench.methods.base import Method, Rehearsal, Separate

CLAIMS = (  # what a method says about the configs that it can be used in
    "check",
    "unused",
    "scenarios",
    "requires_plain_sgd",
    "allows_clipping",
    "allows_kept_optimizer",
    "forbids_weight_decay",
    "curvature_is_penalty",
)
NEEDED: dict[str, tuple[str, ...]] = {  # methods and attributes of what a group makes
    "method": ("begin_task", "observe", "end_task", "predict", "networks", "capacity", *CLAIMS),
    "buffer": ("begin_task", "end_task", "add", "sample", "max_samples"),
    "curvature": ("__call__", "check", "linear", "penalty", "scaled", "may_be_negative"),
    "criterion": ("__call__", "losses_and_gradients", "hessian_root", "squared"),
    "schedule": (
        *("steps", "factor", "epochs_of", "batch_size", "batch_norm", "warm_up", "clip"),
        "patience",
    ),
    "evaluation": ("columns", "split", "holdout", "batch_size"),
    "optimizer": ("step", "state_dict", "load_state_dict"),
    "model": (),
    "runtime": ("device", "autocast", "place", "order", "memory", "draws"),
    "tracking": ("describe", "replay", "log", "finish", "__enter__", "__exit__"),
    "dataset": ("tasks", "tests", "classes", "scenario", "transform", "description"),
    "stream": ("tasks", "tests", "classes", "scenario", "transform", "description"),
    "dataset.source": ("train_x", "train_y", "test_x", "test_y", "classes", "sha256"),
    "dataset.transform": ("draw", "view"),
    "probe": ("__call__",),
}
REQUIRED_KEYS: dict[str, tuple[str, ...]] = {  # keys that are read from the config directly
    "dataset": (
        *("name", "source", "split", "heads", "tasks", "order", "train_per_task", "fraction"),
        *("imbalance", "seed", "transform"),
    ),
    "dataset.transform": ("mean", "std", "crop", "padding", "resize"),
    "stream": ("first",),
    "evaluation": ("split", "holdout"),
    "schedule": ("epochs", "batch_norm", "warm_up", "clip", "patience"),
    "runtime": ("compile",),
}
MUST_BE_CLASSES = ("method", "criterion", "curvature", "buffer", "optimizer")
BASES = (Method, Rehearsal, Separate, Buffer, Estimator, PerSample, Factored, Small)


def check(key: str, node: dict[str, Any]) -> None:
    """Raise UserError where the object of a node at `key` lacks what its group needs.

    A class makes instances of itself, a function what its return annotation says.
    """
    group = key if key in NEEDED else key.rpartition(".")[2] if key.startswith("method.") else key
    needed = NEEDED.get(group, ())
    target = get_object(node["_target_"])
    made = target if inspect.isclass(target) else _returned(target)
    if group in MUST_BE_CLASSES and not inspect.isclass(target):
        raise UserError(
            f"{key}._target_={node['_target_']}: must be a class, since its attributes are "
            f"read before it is built; use one of conf/{group}"
        )
    if inspect.isclass(target) and (getattr(target, "_is_protocol", False) or target in BASES):
        raise UserError(
            f"{key}._target_={node['_target_']}: is a base class; use one of its subclasses in "
            f"conf/{group.partition('.')[0]}"
        )
    lacking = [name for name in needed if not _has(made, name)]
    lacking += ["observe"] if getattr(made, "observe", None) is Method.observe else []
    if lacking:
        raise UserError(
            f"{key}._target_={node['_target_']}: cannot serve as {group}: it lacks "
            f"{', '.join(lacking)}; use one of conf/{group.partition('.')[0]}, or see their classes"
        )
    for name in REQUIRED_KEYS.get(key, ()):
        if name not in node:
            raise UserError(f"{key}.{name}: missing; a {key} has {', '.join(REQUIRED_KEYS[key])}")


def _returned(function: Any) -> Any:
    """The class in a function's return annotation; object where it has none."""
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
