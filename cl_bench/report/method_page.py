"""The page of a suite: a row for each method, with what it reached and what it cost."""

from __future__ import annotations

from typing import Any

from cl_bench.base.exceptions import UserError
from cl_bench.report.quantities import ACC, BWT, COSTS, Quantity, metric
from cl_bench.report.runs import Run, grouped
from cl_bench.report.statistics import mean_and_sd, summary
from cl_bench.report.sweep_page import SweepPage, require_one_config
from cl_bench.results.page import Page

ACC_TASK = metric("ACC_task")  # a column of class-incremental runs alone
METRICS = (ACC, ACC_TASK, metric("forgetting"), BWT, metric("LA"))
SHOWN = ("gradients", "train s", "state MiB")


class MethodTable(SweepPage):
    """Metrics and costs of each method over the seeds, the highest ACC first.

    The metrics are ACC, forgetting, BWT and LA, and ACC_task where a run measured it.
    """

    def __init__(self, title: str) -> None:
        super().__init__(title, [])

    def page(self, runs: list[Run]) -> Page:
        measured = [run for run in runs if ACC.read(run.record) is not None]
        if not measured:
            raise UserError("output_dir: no run there has measured ACC")
        cells = grouped(measured, lambda run: run.method)
        metrics = [m for m in METRICS if m is not ACC_TASK or m.values(measured)]
        rows = [self._row(method, cells[method], metrics) for method in cells]
        rows.sort(key=lambda row: -row["ACC"])
        streams = sorted({f"{run.dataset}, scenario={run.scenario}" for run in measured})
        findings = [
            f"measured on {' and '.join(streams)}",
            f"highest: {rows[0]['method']}, ACC {rows[0]['ACC']:.2f} (n = {rows[0]['n']})",
        ]
        return Page(self.title, findings, rows, lambda figure: self._draw(figure, rows))

    def _row(self, method: str, runs: list[Run], metrics: list[Quantity]) -> dict[str, Any]:
        require_one_config(runs, method)
        row: dict[str, Any] = {"method": method}
        for quantity in metrics:
            row |= mean_and_sd(quantity.name, summary(quantity.values(runs)))
        for quantity in COSTS:
            if quantity.name in SHOWN:
                found = summary(quantity.values(runs))
                row[quantity.name] = found and found.mean
        return row | {"n": len(runs)}

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel="ACC (%)", title=self.title)
        sds = [row["ACC sd"] or 0 for row in rows]
        axes.barh([row["method"] for row in rows], [row["ACC"] for row in rows], xerr=sds)
        axes.invert_yaxis()
