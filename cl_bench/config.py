"""Everything about a config before a run: is it right, what is it called, what built from it.

The constructor is the schema: each `_target_`'s signature says which keys a node may have and of
which type. Checked whole before any data is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast

import hydra.errors
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cl_bench.types import UserError

# what run.py hands to a partial node beside what the config says
SUPPLIED = {
    "dataset": ("scenario", "device"),
    "dataset.transform": ("device",),
    "scenario.live": ("classes", "now"),
    "stream": ("stream",),
    "model": ("shape", "num_classes"),
    "optimizer": ("params",),
    "curvature": ("learner", "task"),
    "method": ("learner",),
    "method.curvature": ("learner", "task"),
    "runtime": ("seed",),
    "tracking": ("config", "group", "name", "identity", "folder", "job_type", "tags"),
}
PLAIN: dict[str, Any] = {
    "seed": int,
    "output_dir": str,
    "data_dir": str,
    "log_every": int,
    "force": bool,
    "scenario.name": str,
    "scenario.split": Literal["class", "sample"],
    "optimizer.weight_decay": float,
}
AT_LEAST = {
    **dict.fromkeys(("seed", "strength", "decay", "weight_decay", "lr", "momentum", "padding"), 0),
    **dict.fromkeys(("tasks", "train_per_task", "epochs", "batch_size", "capacity", "replay"), 1),
    **dict.fromkeys(("per_task", "log_every", "threads", "width", "crop", "resize", "size"), 1),
}
DECOUPLED = ("torch.optim.AdamW",)
PLACES = ("seed", "output_dir", "data_dir")  # may differ between runs of one config
SILENT = ("tracking", "log_every", "force")  # cannot change a number


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config, once every key, type and combination in it is known to be right."""
    try:
        plain = _resolved(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from None
    for key, hint in PLAIN.items():
        _check_type(key, _at(plain, key), hint)
    for key, node in _targets(plain, ""):
        _check_node(key, node)
        _check_ranges(key, node)
    _check_ranges("", plain)
    _check_combination(plain)
    return plain


def digest(cfg: DictConfig) -> str:
    """The name of a config: a hash of all that can change a number, but the seed."""
    same = cfg.copy()
    with open_dict(same):
        same.update(dict.fromkeys(PLACES, 0))
    kept = {k: v for k, v in _resolved(same).items() if k not in SILENT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def build(node: DictConfig, **extra: Any) -> Any:
    """The object that a node describes; the only call of `instantiate`."""
    made = instantiate(node, _convert_="all")
    return made(**extra) if extra else made


def without(node: DictConfig, key: str) -> DictConfig:
    """The node but for one key."""
    return OmegaConf.masked_copy(node, [str(k) for k in node if k != key])


def explain(error: BaseException) -> str | None:
    """One line for what is the user's fault; None for what is not."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for link in chain:
        if isinstance(link, hydra.errors.MissingConfigException) and link.missing_cfg_file:
            group, _, name = link.missing_cfg_file.rpartition("/")
            return f"{group}={name}: no such {group}; there are {', '.join(link.options or [])}"
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            parent = link.parent_node
            there = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
            there = [k for k in there if k not in ("_target_", "_partial_", "hydra")]
            known = f"; there are {', '.join(there)}" if there else ""
            return f"{link.full_key}: {_first_line(link)}{known}"
    if isinstance(error, hydra.errors.HydraException):
        return _first_line(error)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _at(plain: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        plain = plain[part]
    return plain


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}" if key else name)


def _check_node(key: str, node: dict[str, Any]) -> None:
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{key}._target_={node['_target_']}: {_first_line(error)}") from None
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
            _check_type(f"{key}.{name}", value, hints[name])


def _hints(target: Callable) -> dict[str, Any]:
    made_by = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(made_by)
    except NameError:  # a foreign target whose annotations need names that only a checker has
        return {}


def _check_type(key: str, value: Any, hint: Any) -> None:
    if isinstance(value, dict) or fits(value, hint):
        return
    raise UserError(f"{key}={value}: must be {_spelled(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a config's value may go where `hint` is written; an int may go for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(v, args[0]) for v in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(args)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    return not isinstance(value, str) or hint is Any


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


def _check_combination(plain: dict[str, Any]) -> None:
    scenario, split = plain["scenario"]["name"], plain["dataset"]["split"]
    if plain["optimizer"]["_target_"] in DECOUPLED:
        raise UserError(
            f"optimizer._target_={plain['optimizer']['_target_']}: weight decay is L2 on the "
            "parameters in use, and this one's is not; use torch.optim.Adam or another"
        )
    serves = get_object(plain["method"]["_target_"]).scenarios
    if scenario not in serves:
        raise UserError(f"scenario={scenario}: the method serves {', '.join(serves)}")
    if scenario != "data" and split != "class":
        raise UserError(
            f"scenario={scenario}: with dataset.split={split} every task has the same classes; "
            "use scenario=data, or dataset.split=class"
        )
    if split == "permutation" and get_object(plain["model"]["_target_"]).spatial:
        raise UserError(
            "dataset.split=permutation: the model sees neighbouring pixels, which a permutation "
            "destroys; use model=mlp, or dataset.split=class or sample"
        )


def _check_ranges(key: str, node: dict[str, Any]) -> None:
    """Sizes and strengths by name, wherever they stand: the vocabulary has one meaning each."""
    for name, value in node.items():
        low = AT_LEAST.get(name)
        if isinstance(value, int | float) and low is not None and value < low:
            raise UserError(f"{key}.{name}={value}: must be at least {low}".lstrip("."))
        if name == "holdout" and not 0 < value < 1:
            raise UserError(f"{key}.{name}={value}: must be between 0 and 1")
