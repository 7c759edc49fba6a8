"""`continue_from`: which finished run a run goes on from, and whether its config fits that run.

The other run is called the parent. Nothing but its record.json is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.build import make_stream
from cl_bench.config.nodes import set_everywhere
from cl_bench.core.types import Stream

KEY = "continue_from"
# groups whose keys must have the parent's values: they decide what its parameters mean
SAME = ("model", "scenario", "schedule.batch_norm", "evaluation.split", "evaluation.holdout")
FREE = ("scenario.order",)  # the order of the tasks: the first ones are compared with the parent's


@dataclass(frozen=True)
class Parent:
    """A finished run, and what this one takes from it."""

    folder: Path
    name: str  # what the folder is called in the config: with ${seed}, it is the same for all seeds
    hash: str
    seed: int
    config: dict[str, Any]
    with_method: bool  # whether it has the same method, whose state goes on, too


def written(cfg: DictConfig) -> str | None:
    """The value of `continue_from` as it is in the config, with `${seed}` unresolved; or None."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    return raw.get(KEY)


def identity(cfg: DictConfig) -> str | None:
    """What the hash of a config has of its parent; None where there is none.

    A folder that is written with `${seed}` has a parent of each seed, so that the seed is left out.
    """
    name = written(cfg)
    if name is None:
        return None
    _, record = _read(cfg)
    return record["hash"] if "${seed}" in name else f"{record['hash']}-s{record['seed']}"


def find(cfg: DictConfig, resolved: dict[str, Any]) -> Parent | None:
    """The parent of a run with this config, as it is and `resolved`; None where there is none.

    Raises UserError where there is no finished run in that folder, or the config does not fit it.
    """
    name = written(cfg)
    if name is None:
        return None
    folder, record = _read(cfg)
    config, seed = record["config"], record["seed"]
    if seed != cfg.seed:
        raise UserError(
            f"{KEY}={name}: that run has seed {seed}, this one {cfg.seed}; use seed={seed}, or "
            f"write the folder with seed${{seed}} at its end"
        )
    for key in SAME:
        _require_same(name, key, config, resolved)
    same_method = config["method"]["_target_"] == resolved["method"]["_target_"]
    if same_method:
        _require_same(name, "method", config, resolved)
    return Parent(folder, name, record["hash"], seed, config, same_method)


def stream_of(parent: Parent, cfg: DictConfig) -> Stream:
    """The stream that the parent learned, on the CPU, from the folders of data of this config."""
    theirs = OmegaConf.create(parent.config)
    for key in ("data_dir", "cache_dir"):
        set_everywhere(theirs, key, cfg[key])
    return make_stream(theirs, torch.device("cpu"))


def _read(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The folder of the parent, and its record as plain values."""
    try:
        folder = files.absolute(str(cfg[KEY]))
    except OmegaConfBaseException as error:
        raise UserError(f"{KEY}: {str(error).splitlines()[0]}") from None
    try:
        record = files.read_json(folder / "record.json")
    except (OSError, DamagedError):
        raise UserError(
            f"{KEY}={cfg[KEY]}: there is no finished run in this folder; give the folder of one, "
            "which it prints at its end (`files: ...`)"
        ) from None
    needed = {"hash": str, "seed": int, "config": dict}
    if any(not isinstance(record.get(key), kind) for key, kind in needed.items()):
        raise UserError(f"{KEY}={cfg[KEY]}: its record.json is damaged; run it again")
    return folder, record


def _require_same(name: str, key: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise UserError where a key, or one in its group, has another value than the parent's."""
    for part in key.split("."):
        theirs, ours = theirs.get(part, {}), ours.get(part, {})
    for place in sorted({**_flat(key, theirs), **_flat(key, ours)}):
        pair = _flat(key, theirs).get(place), _flat(key, ours).get(place)
        if pair[0] != pair[1] and place not in FREE:
            raise UserError(
                f"{place}={pair[1]}: continue_from={name} was made with {pair[0]}, and its "
                "parameters go on as they are; use the same value"
            )


def _flat(key: str, value: Any) -> dict[str, Any]:
    """The values in nested dictionaries by dotted keys that begin with `key`."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, child in value.items() for k, v in _flat(f"{key}.{name}", child).items()}
