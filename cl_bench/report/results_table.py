"""Measured results as data: a file results/<table>.csv has one row for each config and metric.

results/README.md explains the columns. What is not known stays empty.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from cl_bench.base import files
from cl_bench.base.escape import FORMULA
from cl_bench.base.exceptions import UserError
from cl_bench.results.page import csv_table

UNITS = ("percent", "count", "seconds", "ratio", "MiB")
SPLITS = ("test", "val", "")
NAME = r"[A-Za-z0-9][\w.-]*"  # of a table: it names a file and a page


@dataclass(frozen=True)
class ResultRow:
    """One metric of one config. Numbers keep the digits that they were written with."""

    table: str  # the name of the file
    row: str  # tells the config from the others of its table
    command: str  # the overrides after `python -m cl_bench.run -m`, or `python ...` in full
    dataset: str
    scenario: str
    method: str
    split: str  # test | val: the images that were tested on
    metric: str
    mean: Decimal
    sd: Decimal | None  # with n - 1
    n: int | None
    seeds: str  # 0,1,2
    lower: Decimal | None  # of the 95 % Student t interval of the mean
    upper: Decimal | None
    unit: str
    device: str
    commit: str
    versions: str
    date: str  # 2026-11-28
    published: Decimal | None
    published_spread: Decimal | None
    published_source: str
    note: str

    @property
    def key(self) -> tuple[str, str]:
        """Label and metric, which occur once in a table."""
        return self.row, self.metric


COLUMNS = tuple(field.name for field in fields(ResultRow))
NUMBERS = ("mean", "sd", "lower", "upper", "published", "published_spread")


def read(file: Path) -> list[ResultRow]:
    """The rows of a table; UserError, naming file and line, where one is not right."""
    try:
        files.require_regular(file)
        text = file.read_text()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise UserError(f"{file}: is not a CSV file ({error})") from None
    if not lines or tuple(lines[0]) != COLUMNS:
        raise UserError(
            f"{file}: is not a table of results; its columns must be {','.join(COLUMNS)}"
        )
    rows: dict[tuple[str, str], ResultRow] = {}
    for number, line in enumerate(lines[1:], start=1):
        try:
            row = _parse(line, file.stem)
        except ValueError as error:
            raise UserError(f"{file}: row {number}: {error}") from None
        if row.key in rows:
            raise UserError(f"{file}: row {number}: {row.key}: occurs twice")
        rows[row.key] = row
    return list(rows.values())


def _parse(line: list[str], table: str) -> ResultRow:
    """A line of a file; ValueError says what is wrong with it."""
    if len(line) != len(COLUMNS):
        raise ValueError(f"has {len(line)} cells, not {len(COLUMNS)}")
    cells: dict[str, Any] = {n: _unescaped(text) for n, text in zip(COLUMNS, line, strict=True)}
    cells |= {name: _number(name, cells[name]) for name in NUMBERS}
    if cells["mean"] is None:
        raise ValueError("mean: is missing")
    if not _empty_or_like(r"[1-9][0-9]*", cells["n"]):
        raise ValueError(f"n={cells['n']}: must be a positive integer")
    cells["n"] = int(cells["n"]) if cells["n"] else None
    row = ResultRow(**cells)
    fault = next(faults(row, table), None)
    if fault is not None:
        raise ValueError(fault)
    return row


def faults(row: ResultRow, table: str) -> Iterator[str]:
    """The reasons why a row cannot be right in a table of this name."""
    date, seeds = r"\d{4}-\d{2}-\d{2}", r"\d+(,\d+)*"
    ends, sourced = f"lower={row.lower}, upper={row.upper}", bool(row.published_source)
    known, spread = row.published is not None, row.published_spread is not None
    rules = [
        (row.table == table, f"table={row.table}: the file is that of {table}"),
        (row.row.strip(), "row: is missing"),
        (row.metric.strip(), "metric: is missing"),
        (row.unit in UNITS, f"unit={row.unit}: must be one of {', '.join(UNITS)}"),
        (row.split in SPLITS, f"split={row.split}: must be test, val or empty"),
        (_empty_or_like(seeds, row.seeds), f"seeds={row.seeds}: must look like 0,1,2"),
        (_empty_or_like(date, row.date), f"date={row.date}: must look like 2026-11-28"),
        (row.sd is None or row.sd >= 0, f"sd={row.sd}: must be at least 0"),
        (row.sd is None or row.n != 1, f"sd={row.sd}: must be empty where n is 1"),
        (_interval_encloses_mean(row), f"{ends}: do not enclose {row.mean}"),
        (known == sourced, "published, published_source: one of them is missing"),
        (known or not spread, "published_spread: needs a published value"),
    ]
    yield from (text for right, text in rules if not right)


def _empty_or_like(pattern: str, text: str) -> bool:
    return not text or re.fullmatch(pattern, text) is not None


def _interval_encloses_mean(row: ResultRow) -> bool:
    """True also where neither end of the interval is known."""
    if row.lower is None or row.upper is None:
        return row.lower is row.upper
    return row.lower <= row.mean <= row.upper


def _number(name: str, text: str) -> Decimal | None:
    if not text:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{name}={text}: must be a number") from None
    if not value.is_finite():
        raise ValueError(f"{name}={text}: must be finite")
    return value


def _unescaped(text: str) -> str:
    """A cell without the apostrophe that keeps a spreadsheet from computing it."""
    escaped = text[:1] == "'" and len(text) > 2 and text[1:].lstrip()[:1] in FORMULA
    return text[1:] if escaped else text


def ten_digits(value: float | None) -> Decimal | None:
    """A number with the digits that the table keeps."""
    return None if value is None else Decimal(f"{value:.10g}")


def as_csv(rows: Iterable[ResultRow]) -> str:
    """The text of a file with these rows."""
    return csv_table(COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows))


def write(file: Path, rows: Iterable[ResultRow]) -> None:
    """Replace the whole file; UserError where that is not possible."""
    try:
        files.require_writable(file.parent)
        files.write_text(file, as_csv(rows))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; choose a file to write to") from None


def merged(old: Iterable[ResultRow], new: Iterable[ResultRow]) -> list[ResultRow]:
    """The rows of both; a new row takes the place of the old one with its key."""
    rows = {row.key: row for row in old}
    rows.update((row.key, row) for row in new)
    return list(rows.values())
