"""Composes a config from overrides, as `python -m cl_bench.run` does from its command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf, open_dict

from cl_bench.base.exceptions import UserError
from cl_bench.base.memory_size import SIZES
from cl_bench.config import backbone, folders, tuned
from cl_bench.config.nodes import CONF, LABELS


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The config of these overrides; `with_hydra` adds Hydra's own settings under `hydra`.

    What a backbone fixes is in it (`config.backbone`).
    """
    cfg = composed_by_hydra(*overrides, with_hydra=with_hydra)
    backbone.apply(cfg, overrides)
    return cfg


def composed_by_hydra(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The same without what a backbone fixes."""
    folders.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


def fill_in(cfg: DictConfig, hydra: Any) -> dict[str, Any]:
    """Set what a backbone fixes and, with tuned=true, the tuned values; never what was typed.

    `hydra` has Hydra's own settings: the options that were chosen, and the overrides. Returns the
    keys that the backbone changed with their new values.
    """
    typed = hydra.overrides.task
    _require_one_size(typed)
    changed = backbone.apply(cfg, typed)
    if cfg.get("tuned"):
        tuned.apply(cfg, tuned.find_file(cfg, labels_of(hydra)), typed)
    return changed


def _require_one_size(typed: Sequence[str]) -> None:
    """Raise UserError where two sizes of a memory are typed, of which one would have no effect."""
    words = [word.lstrip("+") for word in typed]
    sizes = [w for w in words if w.startswith(tuple(f"buffer.{size}=" for size in SIZES))]
    sizes = [word for word in sizes if not word.endswith("=null")]
    if len({word.split("=")[0] for word in sizes}) > 1:
        raise UserError(f"{' '.join(sizes)}: are two sizes of one memory; leave one out")


def shown(words: Sequence[str]) -> str | None:
    """What --cfg job prints, with what `fill_in` sets, which Hydra does not; None without it."""
    asked = get_args_parser().parse_args(list(words))
    if asked.cfg != "job" or asked.config_name or asked.config_path:
        return None
    cfg = composed_by_hydra(*asked.overrides, with_hydra=True)
    fill_in(cfg, take_hydra(cfg))
    part, package = cfg, asked.package or "_global_"
    if package != "_global_":
        part = OmegaConf.select(cfg, package)
        if part is None:
            raise UserError(f"--package {package}: no such part; there are {', '.join(cfg)}")
    if not OmegaConf.is_config(part):
        return f"{part}\n"
    head = "" if package == "_global_" else f"# @package {package}\n"
    return head + OmegaConf.to_yaml(part, resolve=asked.resolve)


def take_hydra(cfg: DictConfig) -> Any:
    """Remove Hydra's own settings from a config that was composed with them, and return them."""
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg.hydra
    return hydra


def labels_of(hydra: Any) -> list[str]:
    """The names of the options of dataset, scenario and method, by Hydra's own settings."""
    return [hydra.runtime.choices[group] for group in LABELS]
