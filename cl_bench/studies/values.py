"""What a study reads from a record, and what it makes of the numbers of several."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.results.record import value_or_none

Record = dict[str, Any]


def number(record: Record, key: str) -> float:
    """A number of a run's config; NaN where it has none."""
    value = value_or_none(record["config"], key)
    if not isinstance(value, int | float | None):
        raise UserError(f"output_dir: a run there has {key}={value}, which is no number")
    return float("nan") if value is None else float(value)


def journal(file: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; UserError where they cannot be read."""
    try:
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
        return [row | {"event": row["event"]} for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file}: is missing or damaged; run it again with force=true") from None


def require_one(configs: list[Any], what: str) -> None:
    """UserError where a row's runs are not of one config."""
    if len(set(configs)) > 1:
        raise UserError(
            f"output_dir: {what} was run there with other values of other keys too; "
            "choose an output_dir of its own"
        )


def moments(name: str, values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation, each where there is one."""
    sd = stdev(values) if len(values) > 1 else None
    return {name: mean(values) if values else None, f"{name} sd": sd}


def word(record: Record, key: str) -> str | None:
    """A value of a run's config, of a path its last part; None where it has none."""
    value = value_or_none(record["config"], key)
    if value is None:
        return None
    return str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)
