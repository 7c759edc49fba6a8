"""Composes a config from overrides, as `python -m cl_bench.run` does from its command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from cl_bench.config import backbone, folders
from cl_bench.config.nodes import CONF


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


def take_hydra(cfg: DictConfig) -> Any:
    """Remove Hydra's own settings from a config that was composed with them, and return them."""
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg.hydra
    return hydra


def chosen_options(overrides: Sequence[str]) -> tuple[str, str, str]:
    """The names of the options that overrides choose of dataset, scenario and method."""
    choices = composed(*overrides, with_hydra=True).hydra.runtime.choices
    return choices["dataset"], choices["scenario"], choices["method"]
