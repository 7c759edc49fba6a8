"""Is a config right: every key, type, bound and combination, before anything is loaded."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cl_bench.base.exceptions import UserError
from cl_bench.config import combinations, interfaces
from cl_bench.config.nodes import GROUPS, OPTIONAL, resolved, target_nodes
from cl_bench.config.schema import PLAIN, at, check_keys, check_node, check_type


def check_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config, once every key, type and combination in it is known to be right."""
    try:
        whole = resolved(cfg)
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
    for key, node in target_nodes(plain, ""):
        check_node(key, node)
        interfaces.check(key, node)
    combinations.check(plain)
    return plain
