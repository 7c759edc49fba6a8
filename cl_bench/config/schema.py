"""Checks the keys and values of a config by the signatures of its `_target_`s.

A node has the keys that its target takes, of the types and bounds (`base/bounds.py`) that are
annotated there. `option_types` checks one value against one type.
"""

from __future__ import annotations

import inspect
import logging
import sys
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

from annotated_types import Ge
from hydra.utils import get_object

from cl_bench.base.bounds import Count, NonNegative, Seed, Text
from cl_bench.base.exceptions import UserError, one_line
from cl_bench.config import option_types
from cl_bench.config.errors import exception_chain
from cl_bench.config.nodes import METHOD_PARTS
from cl_bench.models.prepare import PREPARE_KEYS

CodeChanged = Literal["stop", "repeat", "continue"]  # the values of the key `code_changed`
Figures = bool | Literal["auto"]  # the values of the key `figures`
OPTIONAL_PACKAGES = ("timm",)  # with extras of the same names
SUPPLIED = {  # arguments that the run hands to a node with `_partial_: true`
    "dataset": ("scenario", "device"),
    "dataset.transform": ("device",),
    "scenario.live": ("classes", "now"),
    "stream": ("stream",),
    "model": ("shape", "num_classes"),
    "optimizer": ("params",),
    "merging": ("past", "new"),
    "buffer": ("rng",),
    "method": ("learner",),
    "method.merging": ("past", "new"),
    "method.buffer": ("rng",),
    "runtime": ("seed",),
    "study": ("seed", "learner", "stream", "order", "schedule"),
    "tracking": ("config", "group", "name", "identity", "folder", "job_type", "tags"),
}
KEYS_WITHOUT_TARGET: dict[str, Any] = {  # the types of keys that are in no signature
    "seed": Seed,
    "output_dir": Text,
    "data_dir": Text,
    "cache_dir": Optional[Text],  # noqa: UP045
    "continue_from": Optional[Text],  # noqa: UP045
    "log_every": Count,
    "save_every": Annotated[float, Ge(1)],
    "budget_mib": Optional[Annotated[float, Ge(0)]],  # noqa: UP045
    "save_network": bool,
    "figures": Figures,
    "force": bool,
    "tuned": bool,
    "tuned_dir": Text,
    "code_changed": CodeChanged,
    "scenario.name": str,
    "scenario.split": Literal["class", "sample"],
    "scenario.heads": Literal["shared", "apart"],
    "scenario.order": str | list[int],
    "optimizer.weight_decay": NonNegative,
    **{f"model.{key}": hint for key, hint in PREPARE_KEYS.items()},
}
# Hydra would log a target that cannot be found beside our refusal
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


def required_value(plain: dict[str, Any], key: str) -> Any:
    """The value at a dotted key (`dataset.source._target_`); UserError where it is missing."""
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{key}: missing")
        node = node[part]
    return node


def check_keys(key: str, node: dict[str, Any], known: list[str]) -> None:
    """Raise UserError where a node has an unknown key, or lacks one that may not be null."""
    where = f"{key}." if key else ""
    for name in node:
        if name not in known:
            raise UserError(f"{where}{name}: no such key; there are {', '.join(known)}")
    for name in known:
        hint = KEYS_WITHOUT_TARGET.get(f"{where}{name}")
        may_be_null = hint is not None and option_types.has_type(None, hint)
        if node.get(name) is None and not may_be_null:
            state = "=null: must have a value" if name in node else ": missing"
            raise UserError(f"{where}{name}{state}")


def check_node(key: str, node: dict[str, Any]) -> None:
    """Raise UserError where a `_target_` does not exist or does not take the node's keys."""
    path = node["_target_"]
    if path == "???":
        raise UserError(f"{key}._target_: not set; it is a class or a function, <module>.<name>")
    if not isinstance(path, str) or not path:
        raise UserError(
            f"{key}._target_={as_yaml(path)}: must be the dotted path of a class or a function"
        )
    try:
        target = get_object(path)
    except Exception as error:
        reason = _missing_package(error) or _missing_name(path) or one_line(error, 200)
        raise UserError(f"{key}._target_={node['_target_']}: {reason}") from None
    if not callable(target):
        raise UserError(f"{key}._target_={node['_target_']}: cannot be called")
    _check_reserved(key, node)
    parameters = _parameters(key, node, target)
    given = {
        k: v
        for k, v in node.items()
        if not k.startswith("_") and f"{key}.{k}" not in KEYS_WITHOUT_TARGET
    }
    _check_parameters(key, node["_target_"], parameters, list(given))
    hints = _hints(target)
    if key == "method" and hints:
        for name in given.keys() - hints.keys():
            raise UserError(
                f"method.{name}: {path} does not give its type; annotate it in __init__, for "
                "example with a bound of cl_bench.base.bounds"
            )
    for name, value in given.items():
        check_type(f"{key}.{name}", value, hints.get(name, Any))


