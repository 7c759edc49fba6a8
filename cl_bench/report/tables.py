"""Rows as tables: their columns, who is best, who is the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cl_bench.base.exceptions import UserError
from cl_bench.report.configs import formatted
from cl_bench.report.published import Beside, published_for
from cl_bench.report.rows import COSTS, HINTS, METRICS, Quantity, Row, Section, common
from cl_bench.report.statistics import METHOD, Summary, paired, summary

MARK = "†"  # of a row whose runs were made by different code
OLD_MARK = "‡"  # of a row whose runs were made by sources that were changed since
UNLIKE = "its runs were made by different code"
UPPER = ("joint",)  # no rivals: never the best
ACC = METRICS[0]
NOTE = (
    "Mean ± standard deviation (n - 1) over n seeds, in percent; gradients: backward passes "
    "per training image. Best and second are marked, joint training apart."
)


@dataclass(frozen=True)
class Table:
    """The rows of one section."""

    section: Section
    rows: list[Row]
    baseline: Row | None
    published: list[Beside]
    note: str

    @property
    def metrics(self) -> list[Quantity]:
        """Those that some row has."""
        return [quantity for quantity in METRICS if any(map(of(quantity), self.rows))]

    @property
    def costs(self) -> list[Quantity]:
        """Those that some row has."""
        return [quantity for quantity in COSTS if any(map(of(quantity), self.rows))]

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
            found = of(quantity)(row)
            if found is not None and row.method not in UPPER:
                printed[place] = quantity.better * round(found.mean, quantity.digits)
        if len(printed) < 2 or not quantity.better:
            return {}
        order = sorted(set(printed.values()), reverse=True)[:2]
        return {place: 1 + order.index(v) for place, v in printed.items() if v in order}


def of(quantity: Quantity) -> Callable[[Row], Summary | None]:
    """The summary of a quantity over a row's seeds; None where it was not measured."""
    return lambda row: summary([*row.by_seed(quantity).values()])


@dataclass(frozen=True)
class Cell:
    """The text of a table's cell, the value that it is sorted by, and its hint."""

    text: str
    key: float | str | None = None
    rank: int | None = None
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """A heading and its cells, in the order of the rows."""

    name: str
    cells: list[Cell]
    hint: str = ""
    words: bool = False


def columns(table: Table) -> list[Column]:
    """All columns that say something; what was not measured is a dash."""
    rows = table.rows
    found = [Column("method", [_named(row) for row in rows], words=True)]
    if any(row.differs for row in rows):
        found.append(Column("options", [_words(row.differs) for row in rows], words=True))
    found.append(Column("n", [_count(row) for row in rows], "seeds"))
    for quantity in table.metrics:
        hint = f"{HINTS[quantity.name]}; percent, mean ± standard deviation"
        found.append(Column(quantity.name, _measured(table, quantity), hint))
        if quantity is ACC:
            cells = [_interval(row) for row in rows]
            found.append(Column(METHOD, cells, "of ACC, from two seeds on"))
            if table.baseline is not None:
                cells = [_gain(table.gain(row)) for row in rows]
                hint = f"ACC, paired by equal seeds, with its {METHOD}"
                found.append(Column(f"over {table.baseline.method}", cells, hint))
    for quantity in table.costs:
        cells = [_cost(quantity, row) for row in rows]
        found.append(Column(quantity.name, cells, f"{HINTS[quantity.name]}; mean"))
    if any(table.nearest(row) for row in rows):
        found.append(Column("published ACC", [_nearest(table.nearest(row)) for row in rows]))
    return found


def _named(row: Row) -> Cell:
    own = [key for key in row.config if key.startswith("method.") and not key.endswith("_partial_")]
    mark = f" {MARK}" if row.other_code else f" {OLD_MARK}" if row.outdated else ""
    return Cell(row.method + mark, row.method, hint=formatted(row.config, own))


def _words(text: str) -> Cell:
    return Cell(text, text)


def _count(row: Row) -> Cell:
    return Cell(str(row.seeds), row.seeds)


def _measured(table: Table, quantity: Quantity) -> list[Cell]:
    ranks, cells = table.ranks(quantity), []
    for place, row in enumerate(table.rows):
        found = of(quantity)(row)
        text = "-" if found is None else found.formatted(quantity.digits)
        cells.append(Cell(text, found and found.mean, ranks.get(place)))
    return cells


def _interval(row: Row) -> Cell:
    found = of(ACC)(row)
    ends = found and found.interval
    return Cell(f"{ends[0]:.2f} to {ends[1]:.2f}", ends[0]) if ends else Cell("-")


def _gain(found: Summary | None) -> Cell:
    if found is None:
        return Cell("-")
    ends = f" [{found.interval[0]:.2f}, {found.interval[1]:.2f}]" if found.interval else ""
    return Cell(f"{found.mean:+.2f}{ends} (n={found.n})", found.mean)


def _cost(quantity: Quantity, row: Row) -> Cell:
    found = of(quantity)(row)
    return Cell("-") if found is None else Cell(f"{found.mean:.{quantity.digits}f}", found.mean)


def _nearest(other: Beside | None) -> Cell:
    if other is None:
        return Cell("-")
    return Cell(f"{other.figure.formatted()}{'*' if other.other else ''}", other.figure.value)


def tables(rows: list[Row], baseline: str | None) -> list[Table]:
    """One a section; test before validation."""
    sections: dict[Section, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    fits = {section: _fitting(baseline, own) for section, own in sections.items()}
    if baseline is not None and not any(len(found) == 1 for found in fits.values()):
        raise UserError(f"--baseline {baseline!r}: {_missing(fits, rows)}")
    ordered = sorted(sections, key=lambda s: (s.split != "test", s.dataset, s.scenario, s.stream))
    return [_table(section, sections[section], fits[section]) for section in ordered]


def _table(section: Section, rows: list[Row], fits: list[Row]) -> Table:
    names, parts = "; ".join(row.name for row in fits), [f"All rows: {common(rows)}."]
    others = published_for(rows)
    starred = any(fit.other for fit in others if fit.figure.metric == ACC.name)
    parts += ["*: of another protocol."] if starred else []
    parts += (
        [f"No differences are shown: --baseline fits several rows; choose one of {names}."]
        if len(fits) > 1
        else []
    )
    unlike = sorted({row.other_code for row in rows} - {""})
    if unlike:
        parts.append(f"{MARK}: {UNLIKE} ({'; '.join(unlike)}); code_changed=repeat repeats them.")
    outdated = sorted({row.outdated for row in rows if not row.other_code} - {""})
    if outdated:
        parts.append(
            f"{OLD_MARK}: made by sources that were changed since ({'; '.join(outdated)}); "
            "code_changed=repeat repeats them."
        )
    note = " ".join(parts)
    return Table(section, rows, fits[0] if len(fits) == 1 else None, others, note)


def _fitting(baseline: str | None, rows: list[Row]) -> list[Row]:
    """The rows that `ewc method.strength=5` may mean."""
    method, *options = (baseline or "").split() or [""]
    own = [row for row in rows if row.method == method]
    return [row for row in own if {*options} <= {*row.differs.split()}]


def _missing(fits: dict[Section, list[Row]], rows: list[Row]) -> str:
    several = [row.name for found in fits.values() for row in found]
    if several:
        return f"may be any of {'; '.join(several)}; add what sets it apart"
    return f"no such row; methods: {', '.join(sorted({row.method for row in rows}))}"
