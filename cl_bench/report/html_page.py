"""The report as one HTML file that needs no server, no network and no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2

from cl_bench import __version__
from cl_bench.report import charts
from cl_bench.report.orders import ORDERS_NOTE, OrderSummary
from cl_bench.report.rows import Row
from cl_bench.report.statistics import INTERVAL_NOTE
from cl_bench.report.tables import LACKING_TITLE, NOTE, Table, columns


def html(
    tables: list[Table],
    orders: OrderSummary,
    title: str,
    left_out: Sequence[str] = (),
    lacking: Sequence[str] = (),
) -> str:
    """All tables with their pictures and published figures."""
    source = files("cl_bench.report").joinpath("page.html.j2").read_text()
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return jinja.from_string(source).render(
        title=title,
        version=__version__,
        notes=f"{NOTE} {INTERVAL_NOTE}",
        sections=[_section(table) for table in tables],
        orders=orders,
        orders_note=ORDERS_NOTE,
        left_out=left_out,
        lacking=lacking,
        lacking_title=LACKING_TITLE,
        runs=sum(len(row.runs) for table in tables for row in table.rows),
    )


def _section(table: Table) -> dict[str, Any]:
    drawn, shown = charts.drawn_rows(table), columns(table)
    costs = {quantity.name for quantity in (*table.costs, *table.facts)}
    results = [column for column in shown if column.name not in costs]
    spent = [column for column in shown if column.is_text or column.name in costs]
    return {
        "title": table.section.title,
        "note": table.note,
        "tables": [results, spent] if costs else [results],
        "not_drawn": len(table.rows) - len(drawn),
        "curves": charts.curves(drawn),
        "along": charts.curves_along(drawn),
        "costs": [*charts.against_costs(table, drawn)],
        "legend": [*charts.legend(drawn)],
        "maps": [_map(row) for row in drawn],
        "confusions": [*filter(None, map(_confusion, drawn))],
        "published": table.published,
    }


def _map(row: Row) -> dict[str, Any]:
    tasks = len(row.runs[0].record["accuracy"])
    picture = charts.heat_map(charts.matrices(row).mean(0))
    return {"name": row.name, "picture": picture, "tasks": tasks}


def _confusion(row: Row) -> dict[str, Any] | None:
    """The confusion matrix of a row; None where its runs did not keep predictions."""
    found = charts.confusions(row)
    if found is None:
        return None
    return {"name": row.name, "picture": charts.heat_map(found), "classes": len(found)}
