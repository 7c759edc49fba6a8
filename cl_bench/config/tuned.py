"""Puts the values that `python -m cl_bench.tune` has found into a config (`tuned=true`).

<tuned_dir>/<dataset>/<scenario>/<method>.yaml holds `values` and the evidence for them. The folder
is the user's own, `tuned/` in the working folder. Values that come with this package are in
cl_bench/tuned_values; those of the user's folder go before them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.nodes import (
    PACKAGE,
    Leaves,
    leaves,
    leaves_without,
    read_yaml,
    resolved,
    target_nodes,
)

SHIPPED = PACKAGE / "tuned_values"
CONDITIONS = ("method.", "model.", "criterion.", "optimizer.", "schedule.")


def values_file(folder: str | Path, dataset: str, scenario: str, method: str) -> Path:
    """The file in a folder with the tuned values of a method on a dataset in a scenario."""
    return files.absolute(folder) / dataset / scenario / f"{method}.yaml"


def find_file(cfg: DictConfig, labels: Sequence[str]) -> Path:
    """The file for a dataset, scenario and method: the user's, or the package's; it may lack."""
    places = [values_file(folder, *labels) for folder in (cfg.tuned_dir, SHIPPED)]
    return next((file for file in places if file.is_file()), places[0])


def apply(cfg: DictConfig, file: Path, overrides: Iterable[str]) -> None:
    """Put the values of a file into the config, except for keys that `overrides` set.

    Raises UserError where there is no such file, or where the values were found with other options
    of the method, curvature, model, criterion, optimizer or schedule.
    """
    if not file.is_file():
        from cl_bench.config.combinations import require_scenario  # imports PyTorch

        require_scenario(resolved(cfg))
        known = sorted(p.relative_to(file.parents[2]) for p in file.parents[2].rglob("*.yaml"))
        tuned = ", ".join(str(p.with_suffix("")) for p in known) or "none yet"
        wanted = f"{file.parents[1].name}/{file.parent.name}/{file.stem}"
        raise UserError(
            f"tuned=true: nothing was tuned for {wanted} (there is {tuned}); "
            f"python -m cl_bench.tune method={file.stem} dataset={file.parents[1].name} "
            f"scenario={file.parent.name} 'grid=<key>=<values>' does it, with this run's other "
            "options; tuned=false does without"
        )
    overridden = {override.split("=")[0].lstrip("+~") for override in overrides}
    values, evidence = _read(file)
    from cl_bench.config.unused_options import unused_keys  # imports PyTorch

    plain = resolved(cfg)
    unused = unused_keys(plain, target_nodes(plain, ""))
    _require_same(file, conditions(cfg, values), evidence.get("under"), unused)
    values = {key: value for key, value in values.items() if key not in overridden}
    words = (f"{key}={value}" for key, value in values.items())
    print("tuned:", *words, f"({file})", file=sys.stderr)  # stdout may be a config: --cfg job
    for key, value in values.items():
        if OmegaConf.select(cfg, key, default=cfg) is cfg:
            raise UserError(f"tuned=true: {file} has {key}, which this config does not have")
        with open_dict(cfg):
            OmegaConf.update(cfg, key, value)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a file and their evidence; UserError where it does not hold both."""
    damaged = UserError(
        f"tuned=true: {file} is damaged; tune again, or set the values as overrides"
    )
    try:
        found = read_yaml(file)
    except DamagedError:
        raise damaged from None
    values = found.get("values") if isinstance(found, dict) else None
    evidence = found.get("evidence", {}) if isinstance(found, dict) else None
    under = evidence.get("under", {}) if isinstance(evidence, dict) else None
    if not (isinstance(values, dict) and isinstance(evidence, dict) and isinstance(under, dict)):
        raise damaged
    return values, evidence


def conditions(cfg: DictConfig, values: Collection[str]) -> Leaves:
    """The options that tuned values depend on: those of CONDITIONS without the tuned keys."""
    found = leaves(resolved(cfg))
    return {k: v for k, v in found.items() if k.startswith(CONDITIONS) and k not in values}


def _require_same(file: Path, here: Leaves, there: Leaves | None, unused: set[str]) -> None:
    """Raise UserError where the conditions of this run are not those of the tuned values.

    unused  keys that make no difference in this run
    """
    if there is None:
        raise UserError(f"tuned=true: {file} does not say what it was found with; tune again")
    here, there = leaves_without(unused, here), leaves_without(unused, there)
    keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    if keys:
        then, now = (" ".join(f"{key}={part.get(key)}" for key in keys) for part in (there, here))
        raise UserError(
            f"tuned=true: {file} was found with {then}, this run has {now}; tune again with these, "
            "or set the values as overrides"
        )
