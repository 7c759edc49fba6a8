"""Which config a command makes, and which command makes a config.

A command is what is typed after `python -m cl_bench.run -m`. A record holds a config, not what was
typed: the command that is found for it is proven, as it makes a config of the same hash. Nothing
that a record names is looked up: the classes of its config must be those of the options in conf/.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.config import errors
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import CONF, GROUPS, OPTIONAL, PLACES, SILENT, Leaves, leaves, resolved
from cl_bench.report.rows import Record

PARTS = ("curvature", "merging", "buffer")  # of a method, typed as groups of their own
LABELS = ("dataset", "scenario", "method")
OTHERS = tuple(group for group in (*GROUPS, *OPTIONAL) if group not in (*LABELS, "tracking"))
WITHIN = re.compile(rf"^method\.(?=({'|'.join(PARTS)})\.)")


def words(command: str) -> list[str]:
    """The overrides of a command that say which config it is: all but the seed and the places.

    UserError where a quotation mark is not closed.
    """
    ignored = {*PLACES, *SILENT} - {*PARTS}
    try:
        return [word for word in shlex.split(command) if word.partition("=")[0] not in ignored]
    except ValueError as error:
        raise UserError(f"{command}: {error}") from None


def hash_of(command: str) -> str | None:
    """The hash of a command's config; None where it is refused, a sweep, or of another program."""
    return _hash_of(words(command))


def _hash_of(overrides: list[str]) -> str | None:
    try:
        cfg = composed(*overrides)
        normalise_floats(cfg, check_config(cfg))
        return config_hash(cfg)
    except Exception as error:
        if errors.explain(error) is None:
            raise
        return None


def command_of(record: Record) -> str | None:
    """A command, without a seed, that makes a record's config; None where none is found."""
    labels, wanted = record["labels"], record["hash"]
    there = {group: {file.stem for file in (CONF / group).glob("*.yaml")} for group in LABELS}
    if any(labels[group] not in there[group] for group in LABELS):
        return None
    chosen = [f"{group}={labels[group]}" for group in LABELS]
    try:
        chosen = _overrides(chosen, _flat(record["config"]))
    except Exception as error:
        if errors.explain(error) is None:
            raise
        return None
    if _hash_of(chosen) != wanted:
        return None
    shorter = [word for word in chosen if not word.startswith("scenario=")]
    return shlex.join(shorter if _hash_of(shorter) == wanted else chosen)  # datasets bring theirs


def _overrides(chosen: list[str], goal: Leaves) -> list[str]:
    """What leads from these options to a config: options of other groups, then values.

    UserError where the config names a class that these options do not bring, or an interpolation.
    """
    here = _flat(resolved(composed(*chosen)))
    for group in OTHERS:
        keys = [key for key in {*here, *goal} if key == group or key.startswith(f"{group}.")]
        if any(here.get(key) != goal.get(key) for key in keys if key.endswith("_target_")):
            chosen, here = _nearest(group, chosen, here, goal)
    for key, value in goal.items():
        if ("._" in f".{key}" and here.get(key, ...) != value) or "${" in str(value):
            raise UserError(f"{key}={value}: of no option")
    return [*chosen, *_values(here, goal)]


def _nearest(group: str, chosen: list[str], here: Leaves, goal: Leaves) -> tuple[list[str], Leaves]:
    """The choice with that option of a group which differs least from a config."""
    tried = [(chosen, here)]
    for file in sorted((CONF / group).glob("*.yaml")):
        more = [*chosen, f"{group}={file.stem}"]
        tried.append((more, _flat(resolved(composed(*more)))))

    def unlike(found: tuple[list[str], Leaves]) -> int:
        keys = {key for key in (*found[1], *goal) if key.startswith(group)}
        return sum(found[1].get(key, ...) != goal.get(key, ...) for key in keys)

    return min(tried, key=unlike)


def _flat(config: dict[str, Any]) -> Leaves:
    """The values of a config by the keys that they are typed with."""
    return {WITHIN.sub("", key): value for key, value in leaves(config).items()}


def _values(here: Leaves, goal: Leaves) -> Iterator[str]:
    """The keys in which two configs differ, as overrides that lead from the one to the other."""
    for key in sorted({*here, *goal}):
        if key not in goal:
            yield f"~{key}"
        elif key not in here:
            yield f"+{key}={typed(goal[key])}"
        elif here[key] != goal[key]:
            yield f"{key}={typed(goal[key])}"


def typed(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z_][\w.:/-]*", value)
    reserved = value.lower() in ("null", "true", "false", "nan", "inf")
    return value if plain and not reserved else json.dumps(value, ensure_ascii=False)
