"""`continue_from`: which finished run a run goes on from, and whether its config fits that run.

The other run is called the parent. Nothing but its record.json is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.nodes import Leaves, all_leaves

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
    if cfg.get(KEY) is None:
        return None
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    return raw[KEY]


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
    same_method = config["method"]["_target_"] == resolved["method"]["_target_"]
    theirs, ours = (dict(all_leaves(whole, "")) for whole in (config, resolved))
    for key in (*SAME, "method") if same_method else SAME:
        _require_same(name, key, theirs, ours)
    return Parent(folder, name, record["hash"], seed, config, same_method)


def _read(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The folder of the parent, and its record as plain values."""
    folder = files.absolute(cfg[KEY])
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


def _require_same(name: str, key: str, theirs: Leaves, ours: Leaves) -> None:
    """Raise UserError where a key, or one in its group, has another value than the parent's."""
    for place in sorted({*theirs, *ours}):
        concerned = place == key or place.startswith(f"{key}.")
        if concerned and place not in FREE and theirs.get(place) != ours.get(place):
            raise UserError(
                f"{place}={ours.get(place)}: continue_from={name} was made with "
                f"{theirs.get(place)}, and its parameters go on as they are; use the same value"
            )
