"""Rows as a table: for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cl_bench.report.published import Beside, beside
from cl_bench.report.rows import COSTS, METRICS, Quantity, Row, Section
from cl_bench.report.statistics import Summary, paired, summary
from cl_bench.types import UserError

UPPER = ("joint",)  # no rivals: never the best
ACC = METRICS[0]


@dataclass(frozen=True)
class Table:
    """The rows of one dataset, scenario and split."""

    section: Section
    rows: list[Row]
    baseline: Row | None
    published: list[Beside]

    @property
    def title(self) -> str:
        """`pmnist, data-incremental`."""
        dataset, scenario, split = self.section
        told = f"{dataset}, {scenario}-incremental"
        return told if split == "test" else f"{told}, validation split"

    @property
    def metrics(self) -> list[Quantity]:
        """Those that some row has."""
        return _there(METRICS, self.rows)

    @property
    def costs(self) -> list[Quantity]:
        """Those that some row has."""
        return _there(COSTS, self.rows)

    def summary(self, row: Row, quantity: Quantity) -> Summary | None:
        """Over its runs."""
        values = row.values(quantity)
        return summary(values) if values else None

    def gain(self, row: Row) -> Summary | None:
        """ACC over the baseline's, by equal seeds; None for the baseline itself."""
        if self.baseline is None or row is self.baseline:
            return None
        return paired(row.by_seed(ACC), self.baseline.by_seed(ACC))

    def nearest(self, row: Row) -> Beside | None:
        """The published ACC of the protocol that is nearest."""
        fits = [b for b in self.published if b.row is row and b.figure.metric == ACC.name]
        return fits[0] if fits else None

    def ranks(self, quantity: Quantity) -> dict[int, int]:
        """Places in `rows` of the best (1) and the second (2), by what is printed."""
        printed: dict[int, float] = {}
        for place, row in enumerate(self.rows):
            found = self.summary(row, quantity)
            if found is not None and row.method not in UPPER:
                printed[place] = quantity.better * round(found.mean, quantity.digits)
        if len(printed) < 2 or not quantity.better:
            return {}
        order = sorted(set(printed.values()), reverse=True)[:2]
        return {place: 1 + order.index(v) for place, v in printed.items() if v in order}


