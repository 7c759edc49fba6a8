"""What the order of the tasks costs: configs that differ in `scenario.order` alone."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cl_bench.config.nodes import leaves
from cl_bench.report.configs import formatted, varied
from cl_bench.report.rows import Record, runs
from cl_bench.report.statistics import Summary
from cl_bench.results.order_disparity import DISPARITIES, disparities, identities
from cl_bench.results.record import Records
from cl_bench.results.terminal import percent

ORDERS = (
    "AOPD and MOPD: a task's best minus its worst final accuracy over the orders, whose seeds are "
    "averaged first; mean and maximum over the tasks, in percentage points. ... of seeds: what as "
    "many orders would show that differ by their seeds alone (from two seeds on). ACC: mean ± "
    "standard deviation over the orders."
)


@dataclass(frozen=True)
class OrderTable:
    """One row for all orders of tasks of a config; and what has none though it has orders."""

    rows: list[dict[str, Any]]
    left_out: str  # a sentence; empty: nothing

    @property
    def heads(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []


NONE = OrderTable([], "")


def orders(records: Records) -> OrderTable:
    """AOPD and MOPD in percentage points, of tasks by identity; on test images.

    An order's seeds are averaged first. `of seeds` is what there would be if orders were all alike.
    """
    found: dict[tuple[str, str, str], dict[str, dict[str, list[Record]]]] = {}
    for (*names, split), record in runs(records):
        if split == "test" and None not in record["accuracy"][-1]:
            config = leaves(record["config"])
            order = str(config.pop("scenario.order", None))
            config["tasks"] = sorted(identities(record))
            name = json.dumps(config, sort_keys=True, default=str)
            own = found.setdefault((names[0], names[1], names[2]), {}).setdefault(name, {})
            own.setdefault(order, []).append(record)
    rows, left = [], []
    for names, configs in found.items():
        several = {name: own for name, own in configs.items() if len(own) > 1}
        kept = {name: json.loads(name) for name in several}
        keys = varied(list(kept.values()))
        for name, own in several.items():
            row: dict[str, Any] = dict(zip(("dataset", "scenario", "method"), names, strict=True))
            row["options"] = formatted(kept[name], keys)
            rows.append(row | _disparities(list(own.values())))
        left += [f"{names[2]} on {names[0]} ({n} runs)"] if (n := _alone(configs)) else []
    note = "Left out, as their orders have unlike tasks (stream.first): " + ", ".join(left) + "."
    return OrderTable(rows, note if left else "")


def _alone(configs: dict[str, dict[str, list[Record]]]) -> int:
    """Runs whose tasks no other order has, of configs that have several orders."""
    alike: dict[str, list[dict[str, list[Record]]]] = defaultdict(list)
    for name, own in configs.items():
        config = {k: v for k, v in json.loads(name).items() if k != "tasks"}
        alike[json.dumps(config, sort_keys=True)].append(own)
    lone = [own for parts in alike.values() if len(parts) > 1 for own in parts if len(own) == 1]
    return sum(len(seeds) for own in lone for seeds in own.values())


def _disparities(several: list[list[Record]]) -> dict[str, Any]:
    found = disparities(several)
    shares = {name: percent(found[name]) for name in DISPARITIES}
    acc = Summary(tuple(100 * value for value in found["ACC"])).formatted()
    return {"orders": len(several), "seeds": found["seeds"], "ACC": acc, **shares}