def _check_parameters(
    key: str, target: str, parameters: dict[str, inspect.Parameter], given: list[str]
) -> None:
    """Raise UserError where a target does not take a given key, or needs one that is missing."""
    supplied = SUPPLIED.get(key, ())
    known = [n for n in parameters if n not in supplied]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        needed = ("num_classes",) if key == "model" else () if key == "study" else supplied
        lacking = [name for name in needed if name not in parameters]
        if lacking:
            raise UserError(
                f"{key}._target_={target}: cannot serve as {key}: it is called with "
                f"{', '.join(supplied)} and does not take {', '.join(lacking)}"
            )
        for name in given:
            if name in supplied:
                raise UserError(f"{key}.{name}: is set by the run itself; leave it out")
            if name not in parameters:
                names = ", ".join(known) or "none"
                raise UserError(f"{key}.{name}: no such key; {key} has {names}")
    for name in known:
        p = parameters[name]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in given:
            raise UserError(f"{key}.{name}: missing; {key} needs {', '.join(known)}")


def _check_reserved(key: str, node: dict[str, Any]) -> None:
    """Raise UserError for keys of Hydra's that begin with _, and a wrong value of `_partial_`."""
    for name, value in node.items():
        if name.startswith("_") and name not in ("_target_", "_partial_"):
            raise UserError(
                f"{key}.{name}={as_yaml(value)}: only _target_ and _partial_ may begin with _"
            )
    wanted = key in SUPPLIED
    if node.get("_partial_", False) is not wanted:
        value = as_yaml(node.get("_partial_"))
        raise UserError(f"{key}._partial_={value}: must be {as_yaml(wanted)} here")


def _missing_package(error: BaseException) -> str:
    """Say which package is not installed that the module of a `_target_` imports; "" for none."""
    links = [link for link in exception_chain(error) if isinstance(link, ModuleNotFoundError)]
    package = links[-1].name if links else None
    if package in OPTIONAL_PACKAGES:
        return f'{package} is not installed; pip install -e ".[{package}]" installs it'
    return ""


def _missing_name(path: str) -> str:
    """Say that a module lacks the name of a dotted path, and what it has; '' in other cases."""
    module, _, name = path.rpartition(".")
    loaded = sys.modules.get(module)
    if loaded is None or hasattr(loaded, name):
        return ""
    own = [n for n, v in vars(loaded).items() if getattr(v, "__module__", None) == module]
    classes = ", ".join(sorted(n for n in own if not n.startswith("_")))
    return f"{module} has no {name}; it has {classes or 'no class or function'}"


def _parameters(key: str, node: dict[str, Any], target: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        raise UserError(
            f"{key}._target_={node['_target_']}: its signature cannot be read; use a class or a "
            "function of Python"
        ) from None


def _hints(target: Callable) -> dict[str, Any]:
    """The types of a target's parameters by name, with their bounds."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a foreign target's annotations may be any text
        return {}


def check_type(key: str, value: Any, hint: Any) -> None:
    """Raise UserError where the value at a key does not have the type `hint`."""
    requirement = option_types.unmet_requirement(value, hint) or option_types.unmet_range(value)
    if requirement is None:
        return
    group = key.rpartition(".")[2]
    if group in METHOD_PARTS:
        option = value if isinstance(value, str) else "<option>"
        raise UserError(f"{key}={as_yaml(value)}: is chosen by the group; use {group}={option}")
    raise UserError(f"{key}={as_yaml(value)}: must be {requirement}")


def as_yaml(value: Any) -> str:
    """A value as it is written in YAML: null, true, false; others as Python writes them."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def float_options(node: dict[str, Any]) -> list[str]:
    """The options of a node whose type is float, and not int."""
    hints = _hints(get_object(node["_target_"]))
    return [name for name in node if option_types.is_float(hints.get(name))]
