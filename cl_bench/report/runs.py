"""The finished runs below a folder, each one once."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.base.memory_size import SIZES, size_key
from cl_bench.config.nodes import Leaves, leaves
from cl_bench.results.records import Records

Record = dict[str, Any]  # the content of a record.json
Key = TypeVar("Key", bound=Hashable)
BUFFER = "method.buffer."


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. All names come from its record, not from the folder that it lies in."""

    folder: Path
    record: Record
    dataset: str
    scenario: str
    method: str
    split: str  # the images that it was tested on: test or val
    hash: str
    seed: int
    config: Leaves  # the values that can change a number, by dotted key, without the seed

    def journal(self) -> list[dict[str, Any]]:
        """The rows of its metrics.jsonl; UserError where they cannot be read."""
        file = self.folder / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in file.read_bytes().splitlines()]
            return [row | {"event": row["event"]} for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            line = f"{file}: is missing or damaged; run it again with force=true"
            raise UserError(line) from None


def finished_runs(records: Records) -> list[Run]:
    """All finished runs; of several copies of a run the first one.

    Control characters in their records are written out.
    """
    found: dict[tuple[Any, ...], Run] = {}
    for folder, content in records.runs:
        record = visible(content)
        config, labels = _config(record), record["labels"]
        split = str(config.get("evaluation.split", "test"))
        place = labels["dataset"], labels["scenario"], labels["method"], split
        name = (*place, record["hash"], record["seed"])
        found.setdefault(name, Run(folder, record, *name, config))
    return list(found.values())


def _config(record: Record) -> Leaves:
    """The values that can change a number; `continue_from` is the hash of the run that it names.

    Of the keys that say how large a memory is, it has the one that was used.
    """
    config, parent = leaves(record["config"]), record.get("parent")
    config.pop("continue_from", None)
    sizes = {key: config.pop(place) for key in SIZES if (place := f"{BUFFER}{key}") in config}
    if sizes:
        used = size_key(sizes)
        config[f"{BUFFER}{used}"] = sizes.get(used)
    return config | ({"continue_from": parent["hash"]} if parent else {})


def left_out(records: Records) -> list[str]:
    """A line for each damaged file, and for each copy whose results are not those of the first."""
    return visible([*records.damaged, *records.contradicting])


def grouped(runs: Iterable[Run], key: Callable[[Run], Key]) -> dict[Key, list[Run]]:
    """The runs by what `key` returns for them, in their order."""
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)
