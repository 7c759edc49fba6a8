"""The page: one HTML file that needs no server, no network and no file beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from cl_bench import __version__
from cl_bench.report import charts
from cl_bench.report.published import Beside
from cl_bench.report.rows import Quantity, Row
from cl_bench.report.statistics import Summary
from cl_bench.report.tables import ACC, NOTE, Table, spelled, spelled_gain


def render(found: list[Table], orders: list[dict[str, str]], title: str) -> str:
    """HTML of all tables, pictures and published figures."""
    source = files("cl_bench.report").joinpath("page.html.j2").read_text()
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.from_string(source).render(
        title=title,
        version=__version__,
        note=NOTE,
        sections=[_section(table) for table in found],
        orders=orders,
        runs=sum(len(row.runs) for table in found for row in table.rows),
    )


def _section(table: Table) -> dict[str, Any]:
    drawn = charts.chosen(table)
    return {
        "title": table.title,
        "heads": _heads(table),
        "rows": [_row(table, place, row) for place, row in enumerate(table.rows)],
        "left_out": len(table.rows) - len(drawn),
        "curves": charts.curves(table),
        "costs": charts.against_costs(table),
        "maps": [_map(row) for row in drawn],
        "published": [_beside(fit) for fit in table.published],
    }


def _map(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "picture": charts.heat_map(row),
        "tasks": len(row.runs[0]["accuracy"]),
    }


def _heads(table: Table) -> list[dict[str, str]]:
    heads = [_head("method", kind="words")]
    heads += [_head("options", kind="words")] if _optional(table) else []
    heads.append(_head("n", "runs"))
    for quantity in table.metrics:
        heads.append(_head(quantity.name, "percent, mean ± standard deviation over the runs"))
        if quantity is ACC:
            heads.append(_head("95 % interval", "of the mean ACC: percentile bootstrap"))
            if table.baseline is not None:
                told = "ACC, paired by equal seeds, 95 % interval"
                heads.append(_head(f"over {table.baseline.name}", told))
    heads += [_head(quantity.name) for quantity in table.costs]
    return heads + ([_head("published ACC")] if table.published else [])


def _optional(table: Table) -> bool:
    return any(row.differs for row in table.rows)


def _head(name: str, hint: str = "", kind: str = "number") -> dict[str, str]:
    return {"name": name, "hint": hint, "kind": kind}


def _row(table: Table, place: int, row: Row) -> list[dict[str, Any]]:
    cells = [_words(row.method)] + ([_words(row.differs)] if _optional(table) else [])
    cells.append(_number(str(len(row.runs)), len(row.runs)))
    for quantity in table.metrics:
        found = table.summary(row, quantity)
        rank = table.ranks(quantity).get(place)
        cells.append(_number(spelled(found, quantity.digits), found and found.mean, rank))
        if quantity is ACC:
            cells.append(_interval(found))
            if table.baseline is not None:
                gain = table.gain(row)
                cells.append(_number(spelled_gain(gain), gain and gain.mean))
    cells += [_cost(table, row, quantity) for quantity in table.costs]
    if table.published:
        other = table.nearest(row)
        told = f"{other.figure.told()}{'*' if other.other else ''}" if other else "-"
        cells.append(_number(told, other and other.figure.value))
    return cells


def _interval(found: Summary | None) -> dict[str, Any]:
    if found is None or found.interval is None:
        return _number("-", None)
    low, high = found.interval
    return _number(f"{low:.2f} to {high:.2f}", low)


def _cost(table: Table, row: Row, quantity: Quantity) -> dict[str, Any]:
    found = table.summary(row, quantity)
    told = "-" if found is None else f"{found.mean:.{quantity.digits}f}"
    return _number(told, found and found.mean)


def _words(told: str) -> dict[str, Any]:
    return {"text": told, "key": told, "rank": None, "kind": "words"}


def _number(told: str, key: float | None, rank: int | None = None) -> dict[str, Any]:
    return {"text": told, "key": "" if key is None else key, "rank": rank, "kind": "number"}


def _beside(fit: Beside) -> dict[str, str]:
    return {
        "row": fit.row.name,
        "metric": fit.figure.metric,
        "ours": f"{fit.ours:.2f}",
        "published": fit.figure.told(),
        "deviation": f"{fit.deviation:+.2f}",
        "other": "; ".join(fit.other) or "the same, as far as its text says",
    }
