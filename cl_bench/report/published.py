"""Published figures and which of our rows they stand beside: cl_bench/published/*.csv.

A line's `row` says which runs are meant (`dataset.tasks=10 curvature=KFAC`: all must hold), its
`protocol` what else the paper did (`schedule.epochs=20`): where that does not hold, the figure is
shown, with what differs. A key that a config does not have counts as null. `kind`: what
`spread` is, sd or sem (of the mean).

`loss_over` says which classes the training loss compares: the task's `own`, those `seen` so far,
or `all` of the head (`unstated` where a paper does not say). DER's task-incremental figures come
from a loss over all classes with the others masked at test time only; a run here masks them in
training, too, so that these figures have `loss_over=all` in their `row` and stand beside none.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cl_bench.config.nodes import leaves
from cl_bench.report.configs import fitting, shown
from cl_bench.report.rows import METRICS, Record, Row
from cl_bench.report.statistics import summary

LOSS_OVER = {"task_il": "own", "class_il": "seen", "data_il": "all"}  # by what `live` is


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

    def formatted(self) -> str:
        """`62.32 ± 1.34 (EMCL, table III)`."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        spread += " SEM" if spread and self.kind == "sem" else ""
        return f"{self.value:.2f}{spread} ({self.source}, table {self.table})"


@dataclass(frozen=True)
class Beside:
    """A published figure for one of our rows."""

    row: Row
    figure: Figure
    ours: float  # mean, in percent
    other: list[str]  # what our runs do otherwise

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
    text = ("source", "table", "dataset", "scenario", "method", "metric", "kind")
    return Figure(
        **{name: line[name] for name in text},
        row=_conditions(line["row"]),
        protocol=_conditions(line["protocol"]),
        value=float(line["value"]),
        spread=float(line["spread"]) if line["spread"] else None,
    )


def _conditions(text: str) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (c.split("=", 1) for c in text.split())}


def published_for(rows: list[Row]) -> list[Beside]:
    """For each row the figures that are meant for it, those of the nearest protocol first."""
    quantities = {quantity.name: quantity for quantity in METRICS}
    found = []
    for row in rows:
        fits = []
        for figure in figures():
            if not _meant(figure, row):
                continue
            ours = summary([*row.by_seed(quantities[figure.metric]).values()])
            if ours is not None:
                fits.append(Beside(row, figure, ours.mean, _unmet(figure.protocol, row)))
        found += sorted(fits, key=lambda fit: len(fit.other))
    return found


def _meant(figure: Figure, row: Row) -> bool:
    place = (row.section.dataset, row.section.scenario, row.section.split, row.method)
    theirs = (figure.dataset, figure.scenario, "test", figure.method)
    return place == theirs and not _unmet(figure.row, row)


def _unmet(conditions: dict[str, Any], row: Row) -> list[str]:
    """Those that do not hold in all runs, as what is there instead."""
    found = []
    for key, wanted in conditions.items():
        have = {there(key, run) for run in row.runs}
        if have != {shown(wanted)}:
            found.append(f"{key}={'|'.join(sorted(have))} (published: {shown(wanted)})")
    return found


def there(key: str, run: Record) -> str:
    """What a run has there; `backbone`: the data that it was pre-trained on, or none."""
    if key == "loss_over":
        live = there("scenario.live", run)
        return LOSS_OVER.get(live, live)
    if key in ("backbone", "pretrained"):
        backbone = run.get("backbone")
        name = backbone["data"]["name"] if backbone else "none"
        return name if key == "backbone" else shown(backbone is not None)
    config = leaves(run["config"])
    return "|".join(shown(config[name]) for name in fitting(key, config)) or "null"
