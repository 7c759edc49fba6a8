"""Prints a record: the accuracy matrix, the metrics, and the folder with the files."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from cl_bench.results.folder import Folder
from cl_bench.results.record import RunRecord

MAX_TASKS = 20  # of a matrix that fits into a terminal
WIDTH = 120  # columns where there is no terminal


def print_record(record: RunRecord, folder: Folder, title: str, note: str) -> None:
    """Print a record under its title, with a note on how it came about."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if len(record.accuracy) <= MAX_TASKS:
        console.print(matrix_table(record.accuracy))
    growth = (record.method or {}).get("growth")
    shown = record.metrics if growth is None else {**record.metrics, "growth": growth}
    measured, gradients = record.measured, record.gradients_per_sample
    costs = {
        "gradients": "-" if gradients is None else f"{gradients:.1f}",
        "train s": f"{sum(measured['train_seconds']):.1f}",
        "test s": f"{sum(measured['eval_seconds']):.1f}",
        "peak MiB": f"{measured['peak_mib']:.0f}",
    }
    units = "in percent, gradients per training image"
    console.print(f"{title}, seed {record.seed}: {note}; {units}:", soft_wrap=True, markup=False)
    console.print(one_row({name: percent(value) for name, value in shown.items()}))
    console.print(one_row(costs))
    if record.best_epochs is not None:
        kept = ", ".join(map(str, record.best_epochs))
        console.print(f"epochs kept by early stopping, task by task: {kept}")
    if record.backbone is not None:
        console.print(f"backbone: {describe_backbone(record.backbone, record.config['model'])}")
    console.print(f"files: {folder.path}", soft_wrap=True, markup=False)  # in one line
    sys.stdout.flush()  # a sweep's log file shows each run as it ends


def describe_backbone(backbone: dict[str, Any], model: dict[str, Any]) -> str:
    """A backbone in one line: name, data and accuracy, and its activation if `model` differs."""
    before, now = backbone["model"].get("activation"), model.get("activation")
    changed = "" if before == now else f"; its activation was {before}, now it is {now}"
    data, accuracy = backbone["data"]["name"], backbone["accuracy"]
    return (
        f"{backbone['name']}, pre-trained on {data} (test accuracy {percent(accuracy)} %)" + changed
    )


def one_row(values: dict[str, str]) -> Table:
    """A table with a column for each value."""
    table = Table()
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*values.values())
    return table


def matrix_table(rows: list[list[float | None]]) -> Table:
    """The accuracy matrix in percent: a row per task learned, a column per task tested."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("after task", justify="right")
    for j in range(len(rows)):
        table.add_column(str(j), justify="right")
    for i, row in enumerate(rows):
        if any(value is not None for value in row):
            table.add_row(str(i), *(percent(value, 0) for value in row))
    return table


def percent(value: float | None, digits: int = 2) -> str:
    """A value in [0, 1] as a percentage; a dash where it was not measured."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
