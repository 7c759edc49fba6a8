"""The name of a config: a hash of all that can change a number of its runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cl_bench.config import idle
from cl_bench.config.build import parameters
from cl_bench.config.nodes import PLACES, SILENT, resolved, target_nodes
from cl_bench.config.option_types import is_real
from cl_bench.config.schema import PLAIN, at, reals
from cl_bench.models.pretrained import backbone_hash


def normalise_floats(cfg: DictConfig, plain: dict[str, Any]) -> None:
    """Cast ints to float for float options, in both, so that 1 and 1.0 have one hash."""
    places = [f"{key}.{name}" for key, node in target_nodes(plain, "") for name in reals(node)]
    for place in (*places, *(key for key, hint in PLAIN.items() if is_real(hint))):
        group, _, name = place.rpartition(".")
        homes = (at(plain, group), OmegaConf.select(cfg, group)) if group else (plain, cfg)
        for node in homes:
            if type(node[name]) is int:
                node[name] = float(node[name])


def config_hash(cfg: DictConfig) -> str:
    """The name of a config: a hash of all that can change a number, but the seed."""
    same = cfg.copy()
    anywhere = [p for p in PLACES if p != "data_dir" or "path" not in cfg.dataset.source]
    with open_dict(same):
        same.update(dict.fromkeys(anywhere, 0))
    kept = {k: v for k, v in resolved(same).items() if k not in SILENT}
    idle_keys = idle.unused(kept, list(target_nodes(kept, "")))
    for key in sorted(idle_keys, key=len, reverse=True):  # a part before the whole
        group, _, name = key.rpartition(".")
        at(kept, group).pop(name, None)
    if kept.get("study") and "learner" not in parameters(cfg.study):
        kept = {"study": kept["study"]}  # made of its own numbers
    else:
        kept["model"]["pretrained"] = backbone_hash(kept["model"])
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
