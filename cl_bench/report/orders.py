"""What the order of the tasks costs: configs that differ in `scenario.order` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cl_bench.disparity import DISPARITIES, disparities, identities
from cl_bench.present import percent
from cl_bench.report.configs import leaves, told, varied
from cl_bench.report.rows import Record, runs
from cl_bench.report.statistics import Summary


def order_rows(root: Path) -> list[dict[str, Any]]:
    """One row for all orders of tasks of a config: AOPD and MOPD in percentage points, by identity.

    On test images; an order's seeds are averaged first. `of seeds` is what there would be if
    orders were all alike.
    """
    found: dict[tuple[str, str, str], dict[str, dict[str, list[Record]]]] = {}
    for (*names, split), record in runs(root):
        if split == "test":
            config = leaves(record["config"])
            order = str(config.pop("scenario.order", None))
            config["tasks"] = sorted(identities(record))
            name = json.dumps(config, sort_keys=True, default=str)
            orders = found.setdefault((names[0], names[1], names[2]), {}).setdefault(name, {})
            orders.setdefault(order, []).append(record)
    rows = []
    for names, configs in found.items():
        several = {name: orders for name, orders in configs.items() if len(orders) > 1}
        kept = {name: json.loads(name) for name in several}
        keys = varied(list(kept.values()))
        for name, orders in several.items():
            row: dict[str, Any] = dict(zip(("dataset", "scenario", "method"), names, strict=True))
            row["options"] = told(kept[name], keys)
            rows.append(row | _disparities(list(orders.values())))
    return rows


def _disparities(orders: list[list[Record]]) -> dict[str, Any]:
    found = disparities(orders)
    shares = {name: percent(found[name]) for name in DISPARITIES}
    acc = Summary(tuple(100 * value for value in found["ACC"])).told()
    return {"orders": len(orders), "seeds": found["seeds"], "ACC": acc, **shares}