def tables(rows: list[Row], baseline: str | None) -> list[Table]:
    """One a dataset, scenario and split; test before validation."""
    sections: dict[Section, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    against = {s: _baseline(baseline, s, own) for s, own in sections.items() if baseline}
    if baseline and not any(against.values()):
        methods = ", ".join(sorted({row.method for row in rows}))
        raise UserError(f"--baseline {baseline!r}: no such row; methods: {methods}")
    ordered = sorted(sections, key=lambda s: (s[2] != "test", s))
    return [Table(s, sections[s], against.get(s), beside(sections[s])) for s in ordered]


def _baseline(told: str, section: Section, rows: list[Row]) -> Row | None:
    words = told.split()
    fits = [row for row in rows if row.method == words[0] and {*words} <= {*row.name.split()}]
    if len(fits) > 1 and section[2] == "val":
        return None  # a search's trials: none of them is the baseline
    if len(fits) > 1:
        names = "\n  ".join(row.name for row in fits)
        raise UserError(f"--baseline {told!r}: {len(fits)} rows in {'/'.join(section)}:\n  {names}")
    return fits[0] if fits else None


def _there(quantities: Iterable[Quantity], rows: list[Row]) -> list[Quantity]:
    return [quantity for quantity in quantities if any(row.values(quantity) for row in rows)]


def frame(found: list[Table]) -> pd.DataFrame:
    """All numbers, one row a config: mean, sd and the ends of the interval of each quantity."""
    lines = []
    for table in found:
        for row in table.rows:
            place = dict(zip(("dataset", "scenario", "split"), table.section, strict=True))
            line: dict[str, Any] = place | {"method": row.method, "differs": row.differs}
            line["n"] = len(row.runs)
            for quantity in (*METRICS, *COSTS):
                line |= _columns(quantity.name, table.summary(row, quantity))
            if table.baseline is not None:
                line["baseline"] = table.baseline.name
                line |= _columns("ACC - baseline", table.gain(row))
            if (other := table.nearest(row)) is not None:
                line |= {"published ACC": other.figure.value, "published": other.figure.told()}
                line["other protocol"] = "; ".join(other.other)
            lines.append(line)
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def _columns(name: str, found: Summary | None) -> dict[str, float | None]:
    if found is None:
        return {name: None}
    low, high = found.interval or (None, None)
    return {name: found.mean, f"{name} sd": found.sd, f"{name} low": low, f"{name} high": high}


def cells(table: Table) -> list[dict[str, str]]:
    """As text, for people; what was not measured is a dash."""
    lines = []
    for row in table.rows:
        line = {"method": row.method, "differs": row.differs, "n": str(len(row.runs))}
        for quantity in table.metrics:
            line[quantity.name] = spelled(table.summary(row, quantity), quantity.digits)
        if table.baseline is not None:
            line[f"ACC - {table.baseline.name}"] = spelled_gain(table.gain(row))
        for quantity in table.costs:
            found = table.summary(row, quantity)
            line[quantity.name] = "-" if found is None else f"{found.mean:.{quantity.digits}f}"
        if any(table.nearest(row) for row in table.rows):
            other = table.nearest(row)
            star = "*" if other and other.other else ""
            line["published ACC"] = f"{other.figure.told()}{star}" if other else "-"
        lines.append(line)
    return lines


def spelled(found: Summary | None, digits: int) -> str:
    """`71.20 ± 0.31`, or a dash."""
    return "-" if found is None else found.told(digits)


def spelled_gain(found: Summary | None) -> str:
    """`+1.20 [0.80, 1.60] (n=3)`, or a dash."""
    if found is None:
        return "-"
    ends = f" [{found.interval[0]:.2f}, {found.interval[1]:.2f}]" if found.interval else ""
    return f"{found.mean:+.2f}{ends} (n={found.n})"


def text(found: list[Table]) -> str:
    """For the terminal."""
    parts = []
    for table in found:
        shown = pd.DataFrame(cells(table)).to_string(index=False)
        parts.append(f"{table.title}\n{shown}")
    return "\n\n".join(parts)


def markdown(found: list[Table]) -> str:
    """A heading and a table each; the best in bold."""
    parts = []
    for table in found:
        lines = cells(table)
        for quantity in table.metrics:
            for place, rank in table.ranks(quantity).items():
                cell = lines[place][quantity.name]
                lines[place][quantity.name] = f"**{cell}**" if rank == 1 else f"_{cell}_"
        heads = list(lines[0])
        body = [[line[head].replace("|", "\\|") for head in heads] for line in lines]
        grid = [heads, ["---"] * len(heads), *body]
        rows = "\n".join("| " + " | ".join(line) + " |" for line in grid)
        parts.append(f"## {table.title}\n\n{rows}")
    return "\n\n".join([*parts, NOTE.replace("*", "\\*")]) + "\n"


NOTE = (
    "Mean ± standard deviation (n - 1) over n runs, metrics in percent; gradients: backward passes "
    "per training image. Bold: best, underlined or slanted: second, joint training apart. *: of "
    "another protocol."
)

ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
ESCAPES |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def latex(found: list[Table]) -> str:
    """A booktabs table each: best in bold, second underlined."""
    parts = [r"% \usepackage{booktabs}", *(_latex_table(table) for table in found)]
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Table) -> str:
    metrics, options = table.metrics, any(row.differs for row in table.rows)
    heads = ["Method", *(["Options"] if options else []), "$n$", *(q.name for q in metrics)]
    lines = [" & ".join(heads) + " \\\\\n\\midrule"]
    for place, row in enumerate(table.rows):
        told = [_escaped(row.differs)] if options else []
        numbers = [_latex_cell(table, place, quantity) for quantity in metrics]
        line = [_escaped(row.method), *told, str(len(row.runs)), *numbers]
        lines.append(" & ".join(line) + " \\\\")
    columns = "l" * (1 + options) + "r" * (1 + len(metrics))
    caption = f"{_escaped(table.title)}, in percent: mean $\\pm$ standard deviation of $n$ runs."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_cell(table: Table, place: int, quantity: Quantity) -> str:
    found = table.summary(table.rows[place], quantity)
    if found is None:
        return "--"
    number = "$" + found.told(quantity.digits, r" \pm ") + "$"
    rank = table.ranks(quantity).get(place)
    if rank == 1:
        return f"\\textbf{{\\boldmath{number}}}"
    return f"\\underline{{{number}}}" if rank == 2 else number


def _escaped(words: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in words)
