"""The schema of a config: each `_target_`'s signature says which keys a node has, of which type.

Written once, in the constructor; nothing here loads data.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union

from hydra.utils import get_object

from cl_bench.models.prepare import PREPARED
from cl_bench.types import UserError

# what run.py hands to a partial node beside what the config says
SUPPLIED = {
    "dataset": ("scenario", "device"),
    "dataset.transform": ("device",),
    "scenario.live": ("classes", "now"),
    "stream": ("stream",),
    "model": ("shape", "num_classes"),
    "optimizer": ("params",),
    "merging": ("past", "found"),
    "buffer": ("rng",),
    "method": ("learner",),
    "method.merging": ("past", "found"),
    "method.buffer": ("rng",),
    "runtime": ("seed",),
    "study": ("seed", "learner", "stream", "order", "schedule"),
    "tracking": ("config", "group", "name", "identity", "folder", "job_type", "tags"),
}
PLAIN: dict[str, Any] = {  # keys that no constructor has
    "seed": int,
    "output_dir": str,
    "data_dir": str,
    "log_every": int,
    "save_every": float,
    "force": bool,
    "tuned": bool,
    "code_changed": Literal["stop", "repeat", "continue"],
    "scenario.name": str,
    "scenario.split": Literal["class", "sample"],
    "scenario.heads": Literal["shared", "apart"],
    "scenario.order": str | list[int],
    "optimizer.weight_decay": float,
    **{f"model.{key}": hint for key, hint in PREPARED.items()},
}
SEEDS = 2**24  # how many the CPU's generator tells apart beside its uses
AT_LEAST = {
    **dict.fromkeys(
        ("seed", "strength", "alpha", "beta", "decay", "weight_decay", "lr", "momentum", "padding"),
        0,
    ),
    **dict.fromkeys(("tasks", "train_per_task", "epochs", "batch_size", "capacity", "replay"), 1),
    **dict.fromkeys(("margin", "ridge", "inner_lr", "rate_lr", "prox", "scale"), 0),
    **dict.fromkeys(("l1", "l2", "growth", "budget", "threshold", "cap"), 0),
    **dict.fromkeys(("warm_up", "rounds", "channels", "kernels", "classes"), 1),
    **dict.fromkeys(("batches", "glances", "slice_size", "first"), 1),
    **dict.fromkeys(
        ("hidden", "per_task", "log_every", "threads", "width", "crop", "resize", "size"), 1
    ),
    **dict.fromkeys(("save_every", "samples", "probes", "every", "iterations", "neighbours"), 1),
}

BOUNDS: tuple[tuple[str, tuple[str, ...], Callable[[float], bool]], ...] = (
    ("between 0 and 1", ("share", "within", "across"), lambda v: 0 <= v <= 1),
    ("between 0 and 1", ("holdout",), lambda v: 0 < v < 1),
    ("above 0 and at most 1", ("fraction",), lambda v: 0 < v <= 1),
    ("above 0", ("std", "temperature", "xi", "floor", "clip"), lambda v: v > 0),
    ("at most 1", ("decay",), lambda v: v <= 1),
    ("below 1", ("momentum",), lambda v: v < 1),
    ("at least 0 and below 1", ("dropout",), lambda v: 0 <= v < 1),
    (f"below {SEEDS}", ("seed",), lambda v: v < SEEDS),
)


def at(plain: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        if part not in plain:
            raise UserError(f"{key}: missing")
        plain = plain[part]
    return plain


def check_keys(key: str, node: dict[str, Any], known: list[str]) -> None:
    where = f"{key}." if key else ""
    for name in node:
        if name not in known:
            raise UserError(f"{where}{name}: no such key; there are {', '.join(known)}")
    for name in known:
        if node.get(name) is None:
            raise UserError(f"{where}{name}: missing")


def check_node(key: str, node: dict[str, Any]) -> None:
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(
            f"{key}._target_={node['_target_']}: {str(error).splitlines()[0]}"
        ) from None
    parameters = inspect.signature(target).parameters
    given = {k: v for k, v in node.items() if not k.startswith("_") and f"{key}.{k}" not in PLAIN}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [n for n in parameters if n not in SUPPLIED.get(key, ())]
    for name in given:
        if name not in parameters and not open_ended:
            raise UserError(f"{key}.{name}: no such key; {key} has {', '.join(known) or 'none'}")
    for name in known:
        p = parameters[name]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in given:
            raise UserError(f"{key}.{name}: missing; {key} needs {', '.join(known)}")
    hints = _hints(target)
    for name, value in given.items():
        if name in hints:
            check_type(f"{key}.{name}", value, hints[name])


def _hints(target: Callable) -> dict[str, Any]:
    made_by = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(made_by)
    except NameError:  # a foreign target whose annotations need names that only a checker has
        return {}


def check_type(key: str, value: Any, hint: Any) -> None:
    if fits(value, hint):
        return
    group = key.rpartition(".")[2]
    if group in ("curvature", "merging", "buffer"):
        raise UserError(f"{key}={value}: is chosen by its group; use {group}={value}")
    raise UserError(f"{key}={value}: must be {_spelled(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a config's value may go where `hint` is written; an int may go for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, dict):
        return "_target_" in value
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is tuple:
        return isinstance(value, list) and list(map(fits, value, args)) == [True] * len(args)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    return not isinstance(value, str) or hint is Any


def reals(node: dict[str, Any]) -> list[str]:
    """The options of a node that take a fraction, and no integer of their own."""
    hints = _hints(get_object(node["_target_"]))
    return [name for name in node if _real(hints.get(name))]


def _real(hint: Any) -> bool:
    args = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    return float in args and int not in args


def _spelled(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(_spelled(arg) for arg in args)
    if origin in (list, Sequence, tuple):
        return "a list of " + _spelled(args[0])
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, "null" if hint is NoneType else getattr(hint, "__name__", str(hint)))


def check_ranges(key: str, node: dict[str, Any]) -> None:
    """Sizes and strengths by name, wherever they stand: the vocabulary has one meaning each."""
    for name, value in node.items():
        spelled = f"{key}.{name}={value}".lstrip(".")
        values: list[Any] = value if isinstance(value, list) else [value]
        for number in filter(_is_number, values):
            if not isfinite(number):
                raise UserError(f"{spelled}: must be finite")
            for wanted, names, holds in (*BOUNDS, _low(name)):
                if name in names and not holds(number):
                    raise UserError(f"{spelled}: must be {wanted}")


def _low(name: str) -> tuple[str, tuple[str, ...], Callable[[float], bool]]:
    low = AT_LEAST.get(name, -inf)
    return f"at least {low}", (name,), lambda v: v >= low


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
