"""The tables and drawings on the pages of docs/results (`results_pages.py`)."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from math import hypot, sqrt
from typing import Any

from cl_bench.base.escape import markdown, visible
from cl_bench.base.exceptions import UserError
from cl_bench.report.published import Figure, figures
from cl_bench.report.results_table import ResultRow

PLUS_MINUS = "\u00a0±\u00a0"  # with spaces at which no line breaks
Group = list[ResultRow]  # the results with one row label, one for each metric


def grouped(rows: Iterable[ResultRow]) -> list[Group]:
    """The results grouped by their row label, in the order of the file."""
    found: dict[str, Group] = {}
    for row in rows:
        found.setdefault(row.row, []).append(row)
    return list(found.values())


def without_shared_options(rows: list[ResultRow]) -> tuple[list[str], list[ResultRow]]:
    """The options that stand in every row label, and the rows with labels that lack them.

    There are none where a label would be left without an option.
    """
    parts = {row.row: row.row.partition(", ") for row in rows}
    options = [part[0].split() for part in parts.values()]
    shared = [word for word in options[0] if "=" in word and all(word in o for o in options)]
    if len(options) == 1 or not shared or min(map(len, options)) == len(shared):
        return [], rows
    short = {
        label: " ".join(word for word in part[0].split() if word not in shared) + part[1] + part[2]
        for label, part in parts.items()
    }
    return shared, [replace(row, row=short[row.row]) for row in rows]


def ordered(rows: list[ResultRow], metric: str | None) -> list[ResultRow]:
    """The rows of each label together, from the highest mean of a metric to the lowest.

    Labels without the metric come last; with None the order stays. Raises UserError where no row
    has the metric.
    """
    if metric is None:
        return rows
    groups = grouped(rows)
    means = {g[0].row: row.mean for g in groups for row in g if row.metric == metric}
    if not means:
        raise UserError(f"order: {metric}: no row of {rows[0].table} has this metric")
    groups.sort(key=lambda group: means.get(group[0].row, Decimal("-Infinity")), reverse=True)
    return [row for group in groups for row in group]


def shared_line(words: list[str]) -> list[str]:
    """The sentence above a table that names the options which its row labels lack."""
    shown = visible(" ".join(words))
    return [f"Every row has `{shown}`; the first column shows the rest."] if words else []


def wide_table(groups: list[Group], metrics: list[str]) -> str:
    """A table with a line for each row label and a column for each metric."""
    every = [row for group in groups for row in group]
    compared = [m for m in metrics if any(r.published is not None for r in every if r.metric == m)]
    units = {row.metric: row.unit for row in every}
    intervals = [m for m in metrics if m == "ACC" and any(row.lower is not None for row in every)]
    split = len({row.split for row in every}) > 1
    heads = ["row", *(["split"] if split else []), "n", *(heading(m, units[m]) for m in metrics)]
    heads += [f"95 % interval of {m}" for m in intervals] + [f"published {m}" for m in compared]
    lines = []
    for group in groups:
        by_metric = {row.metric: row for row in group}
        cells = [label(group[0].row), *([group[0].split] if split else []), count(group)]
        cells += [measured(by_metric[m]) if m in by_metric else "" for m in metrics]
        cells += [interval(by_metric[m]) if m in by_metric else "" for m in intervals]
        cells += [published(by_metric[m]) if m in by_metric else "" for m in compared]
        lines.append(cells)
    return table(heads, lines)


def bars(groups: list[Group], metric: str) -> str:
    """A drawing with a bar for each row label that has the metric, in the colours of the page."""
    found = [(group[0].row, row) for group in groups for row in group if row.metric == metric]
    largest = max(row.mean for _, row in found)
    lines = []
    for place, (name, row) in enumerate(found):
        y, length = 24 * place, max(1, round(340 * row.mean / largest))
        lines += [
            f'<text x="330" y="{y + 16}" text-anchor="end">{html.escape(visible(name))}</text>',
            f'<rect x="340" y="{y + 3}" width="{length}" height="17" opacity="0.6"/>',
            f'<text x="{346 + length}" y="{y + 16}">{digits(row.mean, row.unit)}</text>',
        ]
    head = (
        f'<svg viewBox="0 0 740 {24 * len(found)}" fill="currentColor" font-size="13" role="img">'
    )
    title = f"<title>{html.escape(visible(metric))} by row</title>"
    caption = f"<figcaption>{html.escape(visible(metric))}</figcaption>"
    return "\n".join(["<figure>", head, title, *lines, "</svg>", caption, "</figure>"])


def long_table(rows: list[ResultRow]) -> str:
    """A table with a line for each number, for rows that have few metrics in common."""
    lines = [[label(r.row), markdown(visible(r.metric)), measured(r)] for r in rows]
    return table(["row", "quantity", "value"], lines)


def short_table(rows: list[ResultRow]) -> str:
    """The table that stands in a text: results on test images, with the published ACC.

    It has no column in which no row has a value.
    """
    heads = ["options", "n", "gradients", "ACC", "ACC_task", "BWT", "published ACC"]
    lines = []
    for group in grouped(row for row in rows if row.split == "test"):
        by_metric = {row.metric: row for row in group}
        if "ACC" not in by_metric:
            continue
        cells = [measured(by_metric[m]) if m in by_metric else "" for m in heads[2:-1]]
        lines.append([label(group[0].row), count(group), *cells, published(by_metric["ACC"])])
    kept = [i for i in range(len(heads)) if not lines or any(line[i] for line in lines)]
    return table([heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def beside_published(rows: list[ResultRow], source: str, **conditions: Any) -> str:
    """A table with a line for each result of which a source has a figure, whatever its protocol.

    conditions  of a figure's `row`, such as buffer.capacity=200: a figure that says otherwise is
                left out, and of several figures that is shown which names most of them

    Where the figures have standard errors, the difference is also given in standard errors: of the
    difference of the two means.
    """
    chosen: dict[tuple[str, ...], tuple[int, Figure]] = {}
    for figure in figures():
        named = {key: figure.row[key] for key in conditions if key in figure.row}
        if figure.source == source and named == {key: conditions[key] for key in named}:
            key = figure.dataset, figure.scenario, figure.method, figure.metric
            if len(named) > chosen.get(key, (-1, figure))[0]:
                chosen[key] = len(named), figure
    lines, methods = [], Counter((row.scenario, row.method, row.metric) for row in rows)
    for row in rows:
        _, figure = chosen.get((row.dataset, row.scenario, row.method, row.metric), (0, None))
        if row.split == "test" and figure is not None:
            theirs = published_figure(figure)
            off = float(row.mean) - figure.value
            several = methods[row.scenario, row.method, row.metric] > 1
            name = label(row.row) if several else f"`{row.method}`"
            cells = [name, row.scenario, markdown(row.metric), measured(row), theirs]
            lines.append([*cells, f"{off:+.2f}", in_standard_errors(off, row, figure)])
    if not lines:
        raise UserError(f"beside {source}: it has no figure of a row of {rows[0].table}")
    heads = ["method", "scenario", "metric", "here", f"published ({source})", "difference"]
    heads.append("in standard errors")
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return table([heads[i] for i in kept], [[line[i] for i in kept] for line in lines])


def in_standard_errors(difference: float, row: ResultRow, figure: Figure) -> str:
    """The difference over its standard error; empty where one of the two is not known."""
    if figure.kind != "sem" or figure.spread is None or row.sd is None or not row.n or row.n < 2:
        return ""
    error = hypot(figure.spread, float(row.sd) / sqrt(row.n))
    return f"{abs(difference) / error:.1f}" if error else ""


def published_figure(figure: Figure) -> str:
    """`61.93 ± 1.79`, and SEM after a standard error."""
    spread = "" if figure.spread is None else f"{PLUS_MINUS}{figure.spread:.2f}"
    return f"{figure.value:.2f}{spread}{' SEM' if spread and figure.kind == 'sem' else ''}"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    every = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"|{'|'.join(f' {c} ' if c else ' ' for c in cells)}|" for cells in every)


def heading(metric: str, unit: str) -> str:
    """The heading of a metric's column, with (%) where the unit is percent."""
    return f"{markdown(visible(metric))} (%)" if unit == "percent" else markdown(visible(metric))


