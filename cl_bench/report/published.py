"""Published figures and which of our rows they stand beside: cl_bench/published/*.csv.

A line's `row` says which runs are meant (`dataset.tasks=10 curvature=KFAC`: all must hold), its
`protocol` what else the paper did (`schedule.epochs=20`): where that does not hold, the figure is
shown and what differs is said. `kind`: what `spread` is, sd or sem (of the mean), over `runs`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cl_bench.report.rows import METRICS, Record, Row, fitting, leaves, shown
from cl_bench.report.statistics import summary

COLUMNS = ("source", "table", "dataset", "scenario", "method", "row", "protocol", "metric")
COLUMNS += ("value", "spread", "kind", "runs")


@dataclass(frozen=True)
class Figure:
    """A line of the CSV files."""

    source: str
    table: str
    dataset: str
    scenario: str
    method: str
    row: dict[str, Any]
    protocol: dict[str, Any]
    metric: str
    value: float  # in percent
    spread: float | None
    kind: str
    runs: int | None

    def told(self) -> str:
        """`62.32 ± 1.34 (EMCL, table III)`."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        spread += " (SEM)" if spread and self.kind == "sem" else ""
        return f"{self.value:.2f}{spread} ({self.source}, table {self.table})"


@dataclass(frozen=True)
class Beside:
    """A published figure for one of our rows."""

    row: Row
    figure: Figure
    ours: float  # mean, in percent
    other: list[str]  # what our runs do otherwise, as overrides

    @property
    def deviation(self) -> float:
        """Ours - published, in percentage points."""
        return self.ours - self.figure.value


@cache
def figures() -> list[Figure]:
    """All published figures that ship with the package."""
    found = []
    for file in sorted(files("cl_bench.published").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".csv"):
            found += [_figure(line) for line in csv.DictReader(file.read_text().splitlines())]
    return found


def _figure(line: dict[str, str]) -> Figure:
    text = {key: line[key] for key in ("source", "table", "dataset", "scenario", "method")}
    return Figure(
        **text,
        row=_conditions(line["row"]),
        protocol=_conditions(line["protocol"]),
        metric=line["metric"],
        value=float(line["value"]),
        spread=float(line["spread"]) if line["spread"] else None,
        kind=line["kind"],
        runs=int(line["runs"]) if line["runs"] else None,
    )


def _conditions(text: str) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (c.split("=", 1) for c in text.split())}


def beside(rows: list[Row]) -> list[Beside]:
    """For each row the figures that are meant for it, those of the nearest protocol first."""
    quantities = {quantity.name: quantity for quantity in METRICS}
    found = []
    for row in rows:
        fits = []
        for figure in figures():
            values = row.values(quantities[figure.metric])
            if values and _meant(figure, row):
                other = _unmet(figure.protocol, row)
                fits.append(Beside(row, figure, summary(values).mean, other))
        found += sorted(fits, key=lambda fit: len(fit.other))
    return found


def _meant(figure: Figure, row: Row) -> bool:
    place = (figure.dataset, figure.scenario, "test")
    return place == row.section and figure.method == row.method and not _unmet(figure.row, row)


def _unmet(conditions: dict[str, Any], row: Row) -> list[str]:
    """Those that do not hold in all runs, as what is there instead."""
    found = []
    for key, wanted in conditions.items():
        there = {_there(key, run) for run in row.runs}
        if there != {shown(wanted)}:
            found.append(f"{key}={'|'.join(sorted(there))} (published: {shown(wanted)})")
    return found


def _there(key: str, run: Record) -> str:
    """What a run's config has there; `backbone`: by name, whatever chose it."""
    config = leaves(run)
    if key == "backbone":
        return (run.get("backbone") or {}).get("name", "none")
    return "|".join(shown(config[name]) for name in fitting(key, config)) or "absent"
