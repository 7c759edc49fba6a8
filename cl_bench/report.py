"""python -m cl_bench.report outputs/: the runs below a folder as one table, seeds averaged.

Where configs differ in the order of their tasks, a second one: what the order costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from cl_bench.config import PLACES, SILENT
from cl_bench.disparity import DISPARITIES, disparities
from cl_bench.present import gradients, percent
from cl_bench.record import records

Record = dict[str, Any]
METRICS = ("ACC", "BWT", "forgetting", "LA")


def table(root: Path) -> pd.DataFrame:
    """One row a config: mean and standard deviation (n - 1) over its seeds, in percent.

    `differs` holds what sets a config apart from the others of its dataset, scenario and method.
    Only finished runs have a record; the others are not in the table.
    """
    families: dict[tuple[str, ...], dict[str, list[Record]]] = {}
    for folder, record in records(root.resolve()):
        family = families.setdefault(folder.parts[-5:-2], {})
        family.setdefault(record["hash"], []).append(record)
    rows = []
    for names, configs in families.items():
        told = _differences({name: seeds[0] for name, seeds in configs.items()})
        for name, seeds in configs.items():
            row = dict(zip(("dataset", "scenario", "method"), names, strict=True))
            rows.append(row | {"differs": told[name]} | _numbers(seeds))
    return pd.DataFrame(rows)


def order_table(root: Path) -> pd.DataFrame:
    """One row for all orders of tasks of a config: AOPD and MOPD in percentage points, by identity.

    An order's seeds are averaged first. `of seeds` is what there would be if orders were all alike.
    """
    found: dict[tuple[str, ...], dict[str, dict[str, list[Record]]]] = {}
    for folder, record in records(root.resolve()):
        leaves = _known(record) | {"scenario.order": None}
        name = json.dumps(leaves, sort_keys=True, default=str)
        orders = found.setdefault(folder.parts[-5:-2], {}).setdefault(name, {})
        orders.setdefault(str(record["config"].get("scenario", {}).get("order")), []).append(record)
    rows = []
    for names, configs in found.items():
        several = {k: v for k, v in configs.items() if len(v) > 1}
        first = {name: next(iter(orders.values()))[0] for name, orders in several.items()}
        told = _differences(first, ignored=("scenario.order",))
        for name, orders in several.items():
            row = dict(zip(("dataset", "scenario", "method"), names, strict=True))
            rows.append(row | {"differs": told[name]} | _told_disparities(list(orders.values())))
    return pd.DataFrame(rows)


def _told_disparities(orders: list[list[Record]]) -> dict[str, Any]:
    found = disparities(orders)
    shares = {name: percent(found[name]) for name in DISPARITIES}
    return {"orders": len(orders), "seeds": found["seeds"], "ACC": _spread(found["ACC"]), **shares}


def _numbers(records: list[Record]) -> dict[str, Any]:
    took = [sum(record["measured"]["train_seconds"]) for record in records]
    spreads = {m: _spread([record["metrics"][m] for record in records]) for m in METRICS}
    cost = gradients(records[0].get("gradients_per_sample"))
    grown = [(record.get("method") or {}).get("growth") for record in records]
    growth = {} if None in grown else {"growth": _spread(grown)}
    row = {"n": len(records), **spreads, **growth, "gradients": cost}
    return row | {"train s": f"{mean(took):.1f}", "later / first": _later(records)}


def _later(records: list[Record]) -> str:
    """Seconds of training of a task after the first, on average, over those of the first."""
    every = [record["measured"]["train_seconds"] for record in records]
    ratios = [mean(later) / first for first, *later in every if later and first]
    return f"{mean(ratios):.2f}" if ratios else "-"


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def _known(record: Record) -> dict[str, Any]:
    """What of a config can change a number, but the seed."""
    leaves = _leaves(record["config"], "")
    return {k: v for k, v in leaves if k.split(".")[0] not in PLACES + SILENT}


def _differences(family: dict[str, Record], ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """For each name the overrides in which the family's configs are not all alike."""
    configs = {name: _known(record) for name, record in family.items()}
    keys = {key for config in configs.values() for key in config}.difference(ignored)
    varied = [k for k in sorted(keys) if len({str(c.get(k)) for c in configs.values()}) > 1]
    return {h: " ".join(_told(k, c[k]) for k in varied if k in c) for h, c in configs.items()}


def _told(key: str, value: Any) -> str:
    """`curvature=KFAC` for `method.curvature._target_=cl_bench.curvature.kfac.KFAC`."""
    if key.endswith("._target_"):
        return f"{key.split('.')[-2]}={value.rsplit('.', 1)[-1]}"
    return f"{key}={value}"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    middle = percent(mean(known))
    return middle if len(known) == 1 else f"{middle} +- {percent(stdev(known))}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The finished runs below a folder as one table")
    parser.add_argument("root", type=Path, nargs="?", default=Path("outputs"))
    root = parser.parse_args().root
    found = table(root)
    if found.empty:
        parser.error(f"{root}: no finished run (record.json) below this folder")
    print(found.fillna("-").to_string(index=False))
    orders = order_table(root)
    if not orders.empty:
        print(f"\nOrder of the tasks:\n{orders.to_string(index=False)}")


if __name__ == "__main__":
    main()