def label(text: str) -> str:
    """A row label in Markdown: options as code, other words as text."""
    options, comma, rest = visible(text).partition(", ")
    if any("=" not in word for word in options.split()) or re.search(r"[`|]", options):
        return markdown(visible(text))
    return f"`{options}`{comma}{markdown(rest)}"


def count(group: Group) -> str:
    """The numbers of seeds n of a row label, joined by commas where its metrics differ."""
    return ", ".join(dict.fromkeys(str(row.n) for row in group if row.n is not None))


def measured(row: ResultRow) -> str:
    """`70.07 ± 0.96`."""
    exact = row.sd is None or (row.unit == "count" and row.sd == 0)
    return digits(row.mean, row.unit) + ("" if exact else f"{PLUS_MINUS}{digits(row.sd, row.unit)}")


def interval(row: ResultRow) -> str:
    """`69.10 to 71.04`."""
    ends = digits(row.lower, row.unit), digits(row.upper, row.unit)
    return " to ".join(ends) if all(ends) else ""


def published(row: ResultRow) -> str:
    """`73.61 ± 1.12 (EMCL, table III)`."""
    if row.published is None:
        return ""
    spread = row.published_spread
    around = "" if spread is None else f"{PLUS_MINUS}{spread:.2f}"
    return f"{row.published:.2f}{around} ({markdown(visible(row.published_source))})"


def digits(value: Decimal | None, unit: str) -> str:
    """A number; of many digits, two decimals in percent and else four significant digits stay."""
    if value is None:
        return ""
    if len(value.as_tuple().digits) > 4 and unit == "percent":
        return f"{value:z.2f}"  # z: no negative zero
    return f"{value:.4g}" if len(value.as_tuple().digits) > 5 else str(value).lower()
