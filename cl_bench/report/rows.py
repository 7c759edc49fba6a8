"""Records below a folder as rows: the runs of one config, or of configs alike in chosen keys."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import mean
from typing import Any

from cl_bench.config import PLACES, SILENT
from cl_bench.record import records
from cl_bench.types import UserError

Record = dict[str, Any]
Section = tuple[str, str, str]  # dataset, scenario, split


@dataclass(frozen=True)
class Quantity:
    """A number of a run: how to read it, in which unit, and which way is better."""

    name: str
    of: Callable[[Record], float | None]
    better: int = 0  # 1: more, -1: less, 0: neither
    digits: int = 2


def _metric(name: str, better: int) -> Quantity:
    return Quantity(name, lambda run: _times(run["metrics"].get(name), 100), better)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


METRICS = (
    _metric("ACC", 1),
    _metric("BWT", 1),
    _metric("FWT", 1),
    _metric("forgetting", -1),
    _metric("LA", 1),
    _metric("AIA", 1),
    Quantity("growth", lambda run: _times((run.get("method") or {}).get("growth"), 100), -1),
)
COSTS = (
    Quantity("gradients", lambda run: run.get("gradients_per_sample"), -1, 1),
    Quantity("train s", lambda run: sum(run["measured"]["train_seconds"]), -1, 1),
    Quantity("later / first", lambda run: _later(run["measured"]["train_seconds"]), -1),
    Quantity("peak MiB", lambda run: run["measured"].get("peak_mib"), -1, 0),
    Quantity("state MiB", lambda run: _times(run.get("state_bytes"), 2**-20), -1, 1),
)


def _later(seconds: Sequence[float]) -> float | None:
    """Seconds of a task after the first, on average, over those of the first."""
    first, *later = seconds
    return mean(later) / first if later and first else None


@dataclass(frozen=True)
class Row:
    """Runs that are averaged, in the order of their seeds."""

    section: Section
    method: str
    differs: str  # what sets it apart from the other rows of its section and method
    runs: list[Record]

    @property
    def name(self) -> str:
        """The method and what is particular."""
        return f"{self.method} {self.differs}".strip()

    def values(self, quantity: Quantity) -> list[float] | None:
        """One number a run, or None where a run lacks it: means of other seeds mislead."""
        found = [quantity.of(run) for run in self.runs]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None

    def by_seed(self, quantity: Quantity) -> dict[int, float]:
        """Seed to number, for pairing; configs that were pooled are averaged."""
        found: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            if (value := quantity.of(run)) is not None:
                found[run["seed"]].append(value)
        return {seed: mean(values) for seed, values in found.items()}


def gather(root: Path, by: Sequence[str] = ()) -> list[Row]:
    """The rows of all finished runs, a dataset, scenario and split after the other.

    Without `by` a row is one config and its seeds, and `differs` tells its config from those of
    the same method. With it, a row is all runs that are alike in these keys (`curvature` stands
    for `method.curvature._target_`), and `differs` also says over which values it averages.
    """
    families: dict[tuple[Section, str], list[Record]] = defaultdict(list)
    for folder, record in records(root.resolve()):
        dataset, scenario, method = folder.parts[-5:-2]
        split = (record["config"].get("evaluation") or {}).get("split", "test")
        families[(dataset, scenario, split), method].append(record)
    if by:
        known = {key for runs in families.values() for run in runs for key in leaves(run)}
        by = [resolved(key, known) for key in by]
    rows = []
    for (section, method), runs in families.items():
        for differs, alike in _groups(runs, by).items():
            seeds = sorted(alike, key=lambda run: run["seed"])
            rows.append(Row(section, method, differs, seeds))
    return sorted(rows, key=lambda row: row.section)


def _groups(runs: list[Record], by: Sequence[str]) -> dict[str, list[Record]]:
    """What a family's rows differ in, to their runs."""
    found: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        name = json.dumps([leaves(run).get(key) for key in by]) if by else run["hash"]
        found[name].append(run)
    if not by:
        told = differences({name: alike[0] for name, alike in found.items()})
        return {_unlike(told, name): alike for name, alike in found.items()}
    return {_told_group(alike, by): alike for alike in found.values()}


