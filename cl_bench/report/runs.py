"""The finished runs below a folder, each one once."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.config.nodes import Leaves, leaves
from cl_bench.results.record import Records

Record = dict[str, Any]  # the content of a record.json
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its record, and the folder that it lies in.

    All names come from the record, not from the folder.
    """

    folder: Path
    record: Record

    @property
    def dataset(self) -> str:
        return self.record["labels"]["dataset"]

    @property
    def scenario(self) -> str:
        return self.record["labels"]["scenario"]

    @property
    def method(self) -> str:
        return self.record["labels"]["method"]

    @property
    def hash(self) -> str:
        return self.record["hash"]

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def split(self) -> str:
        """The images that it was tested on: test or val."""
        return str(self.config.get("evaluation.split", "test"))

    @cached_property
    def config(self) -> Leaves:
        """The values of its config that can change a number, by dotted key, without the seed."""
        return leaves(self.record["config"])

    def journal(self) -> list[dict[str, Any]]:
        """The rows of its metrics.jsonl; UserError where they cannot be read."""
        file = self.folder / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in file.read_bytes().splitlines()]
            return [row | {"event": row["event"]} for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(
                f"{file}: is missing or damaged; run it again with force=true"
            ) from None


def finished_runs(records: Records) -> list[Run]:
    """All finished runs; of several copies of a run the first one.

    Control characters in their records are written out.
    """
    found: dict[tuple[Any, ...], Run] = {}
    for folder, record in records.runs:
        run = Run(folder, visible(record))
        found.setdefault((run.dataset, run.scenario, run.method, run.hash, run.seed), run)
    return list(found.values())


def left_out(records: Records) -> list[str]:
    """A line for each damaged file, and for each copy whose results are not those of the first."""
    return visible([*records.damaged, *records.contradicting])


def grouped(runs: Iterable[Run], key: Callable[[Run], Key]) -> dict[Key, list[Run]]:
    """The runs by what `key` returns for them, in their order."""
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)
