"""What the order of the tasks costs each method: a Hydra callback of `experiment=halrp/orders`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.results.order_disparity import DISPARITIES, disparities
from cl_bench.results.record import value_or_none
from cl_bench.studies.page import Page
from cl_bench.studies.sweeps import Study
from cl_bench.studies.values import Record, moments, require_one


class Orders(Study):
    """ACC, AOPD and MOPD of each method over its orders, as percentages (Li et al. 2024's tables).

    `variant`: the keys that tell runs of one method apart.
    """

    def page(self, found: list[tuple[Path, Record]]) -> Page:
        cells: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for _, record in found:
            if None in record["accuracy"][-1]:
                raise UserError(f"output_dir: {record['labels']['method']} lacks final accuracies")
            order = str(value_or_none(record["config"], "scenario.order"))
            method = record["labels"]["method"]
            cells[f"{method} {self.label(record)}".rstrip()][order].append(record)
        rows = [self._row(name, cells[name]) for name in sorted(cells)]
        most = max(row["orders"] for row in rows)
        whole = [row for row in rows if row["orders"] == most]  # fewer orders have less disparity
        least = min(whole, key=lambda row: row["AOPD"])
        findings = [
            f"least: {least['variant']}, AOPD {least['AOPD']:.2f}, MOPD {least['MOPD']:.2f}"
        ]
        findings += [
            f"{row['variant']}: {row['orders']} of {most} orders, not to be compared"
            for row in rows
            if row not in whole
        ]
        return Page(self.title, findings, rows, lambda f: self._draw(f, rows))

    def _row(self, name: str, orders: dict[str, list[Record]]) -> dict[str, Any]:
        for order, seeds in orders.items():
            require_one([record["hash"] for record in seeds], f"{name}, order {order}")
        found = disparities(list(orders.values()))
        row = {"variant": name, "orders": len(orders), "seeds": found["seeds"]}
        row |= moments("ACC", [100 * value for value in found["ACC"]])
        row |= {k: None if found[k] is None else 100 * found[k] for k in DISPARITIES}
        records = [record for seeds in orders.values() for record in seeds]
        for key in ("metrics.BWT", "method.growth"):
            values = [value_or_none(record, key) for record in records]
            known = [100 * value for value in values if value is not None]
            row[key.rpartition(".")[2]] = mean(known) if known else None
        return row

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel="percentage points", title=self.title)
        places = range(len(rows))
        for shift, name in ((-0.2, "AOPD"), (0.2, "MOPD")):
            axes.barh([p + shift for p in places], [r[name] for r in rows], 0.4, label=name)
        axes.set_yticks(list(places), [row["variant"] for row in rows])
        axes.legend()
        axes.invert_yaxis()
