"""Tables as text: for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from cl_bench.base.escape import cell
from cl_bench.base.escape import markdown as inert
from cl_bench.report.orders import NONE, ORDERS, OrderTable
from cl_bench.report.rows import COSTS, METRICS, Quantity
from cl_bench.report.statistics import CAVEAT, Summary
from cl_bench.report.tables import NOTE, UNLIKE, Cell, Table, columns, of


def plain(found: list[Table], orders: OrderTable = NONE) -> str:
    """For the terminal."""
    parts = []
    for table in found:
        shown = {column.name: [cell.text for cell in column.cells] for column in columns(table)}
        text = pd.DataFrame(shown).to_string(index=False)
        parts.append(f"{table.section.title}\n{table.note}\n{text}")
    if orders.rows:
        text = pd.DataFrame(orders.rows).to_string(index=False)
        parts.append(f"Order of the tasks\n{ORDERS}\n{text}")
    return "\n\n".join(filter(None, [*parts, orders.left_out]))


def frame(found: list[Table]) -> pd.DataFrame:
    """All numbers, one line a row: mean, sd and the ends of the interval of each quantity."""
    lines = []
    for table in found:
        place = table.section
        for row in table.rows:
            line: dict[str, Any] = {"dataset": place.dataset, "scenario": place.scenario}
            line |= {"split": place.split, "stream": place.stream}
            line |= {"method": row.method, "options": row.differs}
            line["n"] = row.seeds
            line["different code"] = row.other_code or None
            line["changed since"] = row.outdated or None
            for quantity in (*METRICS, *COSTS):
                line |= _numbers(quantity.name, of(quantity)(row))
            if table.baseline is not None:
                line["baseline"] = table.baseline.name
                line |= _numbers("ACC - baseline", table.gain(row))
            if (other := table.nearest(row)) is not None:
                line |= {"published ACC": other.figure.value, "published": other.figure.formatted()}
                line["other protocol"] = "; ".join(other.other)
            line["configs"] = " ".join(sorted({run["hash"] for run in row.runs}))
            line["config"] = json.dumps(row.config, default=str)
            lines.append(line)
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def csv(table: pd.DataFrame) -> str:
    """A table as CSV, in which no text is a formula to a spreadsheet."""
    return table.map(cell).to_csv(index=False)


def _numbers(name: str, found: Summary | None) -> dict[str, float | None]:
    if found is None:
        return {name: None}
    low, high = found.interval or (None, None)
    return {name: found.mean, f"{name} sd": found.sd, f"{name} low": low, f"{name} high": high}


def markdown(found: list[Table], orders: OrderTable = NONE, left_out: Sequence[str] = ()) -> str:
    """A heading and a table each; the best in bold, the second slanted."""
    parts = []
    for table in found:
        shown = columns(table)
        lines = [[_marked(col.cells[place]) for col in shown] for place in range(len(table.rows))]
        grid = _grid([inert(column.name) for column in shown], lines)
        title = f"## {inert(table.section.title)}"
        parts.append("\n\n".join([title, inert(table.note), grid]))
    parts += [inert(NOTE), CAVEAT]
    if orders.rows:
        lines = [[inert(str(value)) for value in row.values()] for row in orders.rows]
        parts += ["## Order of the tasks", ORDERS, _grid(orders.heads, lines)]
    parts += [inert(orders.left_out)]
    parts += ["## Left out", "\n".join(f"- {inert(line)}" for line in left_out)] * bool(left_out)
    return "\n\n".join(filter(None, parts)) + "\n"


def _grid(heads: list[str], lines: list[list[str]]) -> str:
    whole = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in whole)


def _marked(found: Cell) -> str:
    text = inert(found.text)
    return {1: f"**{text}**", 2: f"_{text}_"}.get(found.rank or 0, text)


ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
ESCAPES |= {"±": r"$\pm$", "†": r"$\dagger$"}
ESCAPES |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def latex(found: list[Table], orders: OrderTable = NONE) -> str:
    """A booktabs table of the metrics each: best in bold, second underlined; one of the orders."""
    parts = [r"% \usepackage{booktabs}", *(_latex_table(table) for table in found)]
    if orders.rows:
        lines = [[_escaped(str(value)) for value in row.values()] for row in orders.rows]
        shape = "l" * 4 + "r" * (len(orders.heads) - 4)
        parts.append(
            _booktabs(_escaped(f"Order of the tasks. {ORDERS}"), shape, orders.heads, lines)
        )
    parts += [_escaped(orders.left_out)] if orders.left_out else []
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Table) -> str:
    ranks = {quantity.name: table.ranks(quantity) for quantity in table.metrics}
    options = any(row.differs for row in table.rows)
    heads = ["Method", *(["Options"] if options else []), "$n$", *ranks]
    lines = []
    for place, row in enumerate(table.rows):
        difference = [_escaped(row.differs)] if options else []
        numbers = [
            _latex_number(of(quantity)(row), quantity, ranks[quantity.name].get(place))
            for quantity in table.metrics
        ]
        mark = r"$^\dagger$" if row.other_code else ""
        lines.append([_escaped(row.method) + mark, *difference, str(row.seeds), *numbers])
    shape = "l" * (1 + options) + "r" * (1 + len(ranks))
    spread = r"in percent: mean $\pm$ standard deviation over $n$ seeds."
    unlike = "; ".join(sorted({row.other_code for row in table.rows} - {""}))
    spread += rf" $^\dagger$: {UNLIKE} ({_escaped(unlike)})." if unlike else ""
    return _booktabs(f"{_escaped(table.section.title)}, {spread}", shape, heads, lines)


def _booktabs(caption: str, shape: str, heads: list[str], lines: list[list[str]]) -> str:
    begin = [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}"]
    begin += [rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    head, *body = (" & ".join(line) + r" \\" for line in [heads, *lines])
    body = [f"{{}}{line}" if line[0] in "[*" else line for line in body]  # no option of \\\\
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*begin, head, r"\midrule", *body, *end])


def _latex_number(found: Summary | None, quantity: Quantity, rank: int | None) -> str:
    if found is None:
        return "--"
    number = "$" + found.formatted(quantity.digits, r" \pm ") + "$"
    if rank == 1:
        return f"\\textbf{{\\boldmath{number}}}"
    return f"\\underline{{{number}}}" if rank == 2 else number


def _escaped(words: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in words)
