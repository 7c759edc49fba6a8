"""Published figures, and the rows that they can be compared with: cl_bench/published/*.csv.

The column `row` of a line says which runs it is compared with (`dataset.tasks=10 curvature=KFAC`:
all conditions must hold). The column `protocol` says what else the paper did
(`schedule.epochs=20`); where that does not hold, the figure is shown with what differs. A key that
a config does not have counts as null. `kind` is that of `spread`: sd, or sem (standard error of the
mean).

`loss_over` says which classes the training loss compares: the task's `own`, those `seen` so far,
or `all` of the head (`unstated` where a paper does not say). DER's task-incremental figures are
those of class-incremental training, with the classes of other tasks masked in the test: they are
compared with ACC_task of a class-incremental run.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cl_bench.report.configs import format_value, matching_keys
from cl_bench.report.quantities import metric
from cl_bench.report.rows import Row
from cl_bench.report.runs import Run

# the classes that the loss compares, by the function that is the scenario's `live`
LOSS_OVER = {"task_il": "own", "class_il": "seen", "data_il": "all"}
TEXTS = ("source", "table", "dataset", "scenario", "method", "metric", "kind")


@dataclass(frozen=True)
class Figure:
    """A published figure: a line of the CSV files."""

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
class Comparison:
    """A row with a published figure."""

    row: Row
    figure: Figure
    ours: float  # mean over the seeds, in percent
    differences: list[str]  # between the protocols, as far as they are known

    @property
    def deviation(self) -> float:
        """Ours minus published, in percentage points."""
        return self.ours - self.figure.value


@cache
def figures() -> list[Figure]:
    """All published figures that the package has."""
    found = []
    for file in sorted(files("cl_bench.published").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".csv"):
            found += [_figure(line) for line in csv.DictReader(file.read_text().splitlines())]
    return found


def _figure(line: dict[str, str]) -> Figure:
    return Figure(
        **{name: line[name] for name in TEXTS},
        row=_conditions(line["row"]),
        protocol=_conditions(line["protocol"]),
        value=float(line["value"]),
        spread=float(line["spread"]) if line["spread"] else None,
    )


def _conditions(text: str) -> dict[str, Any]:
    return {key: yaml.safe_load(value) for key, value in (c.split("=", 1) for c in text.split())}


def comparisons(rows: list[Row]) -> list[Comparison]:
    """Each row with the figures that it can be compared with, the nearest protocol first."""
    found = []
    for row in rows:
        fits = []
        for figure in figures():
            ours = row.summary(metric(figure.metric)) if _applies(figure, row) else None
            if ours is not None:
                fits.append(Comparison(row, figure, ours.mean, _unmet(figure.protocol, row)))
        found += sorted(fits, key=lambda fit: len(fit.differences))
    return found


def _applies(figure: Figure, row: Row) -> bool:
    ours = (row.section.dataset, row.section.scenario, row.section.split, row.method)
    theirs = (figure.dataset, figure.scenario, "test", figure.method)
    return ours == theirs and not _unmet(figure.row, row)


def _unmet(conditions: dict[str, Any], row: Row) -> list[str]:
    """The conditions that do not hold in all runs: `schedule.epochs=2 (published: 1)`.

    Joint training sees all classes in its one task, so that a loss over those seen is one over all.
    """
    found = []
    for key, wanted in conditions.items():
        if key == "loss_over" and row.method == "joint" and wanted == "all":
            wanted = LOSS_OVER["class_il"]
        values = {_value_at(key, run) for run in row.runs}
        if values != {format_value(wanted)}:
            ours = "|".join(sorted(values))
            found.append(f"{key}={ours} (published: {format_value(wanted)})")
    return found


def _value_at(key: str, run: Run) -> str:
    """A value of a run's config, or of what the record says of the loss and the backbone.

    `backbone` is the data that it was pre-trained on, or none; `pretrained` whether there is one.
    """
    if key == "loss_over":
        live = _value_at("scenario.live", run)
        future = _value_at("scenario.live.future", run) == "true"
        return "all" if future else LOSS_OVER.get(live, live)
    if key in ("backbone", "pretrained"):
        backbone = run.record.get("backbone")
        name = backbone["data"]["name"] if backbone else "none"
        return name if key == "backbone" else format_value(backbone is not None)
    return "|".join(format_value(run.config[k]) for k in matching_keys(key, run.config)) or "null"
