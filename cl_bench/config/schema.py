"""The schema of a config: each `_target_`'s signature says which keys a node has, of which values.

Types and bounds stand in the constructor (`bounds`); `option_types` checks values against them.
What a group's target must be able to do stands in `interfaces`. Nothing here loads data.
"""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

from annotated_types import Ge
from hydra.utils import get_object

from cl_bench.base.bounds import Count, NonNegative, Seed, Text
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config import option_types
from cl_bench.models.prepare import PREPARE_KEYS

# what run.py hands to a partial node beside what the config says
CodeChanged = Literal["stop", "repeat", "continue"]  # what is done where other code made a run
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
    "seed": Seed,
    "output_dir": Text,
    "data_dir": Text,
    "cache_dir": Optional[Text],  # noqa: UP045
    "log_every": Count,
    "save_every": Annotated[float, Ge(1)],
    "save_network": bool,
    "force": bool,
    "tuned": bool,
    "code_changed": CodeChanged,
    "scenario.name": str,
    "scenario.split": Literal["class", "sample"],
    "scenario.heads": Literal["shared", "apart"],
    "scenario.order": str | list[int],
    "optimizer.weight_decay": NonNegative,
    **{f"model.{key}": hint for key, hint in PREPARE_KEYS.items()},
}
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # a wrong target is refused here, once


def at(plain: dict[str, Any], key: str) -> Any:
    """What stands at a key such as `dataset.source._target_`; UserError where nothing does."""
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{key}: missing")
        node = node[part]
    return node


def check_keys(key: str, node: dict[str, Any], known: list[str]) -> None:
    """UserError where a node has a key that is not known, or lacks one that may not be null."""
    where = f"{key}." if key else ""
    for name in node:
        if name not in known:
            raise UserError(f"{where}{name}: no such key; there are {', '.join(known)}")
    for name in known:
        if node.get(name) is None and not option_types.accepts(PLAIN.get(f"{where}{name}"), None):
            state = "null: must have a value" if name in node else ": missing"
            raise UserError(f"{where}{name}{'=' if name in node else ''}{state}")


def check_node(key: str, node: dict[str, Any]) -> None:
    """UserError where a `_target_` does not exist, or cannot be called with the node's keys."""
    path = node["_target_"]
    if not isinstance(path, str) or not path:
        raise UserError(
            f"{key}._target_={typed(path)}: must be the dotted path of a class or a function"
        )
    try:
        target = get_object(path)
    except Exception as error:
        reason = one_line(error, 200)
        raise UserError(f"{key}._target_={node['_target_']}: {reason}") from None
    if not callable(target):
        raise UserError(f"{key}._target_={node['_target_']}: cannot be called")
    _check_reserved(key, node)
    parameters = _parameters(key, node, target)
    given = {k: v for k, v in node.items() if not k.startswith("_") and f"{key}.{k}" not in PLAIN}
    _check_parameters(key, node["_target_"], parameters, list(given))
    hints = _hints(target)
    for name, value in given.items():
        check_type(f"{key}.{name}", value, hints.get(name, Any))


def _check_parameters(
    key: str, target: str, parameters: dict[str, inspect.Parameter], given: list[str]
) -> None:
    """UserError where a target does not take what it is given, or lacks what it needs."""
    supplied = SUPPLIED.get(key, ())
    known = [n for n in parameters if n not in supplied]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        lacking = [n for n in supplied if n not in parameters and key != "study"]
        if lacking:
            raise UserError(
                f"{key}._target_={target}: cannot serve as {key}: it is called with "
                f"{', '.join(supplied)} and does not take {', '.join(lacking)}"
            )
        for name in given:
            if name in supplied:
                raise UserError(f"{key}.{name}: is given by the run itself; leave it out")
            if name not in parameters:
                there = ", ".join(known) or "none"
                raise UserError(f"{key}.{name}: no such key; {key} has {there}")
    for name in known:
        p = parameters[name]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in given:
            raise UserError(f"{key}.{name}: missing; {key} needs {', '.join(known)}")


def _check_reserved(key: str, node: dict[str, Any]) -> None:
    """UserError for Hydra's own keys, but `_target_` and `_partial_` as its place needs it."""
    for name, value in node.items():
        if name.startswith("_") and name not in ("_target_", "_partial_"):
            raise UserError(
                f"{key}.{name}={typed(value)}: of these keys only _target_ and _partial_ serve"
            )
    wanted = key in SUPPLIED
    if node.get("_partial_", False) is not wanted:
        value = typed(node.get("_partial_"))
        raise UserError(f"{key}._partial_={value}: must be {typed(wanted)} here")


def _parameters(key: str, node: dict[str, Any], target: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        raise UserError(
            f"{key}._target_={node['_target_']}: its signature cannot be read; use a class or a "
            "function of Python"
        ) from None


def _hints(target: Callable) -> dict[str, Any]:
    """The types of a target's parameters, with their bounds."""
    made_by = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(made_by, include_extras=True)
    except Exception:  # a foreign target's annotations may be any text
        return {}


def check_type(key: str, value: Any, hint: Any) -> None:
    """UserError where a config's value does not fit what is written in a signature."""
    requirement = option_types.fault(value, hint) or option_types.unusable(value)
    if requirement is None:
        return
    group = key.rpartition(".")[2]
    if group in ("curvature", "merging", "buffer"):
        option = value if isinstance(value, str) else "<option>"
        raise UserError(f"{key}={typed(value)}: is chosen by its group; use {group}={option}")
    raise UserError(f"{key}={typed(value)}: must be {requirement}")


def typed(value: Any) -> str:
    """A value as it is written in a config."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def reals(node: dict[str, Any]) -> list[str]:
    """The options of a node that take a fraction, and no integer of their own."""
    hints = _hints(get_object(node["_target_"]))
    return [name for name in node if option_types.is_real(hints.get(name))]