def _unlike(told: dict[str, str], name: str) -> str:
    """Configs that tell the same (a key that is in one alone) are told apart by their hash."""
    twins = [other for other, text in told.items() if text == told[name]]
    return told[name] if len(twins) == 1 else f"{told[name]} [{name}]".strip()


def _told_group(runs: list[Record], by: Sequence[str]) -> str:
    configs = [leaves(run) for run in runs]
    chosen = [told(key, configs[0][key]) for key in by if key in configs[0]]
    pooled = []
    for key in varied(configs, by):
        values = sorted({shown(config.get(key)) for config in configs})
        pooled.append(f"{short(key)}={'|'.join(values)}")
    return " ".join(chosen) + (f" (over {' '.join(pooled)})" if pooled else "")


def resolved(key: str, known: set[str]) -> str:
    """The one key of the configs that `key` means."""
    chosen = fitting(key, known)
    if len(chosen) != 1:
        near = chosen or get_close_matches(key, known, n=3, cutoff=0.3)
        what = "is in several keys" if chosen else "is no key of these runs' configs"
        raise UserError(f"--by {key}: {what}; did you mean {' or '.join(sorted(near))}?")
    return chosen[0]


def fitting(key: str, known: Iterable[str]) -> list[str]:
    """The keys that `key` may mean: itself, a group's target, those that end with it."""
    if key in known:
        return [key]
    ends = [k for k in known if f".{k}".removesuffix("._target_").endswith(f".{key}")]
    return [k for k in ends if k.endswith("._target_")] or ends


def leaves(record: Record) -> dict[str, Any]:
    """What of a config can change a number, but the seed, as `method.strength` to its value."""
    found = _leaves(record["config"], "")
    return {
        key: value
        for key, value in found
        if key.split(".")[0] not in PLACES + SILENT and key.split(".")[-1] != "data_dir"
    }


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def differences(family: dict[str, Record], ignored: Sequence[str] = ()) -> dict[str, str]:
    """For each name the overrides in which the family's configs are not all alike."""
    configs = {name: leaves(record) for name, record in family.items()}
    keys = varied(list(configs.values()), ignored)
    return {h: " ".join(told(k, c[k]) for k in keys if k in c) for h, c in configs.items()}


def varied(configs: list[dict[str, Any]], ignored: Sequence[str] = ()) -> list[str]:
    """The keys in which configs are not all alike.

    Without those that come with a part that is told (`optimizer.betas` of Adam):
    only some configs have them, and these the same value.
    """
    keys = {key for config in configs for key in config}.difference(ignored)
    unlike = [k for k in sorted(keys) if len({str(c.get(k)) for c in configs}) > 1]
    return [k for k in unlike if not _comes_along(k, unlike, configs)]


def _comes_along(key: str, unlike: list[str], configs: list[dict[str, Any]]) -> bool:
    own = {str(config[key]) for config in configs if key in config}
    part = f"{key.rpartition('.')[0]}._target_"
    return part in unlike and len(own) == 1 and any(key not in config for config in configs)


def told(key: str, value: Any) -> str:
    """`curvature=KFAC` for `method.curvature._target_=cl_bench.curvature.kfac.KFAC`."""
    return f"{short(key)}={shown(value, key.endswith('._target_'))}"


def short(key: str) -> str:
    """A key as it is told: a group's target by the group's name."""
    return key.split(".")[-2] if key.endswith("._target_") else key


def shown(value: Any, target: bool = True) -> str:
    """A value as an override has it; of a class, its name alone."""
    if target and isinstance(value, str) and value.startswith(("cl_bench.", "torch.")):
        return value.rsplit(".", 1)[-1]
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
