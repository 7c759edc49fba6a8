"""The options in which configs differ, written as overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import Leaves


def varying_keys(configs: Sequence[Leaves]) -> list[str]:
    """The keys whose values are not the same in all configs, sorted.

    Keys that only come with a `_target_` which varies itself are left out, such as
    `optimizer.betas` where some configs have Adam: those that have them agree on the value.
    """
    every = {key for config in configs for key in config}
    keys = [k for k in sorted(every) if len({str(config.get(k)) for config in configs}) > 1]
    return [key for key in keys if not _comes_with_target(key, keys, configs)]


def _comes_with_target(key: str, varying: list[str], configs: Sequence[Leaves]) -> bool:
    values = {str(config[key]) for config in configs if key in config}
    target = f"{key.rpartition('.')[0]}._target_"
    return target in varying and len(values) == 1 and any(key not in c for c in configs)


def format_overrides(config: Leaves, keys: Iterable[str]) -> str:
    """The values of these keys that a config has: `curvature=KFAC optimizer.lr=0.1`."""
    found = [key for key in keys if key in config]
    return " ".join(f"{short_key(key)}={format_value(config[key])}" for key in found)


def short_key(key: str) -> str:
    """A key as it is typed: `curvature` for `method.curvature._target_`."""
    typed = re.sub(r"^method\.(?=\w+\.)", "", key)
    return typed.split(".")[-2] if typed.endswith("._target_") else typed


def format_value(value: Any) -> str:
    """A value as it is typed; of a class of cl_bench or PyTorch the name alone."""
    if isinstance(value, str) and value.startswith(("cl_bench.", "torch.")):
        return value.rsplit(".", 1)[-1]
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def resolve_key(key: str, known: set[str]) -> str:
    """The key of the configs that `--by key` means; UserError unless there is exactly one."""
    matches = matching_keys(key, known)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"--by {key}: may mean {' or '.join(sorted(matches))}; write it out")
    near = get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "keys are those of config.yaml"
    raise UserError(f"--by {key}: no config of these runs has it; {hint}")


def matching_keys(key: str, known: Iterable[str]) -> list[str]:
    """The keys that `key` may mean: itself, a group's `_target_`, or those that end with it."""
    if key in known:
        return [key]
    ends = [k for k in known if f".{k}".removesuffix("._target_").endswith(f".{key}")]
    return [k for k in ends if k.endswith("._target_")] or ends
