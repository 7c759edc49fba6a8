"""The parts of a config: its groups, its nodes with a `_target_`, and its leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cl_bench.base import files
from cl_bench.base.files import DamagedError

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE.parent / "conf"  # in a clone; an installed package has it inside
CONF = CONF if (CONF / "config.yaml").exists() else PACKAGE / "conf"
GROUPS = ("scenario", "model", "criterion", "optimizer", "schedule", "evaluation", "stream")
METHOD_PARTS = ("curvature", "merging", "buffer")  # of a method, typed as groups of their own
GROUPS += (*METHOD_PARTS, "runtime", "tracking", "dataset", "method")
LABELS = ("dataset", "scenario", "method")  # the groups whose options name a run
OPTIONAL = ("probe", "study")  # groups that a config may lack
EXTRAS = {  # hydra/launcher=<key> needs pip install -e ".[<value>]"
    "joblib": "joblib",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
    "ray": "ray",
}
PLACES = ("seed", "output_dir", "data_dir", "cache_dir")  # may differ between runs of one config
SILENT = (  # keys that change no number; a method that uses the last three has copies of them
    *(
        "tracking",
        "log_every",
        "save_every",
        "budget_mib",
        "save_network",
        "figures",
        "force",
        "tuned",
        "tuned_dir",
        "code_changed",
    ),
    *METHOD_PARTS,
)
# keys that are typed, but decide no number of a run, or only its seed and its folders
NOT_HASHED = {*PLACES, *SILENT} - {*METHOD_PARTS}
Leaves = dict[str, Any]  # `method.strength` to its value
OmegaConf.register_new_resolver("absolute", lambda path: str(files.absolute(path)), replace=True)


def deciding(words: Iterable[str]) -> list[str]:
    """The words of a command that decide its config's hash: those of no key in NOT_HASHED."""
    return [word for word in words if word.partition("=")[0] not in NOT_HASHED]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists and values, without interpolations."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def targets(plain: dict[str, Any]) -> list[Any]:
    """The classes and functions named by a resolved config's `_target_`s, but those of SILENT."""
    nodes = [node for key, node in target_nodes(plain, "") if key.split(".")[0] not in SILENT]
    return [get_object(node["_target_"]) for node in nodes]


def target_nodes(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each node with a `_target_` in the node at `key`, itself first, with its own dotted key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from target_nodes(child, f"{key}.{name}" if key else name)


def leaves_without(keys: set[str], values: Leaves) -> Leaves:
    """The values whose key is not one of `keys`, nor in a group of them."""
    prefixes = tuple(f"{key}." for key in keys)
    return {k: v for k, v in values.items() if k not in keys and not k.startswith(prefixes)}


def leaves(config: dict[str, Any]) -> Leaves:
    """The values of a resolved config by their dotted keys, without those of PLACES and SILENT."""
    return {
        key: value
        for key, value in all_leaves(config, "")
        if key.split(".")[0] not in PLACES + SILENT and key.split(".")[-1] not in PLACES[1:]
    }


def all_leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Each value in the node at `key`, with its own dotted key."""
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            yield from all_leaves(value, path)
        else:
            yield path, value


def set_everywhere(node: DictConfig, key: str, value: Any) -> None:
    """Set a key wherever a config has it."""
    for name in list(node):
        if name == key:
            node[name] = value
        elif isinstance(node[name], DictConfig):
            set_everywhere(node[name], str(key), value)


def read_yaml(file: Path) -> Any:
    """The content of a YAML file; DamagedError with the reason where it cannot be read."""
    try:
        files.require_regular(file)
        return OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        raise DamagedError(str(error).splitlines()[0]) from None
