"""The page: one HTML file that needs no server, no network and no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2

from cl_bench import __version__
from cl_bench.report import charts
from cl_bench.report.orders import ORDERS, OrderTable
from cl_bench.report.published import Beside
from cl_bench.report.rows import Row
from cl_bench.report.statistics import CAVEAT
from cl_bench.report.tables import NOTE, Table, columns


def render(found: list[Table], orders: OrderTable, title: str, left_out: Sequence[str] = ()) -> str:
    """HTML of all tables, pictures and published figures."""
    source = files("cl_bench.report").joinpath("page.html.j2").read_text()
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.from_string(source).render(
        title=title,
        version=__version__,
        notes=f"{NOTE} {CAVEAT}",
        sections=[_section(table) for table in found],
        orders=orders,
        orders_note=ORDERS,
        left_out=left_out,
        runs=sum(len(row.runs) for table in found for row in table.rows),
    )


def _section(table: Table) -> dict[str, Any]:
    drawn, shown = charts.chosen(table), columns(table)
    return {
        "title": table.section.title,
        "note": table.note,
        "columns": shown,
        "rows": list(zip(*(column.cells for column in shown), strict=True)),
        "left_out": len(table.rows) - len(drawn),
        "curves": charts.curves(drawn),
        "costs": charts.against_costs(table, drawn),
        "maps": [_map(row) for row in drawn],
        "published": [_beside(fit) for fit in table.published],
    }


def _map(row: Row) -> dict[str, Any]:
    tasks = len(row.runs[0]["accuracy"])
    return {"name": row.name, "picture": charts.heat_map(row), "tasks": tasks}


def _beside(fit: Beside) -> dict[str, str]:
    return {
        "row": fit.row.name,
        "metric": fit.figure.metric,
        "ours": f"{fit.ours:.2f}",
        "published": fit.figure.formatted(),
        "deviation": f"{fit.deviation:+.2f}",
        "other": "; ".join(fit.other) or "nothing that is known",
    }
