"""Values that `python -m cl_bench.tune` has found, and where they lie: `tuned=true` uses them.

conf/tuned_values/<dataset>/<scenario>/<method>.yaml holds `values` and the evidence.
(A folder conf/tuned would be a group to Hydra, and tuned=true an option of it.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import Leaves, leaves

NAME = "tuned_values"
UNDER = ("method.", "model.", "criterion.", "optimizer.", "schedule.")


def place(conf: Path, dataset: str, scenario: str, method: str) -> Path:
    """The file of one choice of the three."""
    return conf / NAME / dataset / scenario / f"{method}.yaml"


def apply(cfg: DictConfig, file: Path, typed: Iterable[str]) -> None:
    """Put the file's values into the config, but for the keys that were typed.

    UserError where they were found for another curvature, model or option of the method.
    """
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
    values, evidence = _read(file)
    _refuse_others(file, under(cfg, values), evidence.get("under"))
    values = {key: value for key, value in values.items() if key not in own}
    print("tuned:", *(f"{key}={value}" for key, value in values.items()), f"({file})")
    for key, value in values.items():
        if OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise UserError(f"tuned=true: {file} has {key}, which this config has not")
        with open_dict(cfg):
            OmegaConf.update(cfg, key, value)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and their evidence; UserError where the file does not hold both."""
    damaged = UserError(f"tuned=true: {file} is damaged; tune again, or type the values")
    try:
        files.require_regular(file)
        found: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, ValueError, OSError):
        raise damaged from None
    values = found.get("values") if isinstance(found, dict) else None
    evidence = found.get("evidence", {}) if isinstance(found, dict) else None
    under = evidence.get("under", {}) if isinstance(evidence, dict) else None
    if not (isinstance(values, dict) and isinstance(evidence, dict) and isinstance(under, dict)):
        raise damaged
    return values, evidence


def under(cfg: DictConfig, values: Collection[str]) -> Leaves:
    """What the values may depend on: method, model, loss and optimization, but for themselves."""
    found = leaves(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    return {k: v for k, v in found.items() if k.startswith(UNDER) and k not in values}


def _refuse_others(file: Path, here: Leaves, there: Leaves | None) -> None:
    if there is None:
        raise UserError(f"tuned=true: {file} does not say what it was found with; tune again")
    keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    if keys:
        then, now = (" ".join(f"{key}={part.get(key)}" for key in keys) for part in (there, here))
        raise UserError(
            f"tuned=true: {file} was found with {then}, this run has {now}; tune it for that, or "
            "type the values"
        )
