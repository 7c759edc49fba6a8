"""Values that `python -m cl_bench.tune` has found, and where they lie: `tuned=true` uses them.

conf/tuned_values/<dataset>/<scenario>/<method>.yaml holds `values` and the evidence.
(A folder conf/tuned would be a group to Hydra, and tuned=true an option of it.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cl_bench.types import UserError

NAME = "tuned_values"


def place(conf: Path, dataset: str, scenario: str, method: str) -> Path:
    """The file of one choice of the three."""
    return conf / NAME / dataset / scenario / f"{method}.yaml"


def apply(cfg: DictConfig, file: Path, typed: Iterable[str]) -> None:
    """Put the file's values into the config, but for the keys that were typed."""
    if not file.is_file():
        known = sorted(p.relative_to(file.parents[2]) for p in file.parents[2].rglob("*.yaml"))
        there = ", ".join(str(p.with_suffix("")) for p in known) or "none yet"
        wanted = f"{file.parents[1].name}/{file.parent.name}/{file.stem}"
        raise UserError(
            f"tuned=true: nothing was tuned for {wanted} (there is {there}); "
            f"python -m cl_bench.tune method={file.stem} dataset={file.parents[1].name} "
            "'grid=<key>=<values>' does it"
        )
    own = {override.split("=")[0].lstrip("+~") for override in typed}
    values: dict[str, Any] = OmegaConf.to_object(OmegaConf.load(file)).get("values", {})  # type: ignore[union-attr]
    for key, value in values.items():
        if key in own:
            continue
        if OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise UserError(f"tuned=true: {file} has {key}, which this config has not")
        with open_dict(cfg):
            OmegaConf.update(cfg, key, value)
