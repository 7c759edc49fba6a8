"""A config as the command line would compose it, for what has no command line of Hydra's."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cl_bench.config.nodes import CONF


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """The config of these overrides; `with_hydra`: with Hydra's own part, below `hydra`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


def choices(overrides: Sequence[str]) -> tuple[str, str, str]:
    """The options that are chosen of the groups dataset, scenario and method."""
    found = composed(*overrides, with_hydra=True).hydra.runtime.choices
    return found["dataset"], found["scenario"], found["method"]
