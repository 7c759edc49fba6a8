"""The groups of a config, its nodes with a `_target_`, and its leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from cl_bench.base import files

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE.parent / "conf"  # of a clone; of an installed package it lies within
CONF = CONF if (CONF / "config.yaml").exists() else PACKAGE / "conf"
GROUPS = ("scenario", "model", "criterion", "optimizer", "schedule", "evaluation", "stream")
GROUPS += ("curvature", "merging", "buffer", "runtime", "tracking", "dataset", "method")
OPTIONAL = ("probe", "study")  # groups of which there may be none
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
PLACES = ("seed", "output_dir", "data_dir", "cache_dir")  # may differ between runs of one config
SILENT = ("tracking", "log_every", "save_every", "save_network", "force", "tuned")  # no numbers
SILENT += (
    "code_changed",
    "curvature",
    "merging",
    "buffer",
)  # a method that uses them holds them itself
Leaves = dict[str, Any]  # `method.strength` to its value
OmegaConf.register_new_resolver("absolute", lambda path: str(files.absolute(path)), replace=True)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def targets(plain: dict[str, Any]) -> list[Any]:
    """The classes and functions that a resolved config's numbers are made by."""
    nodes = [node for key, node in target_nodes(plain, "") if key.split(".")[0] not in SILENT]
    return [get_object(node["_target_"]) for node in nodes]


def target_nodes(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from target_nodes(child, f"{key}.{name}" if key else name)


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
