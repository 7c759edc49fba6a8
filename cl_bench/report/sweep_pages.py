"""The page of a sweep: Hydra callbacks that `experiment=...` calls once all of its runs are done.

Each reads the finished runs below output_dir, as a report does, and writes page.md, table.csv and
figure.png there. A row that would mix runs of several configs is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from statistics import mean
from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.report.orders import disparity, order_of
from cl_bench.report.quantities import ACC, BWT, GRADIENTS, GROWTH, TRAIN_SECONDS, metric
from cl_bench.report.runs import Run, grouped
from cl_bench.report.statistics import mean_and_sd, summary
from cl_bench.report.sweep_page import SweepPage, config_value, require_one_config
from cl_bench.results.page import Page
from cl_bench.results.record import value_or_none


class AblationTable(SweepPage):
    """ACC and BWT over the seeds, a row for each combination of the `variant` keys' values.

    `also`: the names of further metrics, such as forgetting and growth.
    """

    def __init__(self, title: str, variant: list[str], also: Sequence[str] = ()) -> None:
        super().__init__(title, variant)
        self.metrics = (ACC, BWT, *map(metric, also))
        self.columns = [key.removesuffix("._target_").rpartition(".")[2] for key in variant]

    def page(self, runs: list[Run]) -> Page:
        measured = [run for run in runs if ACC.read(run.record) is not None]
        if not measured:
            raise UserError("output_dir: no run there has measured ACC")
        cells = grouped(measured, self._values)
        rows = [self._row(values, cells[values]) for values in sorted(cells)]
        best = max(rows, key=lambda row: row["ACC"])
        options = ", ".join(f"{column}={best[column]}" for column in self.columns)
        findings = [f"highest: {options}, ACC {best['ACC']:.2f} (n = {best['n']})"]
        return Page(self.title, findings, rows, lambda figure: self._draw(figure, rows))

    def _values(self, run: Run) -> tuple[str, ...]:
        return tuple(config_value(run, key) or "none" for key in self.variant)

    def _row(self, values: tuple[str, ...], runs: list[Run]) -> dict[str, Any]:
        require_one_config(runs, " ".join(values))
        row: dict[str, Any] = dict(zip(self.columns, values, strict=True))
        for quantity in self.metrics:
            row |= mean_and_sd(quantity.name, summary(quantity.values(runs)))
        return row | {"gradients": GRADIENTS.read(runs[0].record), "n": len(runs)}

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel="ACC (%)", title=self.title)
        names = [" ".join(row[column] for column in self.columns) for row in rows]
        sds = [row["ACC sd"] or 0 for row in rows]
        axes.barh(names, [row["ACC"] for row in rows], xerr=sds)
        axes.invert_yaxis()


class ValueGrid(SweepPage):
    """ACC over the values of the key `x`; each variant's value is chosen on the validation split.

    `published`: percentages of a paper for each variant.
    """

    def __init__(self, title: str, variant: list[str], x: str, published: dict[str, float]) -> None:
        super().__init__(title, variant)
        self.x, self.published = x, published

    def page(self, runs: list[Run]) -> Page:
        cells = grouped(runs, lambda run: (self.label(run), self._value(run)))
        rows = [self._row(*key, cells[key]) for key in sorted(cells)]
        _mark_chosen(rows)
        name = self.x.rpartition(".")[2]
        findings = [
            f"{row['variant']}: {name} {row['value']:g}, {_accuracies(row)}"
            for row in rows
            if row["chosen"]
        ]
        if not findings:
            findings = ["nothing was chosen: no run on the validation split"]
        return Page(self.title, findings, rows, lambda figure: self._draw(figure, rows))

    def _value(self, run: Run) -> float:
        value = value_or_none(run.record["config"], self.x)
        if not isinstance(value, int | float | None):
            raise UserError(f"output_dir: a run there has {self.x}={value}, which is no number")
        return math.nan if value is None else float(value)

    def _row(self, variant: str, value: float, runs: list[Run]) -> dict[str, Any]:
        row: dict[str, Any] = {"variant": variant, "value": value}
        splits = grouped(runs, attrgetter("split"))
        for split in ("val", "test"):
            part = splits.get(split, [])
            require_one_config(part, f"{variant}, {self.x}={value:g}")
            values = ACC.values(part)
            row |= mean_and_sd(split, summary(values)) | {f"{split} n": len(values)}
        row |= {"published": self.published.get(variant)}
        row |= {"gradients": GRADIENTS.read(runs[0].record)}
        return row | {"train s": mean(TRAIN_SECONDS.values(runs)), "chosen": ""}

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel=self.x, ylabel="ACC (%)", xscale="log", title=self.title)
        for variant in dict.fromkeys(row["variant"] for row in rows):
            part = [row for row in rows if row["variant"] == variant]
            split = "test" if any(row["test n"] > 1 for row in part) else "val"
            part = [row for row in part if row[split] is not None]
            x, y = [row["value"] for row in part], [row[split] for row in part]
            sds = [row[f"{split} sd"] or 0 for row in part]
            axes.errorbar(x, y, sds, fmt="o-", capsize=3, label=f"{variant} ({split})")
        axes.legend()
        axes.grid(alpha=0.3)


def _mark_chosen(rows: list[dict[str, Any]]) -> None:
    """Mark the row of each variant that has the highest ACC on the validation split.

    A value at which a seed diverged is not chosen: its row has fewer numbers than others.
    """
    for variant in dict.fromkeys(row["variant"] for row in rows):
        known = [row for row in rows if row["variant"] == variant and row["val"] is not None]
        n = max((row["val n"] for row in known), default=0)
        complete = [row for row in known if row["val n"] == n]
        if complete:
            max(complete, key=lambda row: row["val"])["chosen"] = "*"


def _accuracies(row: dict[str, Any]) -> str:
    sd = "" if row["test sd"] is None else f" +- {row['test sd']:.2f}"
    test = "" if row["test"] is None else f", test {row['test']:.2f}{sd} (n = {row['test n']})"
    return f"validation {row['val']:.2f}{test}"


class Curves(SweepPage):
    """A number of each run over time: a probe's along training, or a metric's after each task.

    `quantity`: its name in metrics.jsonl. `scale`: that of the y axis.
    """

    def __init__(self, title: str, variant: list[str], quantity: str, scale: str) -> None:
        super().__init__(title, variant)
        self.quantity, self.scale = quantity, scale

    def page(self, runs: list[Run]) -> Page:
        curves: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            name = f"{self.label(run)} seed {run.seed}"
            if name in curves:
                raise UserError(
                    f"output_dir: {name} was run there twice; choose another output_dir"
                )
            journal = [row | row.get("metrics", {}) for row in run.journal()]
            curves[name] = [r for r in journal if self.quantity in r and r["event"] != "step"]
        curves = {name: points for name, points in curves.items() if points}
        if not curves:
            raise UserError(f"output_dir: no run there has measured {self.quantity}")
        rows = [self._row(name, points) for name, points in curves.items()]
        findings = [self._finding(row) for row in rows]
        return Page(self.title, findings, rows, lambda figure: self._draw(figure, curves))

    def _row(self, name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
        values = [point[self.quantity] for point in points]
        row = {"variant": name, "first": values[0], "largest": max(values), "last": values[-1]}
        row["last / largest"] = values[-1] / max(values) if max(values) else None
        last = {f"last {name}": points[-1].get(name) for name in ("loss", "accuracy")}
        return row | {name: value for name, value in last.items() if isinstance(value, float)}

    def _finding(self, row: dict[str, Any]) -> str:
        share, accuracy = row["last / largest"], row.get("last accuracy")
        return (
            f"{row['variant']}: {self.quantity} {row['first']:.4g} at first, {row['largest']:.4g} "
            f"at most, {row['last']:.4g} at last"
            + ("" if share is None else f" ({share:.3g} of the largest)")
            + ("" if accuracy is None else f" at training accuracy {accuracy:.3f}")
        )

    def _draw(self, figure: Any, curves: dict[str, list[dict[str, Any]]]) -> None:
        axes = figure.add_subplot(ylabel=self.quantity, yscale=self.scale, title=self.title)
        for name, points in curves.items():
            time = "step" if "step" in points[0] else "task"
            axes.set_xlabel(time)
            x, y = [point[time] for point in points], [point[self.quantity] for point in points]
            axes.plot(x, y, ".-", label=name)
        axes.legend()
        axes.grid(alpha=0.3)


class OrderTable(SweepPage):
    """ACC, AOPD and MOPD of each method over the orders of the tasks, in percent.

    `variant`: the keys that tell runs of one method apart (Li et al. 2024, HALRP).
    """

    def page(self, runs: list[Run]) -> Page:
        for run in runs:
            if None in run.record["accuracy"][-1]:
                raise UserError(f"output_dir: {run.method} lacks final accuracies")
        cells = grouped(runs, lambda run: f"{run.method} {self.label(run)}".rstrip())
        rows = [self._row(name, grouped(cells[name], order_of)) for name in sorted(cells)]
        orders = max(row["orders"] for row in rows)
        whole = [row for row in rows if row["orders"] == orders]  # fewer orders differ less
        least = min(whole, key=lambda row: row["AOPD"])
        findings = [
            f"least: {least['variant']}, AOPD {least['AOPD']:.2f}, MOPD {least['MOPD']:.2f}"
        ]
        findings += [
            f"{row['variant']}: {row['orders']} of {orders} orders, not to be compared"
            for row in rows
            if row not in whole
        ]
        return Page(self.title, findings, rows, lambda figure: self._draw(figure, rows))

    def _row(self, name: str, orders: dict[str, list[Run]]) -> dict[str, Any]:
        for order, runs in orders.items():
            require_one_config(runs, f"{name}, order {order}")
        found = disparity(orders.values())
        row: dict[str, Any] = {"variant": name, "orders": len(orders), "seeds": found.seeds}
        row |= mean_and_sd("ACC", found.acc) | found.values
        every = [run for runs in orders.values() for run in runs]
        for quantity in (BWT, GROWTH):
            mean_of_all = summary(quantity.values(every))
            row[quantity.name] = mean_of_all and mean_of_all.mean
        return row

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel="percentage points", title=self.title)
        places = range(len(rows))
        for shift, name in ((-0.2, "AOPD"), (0.2, "MOPD")):
            axes.barh([p + shift for p in places], [r[name] for r in rows], 0.4, label=name)
        axes.set_yticks(list(places), [row["variant"] for row in rows])
        axes.legend()
        axes.invert_yaxis()
