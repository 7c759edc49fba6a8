"""Everything about a config before a run: is it right, what is it called, what built from it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cl_bench import combinations, files, idle, interfaces
from cl_bench.models.pretrained import identity
from cl_bench.option_types import is_real
from cl_bench.schema import PLAIN, at, check_keys, check_node, check_type, reals
from cl_bench.types import UserError

HERE = Path(__file__).parent
CONF = HERE.parent / "conf" if (HERE.parent / "conf/config.yaml").exists() else HERE / "conf"
GROUPS = ("scenario", "model", "criterion", "optimizer", "schedule", "evaluation", "stream")
GROUPS += ("curvature", "merging", "buffer", "runtime", "tracking", "dataset", "method")
OPTIONAL = ("probe", "study")  # groups of which there may be none
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
PLACES = ("seed", "output_dir", "data_dir", "cache_dir")  # may differ between runs of one config
SILENT = ("tracking", "log_every", "save_every", "force", "tuned", "code_changed")  # no numbers
SILENT += ("curvature", "merging", "buffer")  # a method that uses them holds them itself
Leaves = dict[str, Any]  # `method.strength` to its value
OmegaConf.register_new_resolver("absolute", lambda path: str(files.absolute(path)), replace=True)


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config, once every key, type and combination in it is known to be right."""
    try:
        whole = _resolved(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).strip().splitlines()[0]}") from None
    plain: dict[str, Any] = {k: v for k, v in whole.items() if v is not None or k not in OPTIONAL}
    chosen = [group for group in OPTIONAL if group in plain]
    check_keys("", plain, [*GROUPS, *chosen, *(key for key in PLAIN if "." not in key)])
    check_keys("scenario", plain["scenario"], ["name", "split", "heads", "order", "live"])
    for group in ("scenario.live", *GROUPS[1:], *chosen):
        at(plain, f"{group}._target_")
    for key, hint in PLAIN.items():
        check_type(key, at(plain, key), hint)
    for key, node in _targets(plain, ""):
        check_node(key, node)
        interfaces.check(key, node)
    combinations.check(plain)
    return plain


def settle(cfg: DictConfig, plain: dict[str, Any]) -> None:
    """Make 1 of an option that takes fractions 1.0, in both: one config, with one name."""
    places = [f"{key}.{name}" for key, node in _targets(plain, "") for name in reals(node)]
    for place in (*places, *(key for key, hint in PLAIN.items() if is_real(hint))):
        group, _, name = place.rpartition(".")
        homes = (at(plain, group), OmegaConf.select(cfg, group)) if group else (plain, cfg)
        for node in homes:
            if type(node[name]) is int:
                node[name] = float(node[name])


def digest(cfg: DictConfig) -> str:
    """The name of a config: a hash of all that can change a number, but the seed."""
    same = cfg.copy()
    anywhere = [p for p in PLACES if p != "data_dir" or "path" not in cfg.dataset.source]
    with open_dict(same):
        same.update(dict.fromkeys(anywhere, 0))
    kept = {k: v for k, v in _resolved(same).items() if k not in SILENT}
    idle_keys = idle.unused(kept, list(_targets(kept, "")))
    for key in sorted(idle_keys, key=len, reverse=True):  # a part before the whole
        group, _, name = key.rpartition(".")
        at(kept, group).pop(name, None)
    if kept.get("study") and "learner" not in parameters(cfg.study):
        kept = {"study": kept["study"]}  # made of its own numbers
    else:
        kept["model"]["pretrained"] = identity(kept["model"])
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def build(node: DictConfig, **extra: Any) -> Any:
    """The object that a node describes; the only call of `instantiate`."""
    made = instantiate(node, _convert_="all")
    return made(**extra) if extra else made


def parameters(node: DictConfig) -> list[str]:
    """The names of what the node's target takes."""
    return list(inspect.signature(get_object(node._target_)).parameters)


def without(node: DictConfig, *keys: str) -> DictConfig:
    """The node, resolved, but for these keys."""
    return OmegaConf.create({k: v for k, v in _resolved(node).items() if k not in keys})


def leaves(config: dict[str, Any]) -> Leaves:
    """What of a config can change a number, but the seed."""
    return {
        key: value
        for key, value in _leaves(config, "")
        if key.split(".")[0] not in PLACES + SILENT and key.split(".")[-1] not in PLACES[1:]
    }


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def targets(plain: dict[str, Any]) -> list[Any]:
    """The classes and functions that a resolved config's numbers are made by."""
    nodes = [node for key, node in _targets(plain, "") if key.split(".")[0] not in SILENT]
    return [get_object(node["_target_"]) for node in nodes]


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}" if key else name)
