"""`continue_from`: which finished run a run goes on from, and whether its config fits that run.

The other run is called the parent. Nothing but its record.json is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.combinations import keeps_optimizer
from cl_bench.config.nodes import Leaves, all_leaves, leaves_without, target_nodes
from cl_bench.config.unused_options import unused_keys
from cl_bench.config.words import typed
from cl_bench.data.check import holds_out

KEY = "continue_from"
# groups whose keys must have the parent's values: they decide what its parameters mean
SAME = ("model", "scenario", "schedule.batch_norm", "evaluation.split", "evaluation.holdout")
# the order of the tasks, whose first ones are compared with the parent's, and the number of stored
# samples in a step, which is no state of the method
FREE = ("scenario.order", "method.replay", "method.draws", "method.forward")
EVERY = "evaluation.every"
# keys that decide which images a task has
STREAM = ("dataset.", "stream.", "scenario.order", "schedule.patience", "schedule.holdout")


@dataclass(frozen=True)
class Parent:
    """A finished run, and what this one takes from it."""

    folder: Path
    name: str  # the folder as it is typed
    pattern: str  # the folder as it is in the config, with ${seed}: the same for all seeds
    hash: str
    seed: int
    config: dict[str, Any]
    with_method: bool  # whether it has the same method, whose state goes on, too
    tested_alike: bool  # whether evaluation.every is the same
    stream_keys: list[str]  # the keys of this config that make the stream and have another value


def identity(cfg: DictConfig) -> str | None:
    """What the hash of a config has of its parent: the parent's hash; None where there is none.

    The seed is left out: a run goes on from a run of its own seed.
    """
    return None if cfg.get(KEY) is None else _read(cfg)[1]["hash"]


def find(cfg: DictConfig, resolved: dict[str, Any]) -> Parent | None:
    """The parent of a run with this config, as it is and `resolved`; None where there is none.

    Raises UserError where there is no finished run in that folder, or the config does not fit it.
    """
    if cfg.get(KEY) is None:
        return None
    name = cfg[KEY]
    folder, record = _read(cfg)
    config, seed = record["config"], record["seed"]
    if seed != cfg.seed:
        raise UserError(
            f"{KEY}={name}: that run has seed {seed}, this one {cfg.seed}; use seed={seed}, or "
            f"write the folder with seed${{seed}} at its end"
        )
    if keeps_optimizer(resolved):
        raise UserError(
            f"schedule.fresh_optimizer=false: a finished run keeps no state of its optimizer, so "
            f"that {KEY}={name} cannot go on with it; use true"
        )
    same_method = config["method"]["_target_"] == resolved["method"]["_target_"]
    theirs, ours = (dict(all_leaves(whole, "")) for whole in (config, resolved))
    for key in ("scenario.name", *SAME):
        _require_same(name, key, theirs, ours, "the network goes on as it is; use the same value")
    if same_method:
        reason = "what the method keeps goes on as it is; use the same value, or another method"
        unused = unused_keys(resolved, target_nodes(resolved, ""))
        ours_used, theirs_used = (leaves_without(unused, values) for values in (ours, theirs))
        _require_same(name, "method", theirs_used, ours_used, reason)
    own, other = (holds_out(one) for one in (resolved, config))
    alike = theirs.get(EVERY) == ours.get(EVERY)
    keys = [key for key in ours if key.startswith(STREAM) and theirs.get(key) != ours[key]]
    differing = [f"{_typed(key, ours)} (before: {_typed(key, theirs)})" for key in sorted(keys)]
    if own != other:
        which = "this" if own else "that"
        differing.append(f"the images that {which} run keeps from training (schedule.holdout)")
    names = name, _for_all_seeds(cfg)
    return Parent(folder, *names, record["hash"], seed, config, same_method, alike, differing)


def _for_all_seeds(cfg: DictConfig) -> str:
    """The folder of the parent as it is written, with `${seed}` for the number at its end."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    return re.sub(rf"(?<=seed){cfg.seed}(?=/*$)", "${seed}", raw[KEY])


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


def _require_same(name: str, key: str, theirs: Leaves, ours: Leaves, reason: str) -> None:
    """Raise UserError where a key, or one in its group, has another value than the parent's."""
    for place in sorted({*theirs, *ours}):
        concerned = place == key or place.startswith(f"{key}.")
        if concerned and place not in FREE and theirs.get(place) != ours.get(place):
            raise UserError(
                f"{_typed(place, ours)}: {KEY}={name} was made with {_typed(place, theirs)}; "
                f"{reason}"
            )


def _typed(key: str, values: Leaves) -> str:
    """A value as it is typed: `scenario=class`, `model.hidden=[50]`; a class by its name alone."""
    group, _, last = key.rpartition(".")
    value = values.get(key)
    if last == "_target_":
        return f"{group}={str(value).rpartition('.')[2]}"
    if key == "scenario.name":
        return f"scenario={value}"
    return f"{key}={typed(value)}"
