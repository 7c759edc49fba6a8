"""What the order of the tasks costs: configs that differ in `scenario.order` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cl_bench.disparity import DISPARITIES, disparities
from cl_bench.present import percent
from cl_bench.record import records
from cl_bench.report.rows import Record, differences, leaves
from cl_bench.report.statistics import summary


def order_rows(root: Path) -> list[dict[str, Any]]:
    """One row for all orders of tasks of a config: AOPD and MOPD in percentage points, by identity.

    An order's seeds are averaged first. `of seeds` is what there would be if orders were all alike.
    """
    found: dict[tuple[str, ...], dict[str, dict[str, list[Record]]]] = {}
    for folder, record in records(root.resolve()):
        config = leaves(record) | {"scenario.order": None}
        name = json.dumps(config, sort_keys=True, default=str)
        orders = found.setdefault(folder.parts[-5:-2], {}).setdefault(name, {})
        orders.setdefault(str(record["config"].get("scenario", {}).get("order")), []).append(record)
    rows = []
    for names, configs in found.items():
        several = {k: v for k, v in configs.items() if len(v) > 1}
        first = {name: next(iter(orders.values()))[0] for name, orders in several.items()}
        told = differences(first, ignored=("scenario.order",))
        for name, orders in several.items():
            row = dict(zip(("dataset", "scenario", "method"), names, strict=True))
            rows.append(row | {"differs": told[name]} | _disparities(list(orders.values())))
    return rows


def _disparities(orders: list[list[Record]]) -> dict[str, Any]:
    found = disparities(orders)
    shares = {name: percent(found[name]) for name in DISPARITIES}
    acc = summary([100 * value for value in found["ACC"]])
    return {"orders": len(orders), "seeds": found["seeds"], "ACC": acc.told(), **shares}
