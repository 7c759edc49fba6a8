"""A record on the terminal: the accuracy matrix, the metrics, and where the files are."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from cl_bench.results.folder import Folder
from cl_bench.results.record import RunRecord

WIDEST = 20  # tasks whose matrix still fits a terminal
WIDTH = 120  # columns where there is no terminal


def present(record: RunRecord, folder: Folder, title: str, note: str) -> None:
    """Print it; plain text where the output is no terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if len(record.accuracy) <= WIDEST:
        console.print(matrix(record.accuracy))
    table = Table()
    for name in record.metrics:
        table.add_column(name, justify="right")
    growth = (record.method or {}).get("growth")
    shown = {} if growth is None else {"growth": growth}
    for name in (*shown, "gradients", "train s", "test s", "peak MiB"):
        table.add_column(name, justify="right")
    took = record.measured
    numbers = [sum(took["train_seconds"]), sum(took["eval_seconds"])]
    table.add_row(
        *(percent(value) for value in [*record.metrics.values(), *shown.values()]),
        gradients(record.gradients_per_sample),
        *(f"{n:.1f}" for n in numbers),
        f"{took['peak_mib']:.0f}",
    )
    units = "in percent, gradients per training image"
    console.print(f"{title}, seed {record.seed}: {note}; {units}:", soft_wrap=True, markup=False)
    console.print(table)
    if record.backbone is not None:
        console.print(f"backbone: {described(record.backbone, record.config['model'])}")
    console.print(f"files: {folder.path}", soft_wrap=True, markup=False)  # one line, as it is
    sys.stdout.flush()  # a sweep's log file shows each run as it ends


def described(backbone: dict[str, Any], model: dict[str, Any]) -> str:
    """A backbone in one line: its name, what it has learned, how well, and what was changed."""
    own, now = backbone["model"].get("activation"), model.get("activation")
    changed = "" if own == now else f"; its activation was {own}, now it is {now}"
    learned, accuracy = backbone["data"]["name"], backbone["accuracy"]
    return (
        f"{backbone['name']}, pre-trained on {learned} (test accuracy {percent(accuracy)} %)"
        + changed
    )


def matrix(rows: list[list[float | None]]) -> Table:
    """R in percent: row = after task, column = tested on."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("after task", justify="right")
    for j in range(len(rows)):
        table.add_column(str(j), justify="right")
    for i, row in enumerate(rows):
        if any(value is not None for value in row):
            table.add_row(str(i), *(percent(value, 0) for value in row))
    return table


def gradients(per_sample: float | None) -> str:
    """How often a training image was differentiated: glances, replay and inner loops count."""
    return "-" if per_sample is None else f"{per_sample:.1f}"


def percent(value: float | None, digits: int = 2) -> str:
    """A share as a percentage; what was not measured as a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
