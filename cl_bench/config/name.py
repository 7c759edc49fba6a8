"""The hash that names a config: of every key that can change a number of its runs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cl_bench.config.build import parameter_names
from cl_bench.config.nodes import PLACES, SILENT, resolved, target_nodes
from cl_bench.config.option_types import is_float
from cl_bench.config.parent import KEY, identity
from cl_bench.config.schema import KEYS_WITHOUT_TARGET, float_options, required_value
from cl_bench.config.unused_options import unused_keys
from cl_bench.models.pretrained import backbone_hash


def normalise_floats(cfg: DictConfig, plain: dict[str, Any]) -> None:
    """Cast ints to float for float options, so that 1 and 1.0 have one hash.

    Both forms of the config are changed in place: `cfg`, and `plain`, the same one resolved.
    """
    nodes = list(target_nodes(plain, ""))
    keys = [f"{key}.{name}" for key, node in nodes for name in float_options(node)]
    keys += [key for key, hint in KEYS_WITHOUT_TARGET.items() if is_float(hint)]
    for key in keys:
        group, _, name = key.rpartition(".")
        both = (plain, cfg)
        if group:
            both = (required_value(plain, group), OmegaConf.select(cfg, group))
        for node in both:
            if type(node[name]) is int:
                node[name] = float(node[name])


def config_hash(cfg: DictConfig) -> str:
    """Ten hexadecimal digits that name a config: the hash of every key that can change a number.

    The seed is left out, and so are places of files, options that only show or store something
    (`nodes.SILENT`), and options that make no difference here (`unused_options`). In place of the
    folder `continue_from` there is the hash of the run in it.
    """
    same, parent = cfg.copy(), identity(cfg)
    places = [p for p in PLACES if p != "data_dir" or "path" not in cfg.dataset.source]
    with open_dict(same):
        same.update(dict.fromkeys(places, 0))
        same.pop(KEY, None)
    kept = {k: v for k, v in resolved(same).items() if k not in SILENT}
    kept["runtime"]["device"] = kept["runtime"]["device"].partition(":")[0]  # cuda:1 is as cuda:0
    unused = unused_keys(kept, list(target_nodes(kept, "")))
    for key in sorted(unused, key=len, reverse=True):  # `a.b.c` before `a.b`
        group, _, name = key.rpartition(".")
        required_value(kept, group).pop(name, None)
    if kept.get("study") and "learner" not in parameter_names(cfg.study):
        kept = {"study": kept["study"]}  # it uses no other part of the config
    else:
        kept["model"]["pretrained"] = backbone_hash(kept["model"])
    if parent is not None:
        kept[KEY] = parent
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
