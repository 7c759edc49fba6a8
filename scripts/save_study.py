"""Writes the numbers of a study into a table of results/.

python scripts/save_study.py FOLDER results/TABLE.csv COLUMN... -- OVERRIDE...

FOLDER is that of the study, which `python -m cl_bench.run OVERRIDE...` prints at its end. Of its
table.csv, the last row of each value of the first COLUMN is taken, and the other columns are the
metrics. For example, after `python -m cl_bench.run experiment=curvature_quality`:

python scripts/save_study.py outputs/studies/curvature_quality/<hash>/seed0 \
    results/curvature_quality.csv curvature share rise -- experiment=curvature_quality
"""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from cl_bench.base import files
from cl_bench.base.exceptions import UserError
from cl_bench.base.files import DamagedError
from cl_bench.report.commands import hash_of
from cl_bench.report.results_table import ResultRow, faults, merged, read, write


def save(folder: Path, file: Path, columns: Sequence[str], overrides: Sequence[str]) -> int:
    """Add the study's numbers to a table, in place of those of the same label and metric.

    Returns the number of rows that the table has now. Raises UserError where the folder has no
    finished study, was not made by these overrides, or has no such column.
    """
    try:
        status = files.read_json(folder / "status.json")
    except (OSError, DamagedError):
        status = {}
    if status.get("state") != "done":
        raise UserError(f"{folder}: has no finished study")
    found = hash_of(list(overrides))
    if found != folder.parent.name:
        raise UserError(f"{folder}: {shlex.join(overrides)} makes another config, {found}")
    rows = [*_rows(folder, file.stem, columns, shlex.join(overrides), status)]
    for row in rows:
        for fault in faults(row, file.stem):
            raise UserError(f"{row.row}: {fault}")
    every = merged(read(file) if file.exists() else [], rows)
    write(file, every)
    return len(every)


def _rows(
    folder: Path, table: str, columns: Sequence[str], command: str, status: dict[str, Any]
) -> Iterator[ResultRow]:
    """A row for each metric of each value of the first column."""
    by, *metrics = columns
    with (folder / "table.csv").open() as file:
        lines = {line.get(by): line for line in csv.DictReader(file)}
    common = _common(folder, table, command, status)
    for value, line in lines.items():
        lacking = [column for column in columns if line.get(column) is None]
        if lacking:
            there = ", ".join(line)
            raise UserError(f"{folder}: table.csv has no column {lacking[0]}; there are {there}")
        for metric in metrics:
            if not line[metric]:
                continue
            mean = Decimal(f"{float(line[metric]):.6g}")
            yield replace(common, row=f"{command}: {value}", metric=metric, mean=mean)


def _common(folder: Path, table: str, command: str, status: dict[str, Any]) -> ResultRow:
    """What the rows of a study have in common, without label, metric and number."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    measured = status["measured"]
    versions = {"python": measured["python"], **measured["versions"]}
    return ResultRow(
        table=table,
        row="",
        command=f"{command} seed={config['seed']}",
        dataset=config["dataset"]["name"],
        scenario=config["scenario"]["name"],
        method="",
        split="",
        metric="",
        mean=Decimal(0),
        sd=None,
        n=1,
        seeds=str(config["seed"]),
        lower=None,
        upper=None,
        unit="ratio",
        device=measured["device"],
        commit=measured["commit"] or "",
        versions=", ".join(f"{k} {v}" for k, v in versions.items() if v),
        date=status["time"][:10],
        published=None,
        published_spread=None,
        published_source="",
        note=f"config {folder.parent.name}",
    )


def main(words: list[str]) -> None:
    """Read the command line, save, and print what the table has now."""
    if "--" not in words or words.index("--") < 4:
        sys.exit(f"error: {__doc__}")
    at = words.index("--")
    folder, file, *columns = words[:at]
    try:
        count = save(Path(folder), Path(file), columns, words[at + 1 :])
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{file}: {count} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
