"""Rows of a report as rows of results/<table>.csv: `python -m cl_bench.report --save <file>`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.config import folders
from cl_bench.config.compose import composed
from cl_bench.config.words import typed
from cl_bench.report.commands import find_command, hash_of, overrides_of
from cl_bench.report.orders import ORDER, OrderGroup, disparity, order_groups
from cl_bench.report.pool import require_all_seeds, with_added_seeds
from cl_bench.report.published import Comparison, comparisons
from cl_bench.report.quantities import COSTS, METRICS
from cl_bench.report.results_table import (
    NAME,
    ResultRow,
    faults,
    merged,
    read,
    ten_digits,
    write,
)
from cl_bench.report.rows import Row
from cl_bench.report.runs import Run
from cl_bench.report.statistics import Summary


@dataclass(frozen=True)
class Entry:
    """A row of the report, and what its metrics have in common in the table."""

    row: Row
    label: str
    command: str  # empty: none was found
    date: str


def _require_fixed_values(experiment: str) -> None:
    """Raise UserError where there is no such option, or where it runs with tuned values.

    A command in a table must make the same config after other values were tuned.
    """
    if folders.option_file("experiment", experiment) is None:
        raise UserError(f"--experiment {experiment}: there is no such option of that group")
    if composed(f"experiment={experiment}").tuned:
        raise UserError(
            f"--experiment {experiment}: has tuned=true, so that its command does not tell the "
            "values of a run; use an experiment without it, such as suite/protocol/seqcifar10"
        )


def save(
    rows: Sequence[Row], file: Path, experiment: str | None = None, add_seeds: bool = False
) -> int:
    """Write the rows into a table, in place of those of the same label and metric.

    A config whose command is in the table already keeps that row's label and command. Commands that
    are found for others begin with `experiment`, an option of that group. With `add_seeds` the
    seeds of a row that the table has are kept, and the new ones are pooled with them (pool.py).
    Returns the number of rows that the table has now.
    """
    old = _table_before(file, add_seeds)
    if experiment is not None:
        _require_fixed_values(experiment)
    for row in rows:
        if len(row.hashes) > 1:
            raise UserError(f"--save: {row.name}: pools several configs; leave out --by")
    known = _known_configs(old)
    entries = [_entry(row, known, experiment) for row in rows]
    labels = [entry.label for entry in entries]
    twins = sorted({label for label in labels if labels.count(label) > 1})
    if twins:
        raise UserError(f"--save: two configs have the label {twins[0]}; save them into two tables")
    new = [*_result_rows(entries, file.stem)]
    new = with_added_seeds(old, new) if add_seeds else new
    require_all_seeds(old, new)
    for line in new:
        fault = next(faults(line, file.stem), None)
        if fault is not None:
            raise UserError(f"--save: {line.row}: {fault}")
    every = merged(old, new)
    write(file, every)
    return len(every)


def _table_before(file: Path, add_seeds: bool) -> list[ResultRow]:
    """The rows that the table has; UserError where its name or `add_seeds` cannot be right."""
    if file.suffix != ".csv" or not re.fullmatch(NAME, file.stem):
        raise UserError(f"--save {file}: must be a file <table>.csv, such as results/pmnist.csv")
    if file.exists():
        return read(file)
    if add_seeds:
        raise UserError(f"--add-seeds: {file}: there is no such table; leave it out to make one")
    return []


def _known_configs(old: Iterable[ResultRow]) -> dict[tuple[str, str], tuple[str, str]]:
    """The label and the command of each config hash and split that a table has."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    hashes: dict[str, str | None] = {}
    for line in old:
        if not line.command or line.command.startswith("python "):  # of another program
            continue
        if line.command not in hashes:
            hashes[line.command] = hash_of(overrides_of(line.command))
        name = hashes[line.command]
        if name is not None:
            found.setdefault((name, line.split), (line.row, line.command))
    return found


def _entry(
    row: Row, known: dict[tuple[str, str], tuple[str, str]], experiment: str | None
) -> Entry:
    """A row with its label, its command and its date."""
    first = row.runs[0]
    label, command = known.get((first.hash, row.section.split), ("", ""))
    if not label:
        command = find_command(first.record, experiment) or ""
        label = command or f"{row.name} [{first.hash}]"
    if command:
        words = [word for word in shlex.split(command) if not word.startswith("seed=")]
        command = shlex.join([*words, f"seed={_seeds(row.runs)}"])
    return Entry(row, label, command, max(map(_end_date, row.runs)))


def _seeds(runs: Iterable[Run]) -> str:
    return ",".join(str(seed) for seed in sorted({run.seed for run in runs}))


