"""The command that makes a config, and the config that a command makes.

A command is what is typed after `python -m cl_bench.run -m`. A record holds a config, not what was
typed. The command that is found for it is checked: it makes a config of the same hash. No name in a
record is looked up; the classes of its config must be those of the options in conf/.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.config import errors, folders
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.name import config_hash, normalise_floats
from cl_bench.config.nodes import (
    GROUPS,
    LABELS,
    METHOD_PARTS,
    OPTIONAL,
    Leaves,
    deciding,
    leaves,
    resolved,
)
from cl_bench.config.parent import KEY as CONTINUE
from cl_bench.config.words import typed
from cl_bench.report.runs import Record

OTHER_GROUPS = tuple(g for g in (*GROUPS, *OPTIONAL) if g not in (*LABELS, "tracking"))
METHOD_PREFIX = re.compile(rf"^method\.(?=({'|'.join(METHOD_PARTS)})\.)")


def overrides_of(command: str) -> list[str]:
    """The overrides of a command that decide its config's hash.

    Raises UserError where a quotation mark is not closed.
    """
    try:
        return deciding(shlex.split(command))
    except ValueError as error:
        raise UserError(f"{command}: {error}") from None


def hash_of(overrides: list[str]) -> str | None:
    """The hash of the config that overrides make; None where they are refused, or are a sweep."""
    try:
        cfg = composed(*overrides)
        normalise_floats(cfg, check_config(cfg))
        return config_hash(cfg)
    except Exception as error:
        if errors.explain(error) is None:
            raise
        return None


def find_command(record: Record, experiment: str | None = None) -> str | None:
    """A command, without a seed, that makes the config of a record; None where none is found.

    experiment  an option of that group with which the command begins
    """
    labels, wanted, seed = record["labels"], record["hash"], f"seed={record['seed']}"
    if any(labels[group] not in folders.option_names(group) for group in LABELS):
        return None
    labelled = [f"{group}={labels[group]}" for group in LABELS]
    first = [] if experiment is None else [f"experiment={experiment}"]
    try:
        ways = _ways(first, labelled, _typed_leaves(record["config"]))
        chosen = next((words for words in ways if hash_of([*words, seed]) == wanted), [])
    except Exception as error:
        if errors.explain(error) is None:
            raise
        return None
    if not chosen:
        return None
    # datasets choose a scenario, and experiments a dataset and a scenario
    for group in ("scenario=", "dataset=") if experiment else ("scenario=",):
        shorter = [word for word in chosen if not word.startswith(group)]
        if hash_of([*shorter, seed]) == wanted:
            chosen = shorter
    return shlex.join(chosen)


def _ways(first: list[str], labelled: list[str], goal: Leaves) -> Iterator[list[str]]:
    """The overrides that may lead to a config, of which its hash decides.

    They differ in the options that the record's code did not have yet: these have the value of
    today's options, or that of the options without the experiment, which may set them, or none.
    """
    chosen = _overrides([*first, *labelled], goal)
    known = [word for word in chosen if not word.startswith("~")]
    yield known
    missing = [word[1:] for word in chosen if word.startswith("~")]
    if first and missing:
        try:
            plain = [word for word in _overrides(labelled, goal) if not word.startswith("~")]
            config, today = _composed_leaves(plain), _composed_leaves(known)
        except UserError:  # these options cannot lead there
            config = today = {}
        moved = [key for key in missing if key in config and config[key] != today.get(key)]
        yield [*known, *(f"{key}={typed(config[key])}" for key in moved)]
    yield chosen


def _overrides(chosen: list[str], goal: Leaves) -> list[str]:
    """The overrides that lead from these options to a config: options of other groups, then values.

    Raises UserError where the config names a class that these options do not have, or has an
    interpolation.
    """
    config = _composed_leaves(chosen)
    for group in OTHER_GROUPS:
        keys = [k for k in {*config, *goal} if k == group or k.startswith(f"{group}.")]
        if any(config.get(k) != goal.get(k) for k in keys if k.endswith("_target_")):
            chosen, config = _nearest_option(group, chosen, config, goal)
    for key, value in goal.items():
        foreign = "${" in str(value) and key != CONTINUE
        if ("._" in f".{key}" and config.get(key, ...) != value) or foreign:
            raise UserError(f"{key}={value}: of no option")
    return [*chosen, *_value_overrides(config, goal)]


def _nearest_option(
    group: str, chosen: list[str], config: Leaves, goal: Leaves
) -> tuple[list[str], Leaves]:
    """The choice with the option of a group whose config is nearest to `goal`.

    That is the one with the most classes in common, and of several the one with the most values.
    """
    tried = [(chosen, config)]
    for name in folders.option_names(group):
        more = [*chosen, f"{group}={name}"]
        tried.append((more, _composed_leaves(more)))

    def differing(choice: tuple[list[str], Leaves]) -> tuple[int, int]:
        keys = {key for key in (*choice[1], *goal) if key.startswith(group)}
        other = [key for key in keys if choice[1].get(key, ...) != goal.get(key, ...)]
        return sum(key.endswith("_target_") for key in other), len(other)

    return min(tried, key=differing)


def _composed_leaves(overrides: list[str]) -> Leaves:
    return _cached_leaves(tuple(overrides), folders.all_folders())


@lru_cache(maxsize=512)
def _cached_leaves(overrides: tuple[str, ...], option_folders: tuple[Path, ...]) -> Leaves:
    """The rows of a table try the same options; other folders have others of the same names."""
    return _typed_leaves(resolved(composed(*overrides)))


def _typed_leaves(config: dict[str, Any]) -> Leaves:
    """The values of a config by the keys that they are typed with."""
    return {METHOD_PREFIX.sub("", key): value for key, value in leaves(config).items()}


def _value_overrides(config: Leaves, goal: Leaves) -> Iterator[str]:
    """The overrides that lead from one config to another."""
    for key in sorted({*config, *goal}):
        if key not in goal:
            yield f"~{key}"
        elif key not in config:
            yield f"+{key}={typed(goal[key])}"
        elif config[key] != goal[key]:
            yield f"{key}={typed(goal[key])}"
