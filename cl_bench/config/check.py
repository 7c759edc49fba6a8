"""Refuses a wrong config before any data is loaded: its keys, types, bounds and combinations."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cl_bench.base.exceptions import UserError
from cl_bench.config import combinations, interfaces
from cl_bench.config.nodes import GROUPS, OPTIONAL, resolved, target_nodes
from cl_bench.config.schema import (
    KEYS_WITHOUT_TARGET,
    check_keys,
    check_node,
    check_type,
    required_value,
)


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """Check a config whole, and return it resolved, as plain dictionaries, lists and values.

    Groups that are optional and absent are left out. Raises UserError, naming the key, its value
    and the alternatives, for the first thing that is wrong.
    """
    try:
        whole = resolved(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).strip().splitlines()[0]}") from None
    plain: dict[str, Any] = {k: v for k, v in whole.items() if v is not None or k not in OPTIONAL}
    chosen = [group for group in OPTIONAL if group in plain]
    of_no_group = [key for key in KEYS_WITHOUT_TARGET if "." not in key]
    check_keys("", plain, [*GROUPS, *chosen, *of_no_group])
    check_keys("scenario", plain["scenario"], ["name", "split", "heads", "order", "live"])
    for group in ("scenario.live", *GROUPS[1:], *chosen):
        required_value(plain, f"{group}._target_")
    for key, hint in KEYS_WITHOUT_TARGET.items():
        check_type(key, required_value(plain, key), hint)
    for key, node in target_nodes(plain, ""):
        check_node(key, node)
        interfaces.check(key, node)
    combinations.check(plain)
    return plain