def _end_date(run: Run) -> str:
    """The day on which a run ended; empty where its status.json does not say."""
    try:
        time = str(files.read_json(run.folder / "status.json").get("time", ""))
    except (DamagedError, OSError):
        return ""
    found = re.match(r"\d{4}-\d{2}-\d{2}", time)
    return found[0] if found else ""


def _result_rows(entries: list[Entry], table: str) -> Iterator[ResultRow]:
    """A row for each metric and cost of each entry, then those over the orders of the tasks."""
    published = comparisons([entry.row for entry in entries])
    for entry in entries:
        for quantity in (*METRICS, *COSTS):
            found = entry.row.summary(quantity)
            if found is not None:
                line = _result_row(entry, table, quantity.name, quantity.unit, found)
                yield _with_published(line, entry.row, published)
    groups, _ = order_groups(run for entry in entries for run in entry.row.runs)
    for group in groups:
        yield from _order_rows(group, entries, table)


def _result_row(entry: Entry, table: str, metric: str, unit: str, found: Summary) -> ResultRow:
    """One metric of an entry, without a published figure."""
    row, section = entry.row, entry.row.section
    lower, upper = found.interval or (None, None)
    return ResultRow(
        table=table,
        row=entry.label,
        command=entry.command,
        dataset=section.dataset,
        scenario=section.scenario,
        method=row.method,
        split=section.split,
        metric=metric,
        mean=Decimal(f"{found.mean:.10g}"),
        sd=ten_digits(found.sd),
        n=found.n,
        seeds=_seeds(row.runs),
        lower=ten_digits(lower),
        upper=ten_digits(upper),
        unit=unit,
        device="; ".join(_recorded(row, "measured", "device")),
        commit="; ".join(_recorded(row, "measured", "commit")),
        versions="; ".join(_versions(row)),
        date=entry.date,
        published=None,
        published_spread=None,
        published_source="",
        note="; ".join(_notes(entry)),
    )


def _notes(entry: Entry) -> list[str]:
    modules = entry.row.differing_modules
    notes = [f"config {entry.row.runs[0].hash}"]
    notes += [f"backbone {name}" for name in _recorded(entry.row, "backbone", "name")]
    notes += [f"made by different code: {modules}"] if modules else []
    return notes + ([] if entry.command else ["no command: none was found that makes this config"])


def _recorded(row: Row, part: str, name: str) -> list[str]:
    """The values that the runs have in a part of their records, each once."""
    values = [(run.record.get(part) or {}).get(name) for run in row.runs]
    return list(dict.fromkeys(str(visible(value)) for value in values if value is not None))


def _versions(row: Row) -> list[str]:
    """`python 3.11.2, torch 2.10.0, ...`, each once."""
    every = []
    for run in row.runs:
        measured = run.record["measured"]
        versions = {"python": measured.get("python"), **(measured.get("versions") or {})}
        every.append(", ".join(f"{k} {v}" for k, v in versions.items() if v is not None))
    return list(dict.fromkeys(text for text in every if text))


def _with_published(line: ResultRow, row: Row, published: list[Comparison]) -> ResultRow:
    """The row with the published figure of the same protocol, where there is one."""
    same = [c.figure for c in published if c.row is row and not c.differences]
    figure = next((figure for figure in same if figure.metric == line.metric), None)
    if figure is None:
        return line
    kind = " (spread: SEM)" if figure.spread is not None and figure.kind == "sem" else ""
    return replace(
        line,
        published=ten_digits(figure.value),
        published_spread=ten_digits(figure.spread),
        published_source=f"{figure.source}, table {figure.table}{kind}",
    )


def _order_rows(group: OrderGroup, entries: list[Entry], table: str) -> Iterator[ResultRow]:
    """ACC, AOPD and MOPD over the orders of a config; n counts the orders."""
    runs = [run for alike in group.orders.values() for run in alike]
    parts = [entry for entry in entries if not {*runs}.isdisjoint(entry.row.runs)]
    orders = ",".join(typed(alike[0].config.get(ORDER)) for alike in group.orders.values())
    words = [w for w in overrides_of(parts[0].command) if not w.startswith(f"{ORDER}=")]
    label = shlex.join([*(words or [parts[0].label]), f"{ORDER}={orders}"])
    seeds = _seeds(runs)
    command = f"{label} seed={seeds}" if words else ""
    entry = Entry(parts[0].row, label, command, max(part.date for part in parts))
    found = disparity(group.orders.values())
    singles = {name: Summary((v,)) for name, v in found.values.items() if v is not None}
    note = f"over {len(group.orders)} orders of tasks"
    for name, values in ({"ACC": found.acc} | singles).items():
        line = _result_row(entry, table, name, "percent", values)
        yield replace(line, n=len(group.orders), seeds=seeds, note=note)
