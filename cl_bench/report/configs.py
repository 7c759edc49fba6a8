"""The options in which configs differ, written as overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import Leaves


def varied(configs: Sequence[Leaves]) -> list[str]:
    """The keys in which configs are not all alike.

    Without those that come with a part that is shown (`optimizer.betas` of Adam): only some configs
    have them, and these the same value.
    """
    keys = {key for config in configs for key in config}
    unlike = [k for k in sorted(keys) if len({str(c.get(k)) for c in configs}) > 1]
    return [k for k in unlike if not _comes_along(k, unlike, configs)]


def _comes_along(key: str, unlike: list[str], configs: Sequence[Leaves]) -> bool:
    own = {str(config[key]) for config in configs if key in config}
    part = f"{key.rpartition('.')[0]}._target_"
    return part in unlike and len(own) == 1 and any(key not in config for config in configs)


def formatted(config: Leaves, keys: Iterable[str]) -> str:
    """Overrides, but of keys that it does not have: `curvature=KFAC optimizer.lr=0.1`."""
    return " ".join(f"{short(key)}={shown(config[key])}" for key in keys if key in config)


def short(key: str) -> str:
    """A key as it is typed: a group's target by the group's name, a part of a method by its own."""
    own = re.sub(r"^method\.(?=\w+\.)", "", key)
    return own.split(".")[-2] if own.endswith("._target_") else own


def shown(value: Any) -> str:
    """A value as an override has it; of a class, its name alone."""
    if isinstance(value, str) and value.startswith(("cl_bench.", "torch.")):
        return value.rsplit(".", 1)[-1]
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def resolved(key: str, known: set[str]) -> str:
    """The one key of the configs that `key` means."""
    chosen = fitting(key, known)
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UserError(f"--by {key}: may mean {' or '.join(sorted(chosen))}; write it out")
    near = get_close_matches(key, known, n=3, cutoff=0.5)
    there = f"did you mean {' or '.join(near)}?" if near else "keys are those of config.yaml"
    raise UserError(f"--by {key}: no config of these runs has it; {there}")


def fitting(key: str, known: Iterable[str]) -> list[str]:
    """The keys that `key` may mean: itself, a group's target, those that end with it."""
    if key in known:
        return [key]
    ends = [k for k in known if f".{k}".removesuffix("._target_").endswith(f".{key}")]
    return [k for k in ends if k.endswith("._target_")] or ends
