"""Rows as tables: their columns, the best rows, and the differences to a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from cl_bench.base.exceptions import UserError
from cl_bench.report.configs import format_overrides
from cl_bench.report.published import Comparison, comparisons
from cl_bench.report.quantities import ACC, COSTS, METRICS, Quantity, facts
from cl_bench.report.rows import Row, Section, common_options
from cl_bench.report.statistics import INTERVAL, Summary, paired

MIXED_MARK = "†"  # of a row whose runs were made by different code
OLD_MARK = "‡"  # of a row whose runs were made by sources that have changed since
LOST_MARK = "§"  # of a row some of whose sources are not found here
MIXED_CODE = "its runs were made by different code"
UPPER_BOUNDS = ("joint",)  # methods that are never marked as the best
LACKING_TITLE = "What sweeps lack"
NOTE = (
    "Numbers are mean ± standard deviation (n - 1) over n seeds, in percent; gradients are "
    "backward passes per training image. The best and the second best row are marked; joint "
    "training does not compete, nor does a single seed with rows of several."
)


@dataclass(frozen=True)
class Table:
    """The rows of one section."""

    section: Section
    rows: list[Row]
    baseline: Row | None
    published: list[Comparison]
    note: str

    @property
    def metrics(self) -> list[Quantity]:
        """The metrics that at least one row has."""
        return [quantity for quantity in METRICS if any(r.summary(quantity) for r in self.rows)]

    @property
    def costs(self) -> list[Quantity]:
        """The costs that at least one row has."""
        return [quantity for quantity in COSTS if any(r.summary(quantity) for r in self.rows)]

    @property
    def facts(self) -> list[Quantity]:
        """The methods' own numbers that at least one row has."""
        found = facts(run.record for row in self.rows for run in row.runs)
        return [quantity for quantity in found if any(r.summary(quantity) for r in self.rows)]

    def gain(self, row: Row) -> Summary | None:
        """ACC minus that of the baseline, paired by seed; None for the baseline itself."""
        if self.baseline is None or row is self.baseline:
            return None
        return paired(row.by_seed(ACC), self.baseline.by_seed(ACC))

    def nearest(self, row: Row) -> Comparison | None:
        """The published ACC whose protocol is the nearest to that of the row."""
        found = (c for c in self.published if c.row is row and c.figure.metric == ACC.name)
        return next(found, None)

    def ranks(self, quantity: Quantity) -> dict[int, int]:
        """The indices of the best (1) and second best (2) rows; equal printed numbers share one."""
        printed: dict[int, float] = {}
        several = any(row.seeds > 1 for row in self.rows)
        for place, row in enumerate(self.rows):
            found = row.summary(quantity)
            competes = row.method not in UPPER_BOUNDS and (row.seeds > 1 or not several)
            if found is not None and competes:
                printed[place] = quantity.better * round(found.mean, quantity.digits)
        if len(printed) < 2:
            return {}
        order = sorted(set(printed.values()), reverse=True)[:2]
        return {place: 1 + order.index(v) for place, v in printed.items() if v in order}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the value that it is sorted by, its rank and its hint."""

    text: str
    sort_key: float | str | None = None
    rank: int | None = None  # 1: best, 2: second best
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """A heading and its cells, in the order of the rows."""

    name: str
    cells: list[Cell]
    hint: str = ""
    is_text: bool = False


MISSING = Cell("-")  # not measured


def columns(table: Table) -> list[Column]:
    """All columns in which at least one row has something."""
    rows = table.rows
    found = [Column("method", [_method_cell(row) for row in rows], is_text=True)]
    if any(row.options for row in rows):
        cells = [Cell(row.options, row.options) for row in rows]
        found.append(Column("options", cells, is_text=True))
    found.append(Column("n", [Cell(str(row.seeds), row.seeds) for row in rows], "seeds"))
    for quantity in table.metrics:
        hint = f"{quantity.meaning}; percent, mean ± standard deviation"
        found.append(Column(quantity.name, _metric_cells(table, quantity), hint))
        found += _acc_columns(table) if quantity is ACC else []
    for quantity in (*table.costs, *table.facts):
        cells = [_cost_cell(quantity, row) for row in rows]
        found.append(Column(quantity.name, cells, f"{quantity.meaning}; mean"))
    if any(table.nearest(row) for row in rows):
        cells = [_published_cell(table.nearest(row)) for row in rows]
        found.append(Column("published ACC", cells))
    return found


def _acc_columns(table: Table) -> list[Column]:
    """The interval of ACC, and its difference to the baseline where there is one."""
    cells = [_interval_cell(row) for row in table.rows]
    found = [Column(INTERVAL, cells, "of ACC, from two seeds on")]
    if table.baseline is not None:
        cells = [_gain_cell(table.gain(row)) for row in table.rows]
        hint = f"difference in ACC, paired by seed, with its {INTERVAL}"
        found.append(Column(f"over {table.baseline.method}", cells, hint))
    return found


def _method_cell(row: Row) -> Cell:
    keys = [k for k in row.config if k.startswith("method.") and not k.endswith("_partial_")]
    return Cell(
        f"{row.method} {code_mark(row)}".strip(),
        row.method,
        hint=format_overrides(row.config, keys),
    )


def code_mark(row: Row) -> str:
    """The mark of a row by the code that made it, of several the most serious; empty for none."""
    if row.differing_modules:
        return MIXED_MARK
    if row.changed_modules:
        return OLD_MARK
    return LOST_MARK if row.lost_modules else ""


def _metric_cells(table: Table, quantity: Quantity) -> list[Cell]:
    ranks, cells = table.ranks(quantity), []
    for place, row in enumerate(table.rows):
        found = row.summary(quantity)
        text = "-" if found is None else found.formatted(quantity.digits)
        cells.append(Cell(text, found and found.mean, ranks.get(place)))
    return cells


def _interval_cell(row: Row) -> Cell:
    found = row.summary(ACC)
    ends = found and found.interval
    return Cell(f"{ends[0]:.2f} to {ends[1]:.2f}", ends[0]) if ends else MISSING


def _gain_cell(found: Summary | None) -> Cell:
    if found is None:
        return MISSING
    ends = f" [{found.interval[0]:.2f}, {found.interval[1]:.2f}]" if found.interval else ""
    return Cell(f"{found.mean:+.2f}{ends} (n={found.n})", found.mean)


def _cost_cell(quantity: Quantity, row: Row) -> Cell:
    found = row.summary(quantity)
    return MISSING if found is None else Cell(f"{found.mean:.{quantity.digits}f}", found.mean)


def _published_cell(found: Comparison | None) -> Cell:
    if found is None:
        return MISSING
    mark = "*" if found.differences else ""
    return Cell(f"{found.figure.formatted()}{mark}", found.figure.value)


def tables(rows: list[Row], baseline: str | None) -> list[Table]:
    """A table for each section, those of the test split first.

    Raises UserError where `baseline` is one row of no section.
    """
    sections: dict[Section, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    matches = {section: _matching(baseline, own) for section, own in sections.items()}
    if baseline is not None and not any(len(found) == 1 for found in matches.values()):
        raise UserError(f"--baseline {baseline!r}: {_no_baseline(matches, rows)}")
    ordered = sorted(sections, key=lambda s: (s.split != "test", s.dataset, s.scenario, s.stream))
    return [_table(section, sections[section], matches[section]) for section in ordered]


def _table(section: Section, rows: list[Row], matches: list[Row]) -> Table:
    """The table of a section; `matches` are the rows that --baseline may mean."""
    published = comparisons(rows)
    note = [f"All rows: {common_options(rows)}."]
    if any(c.differences for c in published if c.figure.metric == ACC.name):
        note.append("*: of another protocol.")
    if len(matches) > 1:
        names = "; ".join(row.name for row in matches)
        note.append(
            f"No differences are shown: --baseline fits several rows; choose one of {names}."
        )
    baseline = matches[0] if len(matches) == 1 else None
    return Table(section, rows, baseline, published, " ".join([*note, *code_notes(rows)]))


def code_notes(rows: list[Row]) -> list[str]:
    """What the marks of a table mean, with the modules."""
    mixed = sorted({row.differing_modules for row in rows} - {""})
    old = sorted({row.changed_modules for row in rows if not row.differing_modules} - {""})
    notes = [f"{MIXED_MARK}: {MIXED_CODE} ({'; '.join(mixed)})"] if mixed else []
    notes += (
        [f"{OLD_MARK}: made by sources that were changed since ({'; '.join(old)})"] if old else []
    )
    notes = [f"{text}; code_changed=repeat repeats them." for text in notes]
    lost = sorted({row.lost_modules for row in rows} - {""})
    if lost:
        notes.append(
            f"{LOST_MARK}: sources that are not found here ({'; '.join(lost)}), so whether they "
            "were changed is not known; --config-dir <folder of your options>, or PYTHONPATH, "
            "finds them."
        )
    return notes


def _matching(baseline: str | None, rows: list[Row]) -> list[Row]:
    """The rows that a baseline such as `ewc method.strength=5` may mean."""
    method, *options = (baseline or "").split() or [""]
    return [r for r in rows if r.method == method and {*options} <= {*r.options.split()}]


def _no_baseline(matches: dict[Section, list[Row]], rows: list[Row]) -> str:
    several = [row.name for found in matches.values() for row in found]
    if several:
        return f"may be any of {'; '.join(several)}; add its options"
    return f"no such row; methods: {', '.join(sorted({row.method for row in rows}))}"
