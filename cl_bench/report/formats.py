"""Tables as text: for the terminal, as Markdown, as CSV and as LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from cl_bench.base.escape import cell
from cl_bench.base.escape import markdown as escaped
from cl_bench.report.orders import NO_ORDERS, ORDERS_NOTE, OrderSummary
from cl_bench.report.quantities import COSTS, METRICS
from cl_bench.report.rows import Row
from cl_bench.report.statistics import INTERVAL_NOTE, Summary, mean_and_sd
from cl_bench.report.tables import (
    LACKING_TITLE,
    LOST_MARK,
    MIXED_MARK,
    NOTE,
    OLD_MARK,
    Cell,
    Column,
    Table,
    code_mark,
    code_notes,
    columns,
)
from cl_bench.results.page import markdown_table

ORDERS_TITLE = "Order of the tasks"


def plain_text(tables: list[Table], orders: OrderSummary = NO_ORDERS) -> str:
    """The tables for a terminal."""
    parts = []
    for table in tables:
        texts = {column.name: [cell.text for cell in column.cells] for column in columns(table)}
        grid = pd.DataFrame(texts).to_string(index=False)
        parts.append(f"{table.section.title}\n{table.note}\n{grid}")
    if orders.rows:
        grid = pd.DataFrame(orders.rows).to_string(index=False)
        parts.append(f"{ORDERS_TITLE}\n{ORDERS_NOTE}\n{grid}")
    return "\n\n".join(filter(None, [*parts, orders.left_out]))


def data_frame(tables: list[Table]) -> pd.DataFrame:
    """All numbers, a line for each row: mean, sd and interval of each quantity."""
    lines = [_line(table, row) for table in tables for row in table.rows]
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def _line(table: Table, row: Row) -> dict[str, Any]:
    section = table.section
    line: dict[str, Any] = {"dataset": section.dataset, "scenario": section.scenario}
    line |= {"split": section.split, "stream": section.stream}
    line |= {"method": row.method, "options": row.options, "n": row.seeds}
    line |= {"different code": row.differing_modules or None}
    line |= {"changed since": row.changed_modules or None}
    line |= {"sources not found": row.lost_modules or None}
    for quantity in (*METRICS, *COSTS, *table.facts):
        line |= _numbers(quantity.name, row.summary(quantity))
    if table.baseline is not None:
        line |= {"baseline": table.baseline.name}
        line |= _numbers("ACC - baseline", table.gain(row))
    if (found := table.nearest(row)) is not None:
        line |= {"published ACC": found.figure.value, "published": found.figure.formatted()}
        line |= {"other protocol": "; ".join(found.differences)}
    return line | {"configs": " ".join(row.hashes), "config": json.dumps(row.config, default=str)}


def _numbers(name: str, found: Summary | None) -> dict[str, float | None]:
    low, high = (found and found.interval) or (None, None)
    return mean_and_sd(name, found) | {f"{name} low": low, f"{name} high": high}


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, in which no text is a formula to a spreadsheet."""
    return frame.map(cell).to_csv(index=False)


def markdown(
    tables: list[Table],
    orders: OrderSummary = NO_ORDERS,
    left_out: Sequence[str] = (),
    lacking: Sequence[str] = (),
) -> str:
    """A heading and a table for each section; the best in bold, the second best in italics."""
    parts = []
    for table in tables:
        shown = columns(table)
        lines = zip(*([_marked(cell) for cell in column.cells] for column in shown), strict=True)
        grid = markdown_table([escaped(column.name) for column in shown], lines)
        parts += [f"## {escaped(table.section.title)}", escaped(table.note), grid]
    parts += [escaped(NOTE), INTERVAL_NOTE]
    if orders.rows:
        lines = _texts(orders, escaped)
        parts += [f"## {ORDERS_TITLE}", ORDERS_NOTE, markdown_table(orders.heads, lines)]
    parts += [escaped(orders.left_out)]
    if left_out:
        parts += ["## Left out", "\n".join(f"- {escaped(line)}" for line in left_out)]
    if lacking:
        parts += [f"## {LACKING_TITLE}", "\n".join(f"- {escaped(line)}" for line in lacking)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _texts(orders: OrderSummary, escape: Callable[[str], str]) -> list[list[str]]:
    return [[escape(str(value)) for value in row.values()] for row in orders.rows]


def _marked(found: Cell) -> str:
    text = escaped(found.text)
    return {1: f"**{text}**", 2: f"_{text}_"}.get(found.rank or 0, text)


ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
ESCAPES |= {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}"}
ESCAPES |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


LATEX_MARKS = {"": "", MIXED_MARK: r"$^\dagger$", OLD_MARK: r"$^\ddagger$", LOST_MARK: r"$^\S$"}


def latex(tables: list[Table], orders: OrderSummary = NO_ORDERS) -> str:
    """Tables of booktabs with the metrics; the best in bold, the second best underlined."""
    parts = [r"% \usepackage{booktabs}", *(_latex_table(table) for table in tables)]
    if orders.rows:
        caption = _latex_text(f"{ORDERS_TITLE}. {ORDERS_NOTE}")
        shape = "l" * 4 + "r" * (len(orders.heads) - 4)
        parts.append(_booktabs(caption, shape, orders.heads, _texts(orders, _latex_text)))
    parts += [_latex_text(orders.left_out)] if orders.left_out else []
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Table) -> str:
    heads = {"options": "Options", "n": "$n$"} | {q.name: q.name for q in table.metrics}
    shown = [column for column in columns(table) if column.name in heads]
    methods = [_latex_text(row.method) + LATEX_MARKS[code_mark(row)] for row in table.rows]
    lines = zip(methods, *map(_latex_cells, shown), strict=True)
    texts = 1 + sum(column.is_text for column in shown)
    shape = "l" * texts + "r" * (1 + len(shown) - texts)
    caption = rf"{_latex_text(table.section.title)}, in percent: mean $\pm$ standard deviation "
    caption += "over $n$ seeds."
    caption += "".join(f" {_latex_text(note)}" for note in code_notes(table.rows))
    return _booktabs(caption, shape, ["Method", *(heads[c.name] for c in shown)], lines)


def _latex_cells(column: Column) -> list[str]:
    if column.is_text or column.name == "n":
        return [_latex_text(cell.text) for cell in column.cells]
    return [_latex_number(cell) for cell in column.cells]


def _latex_number(number: Cell) -> str:
    if number.sort_key is None:
        return "--"
    text = "$" + number.text.replace("±", r"\pm") + "$"
    ranked = {1: rf"\textbf{{\boldmath{text}}}", 2: rf"\underline{{{text}}}"}
    return ranked.get(number.rank or 0, text)


def _booktabs(caption: str, shape: str, heads: list[str], lines: Iterable[Sequence[str]]) -> str:
    begin = [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}"]
    begin += [rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    head, *body = (" & ".join(line) + r" \\" for line in [heads, *lines])
    body = [f"{{}}{line}" if line[0] in "[*" else line for line in body]  # no option of \\
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*begin, head, r"\midrule", *body, *end])


def _latex_text(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in text)
