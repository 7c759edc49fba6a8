"""The ratios that a benchmark measures: printed as they come, and kept for results/speed.csv."""

from __future__ import annotations

import shlex
import sys
import time
from decimal import Decimal
from pathlib import Path

import torch

from cl_bench.config.compose import composed
from cl_bench.report.results_table import ResultRow, merged, read, write
from cl_bench.results.source_code import software_versions

TABLE = "speed"
FILE = Path(__file__).parents[1] / f"results/{TABLE}.csv"
NOTE = "a command of scripts/bench.py, not of cl_bench.run; one thread"
SHOWN = ("model=", "backbone=")  # overrides that become part of a label


class Ratios:
    """Numbers of one command of a benchmark, by what was measured and in what unit.

    overrides  those of the config; its data set, and a model or backbone, are part of each label
    """

    def __init__(self, overrides: list[str]) -> None:
        self.overrides = overrides
        self.found: list[tuple[str, str, float, str, list[str]]] = []

    def add(self, label: str, metric: str, value: float, unit: str = "ratio") -> None:
        """Keep a number of the present `overrides`."""
        self.found.append((label, metric, value, unit, self.overrides))

    def save(self) -> None:
        """Write the numbers into results/speed.csv, in place of those that were measured before."""
        kept = read(FILE) if FILE.exists() else []
        write(FILE, merged(kept, map(self._row, self.found)))
        print(f"{len(self.found)} numbers written to {FILE}; scripts/results_pages.py shows them")

    def _row(self, found: tuple[str, str, float, str, list[str]]) -> ResultRow:
        label, metric, value, unit, overrides = found
        known, cfg = software_versions(), composed(*overrides)
        shown = [each for each in overrides if each.startswith(SHOWN)]
        command = shlex.join(["python", "scripts/bench.py", *_as_shown(sys.argv[1:])])
        return ResultRow(
            table=TABLE,
            row=", ".join([label, cfg.dataset.name, *shown]),
            command=command,
            dataset=cfg.dataset.name,
            scenario="",
            method="",
            split="",
            metric=metric,
            mean=Decimal(f"{value:.3g}"),
            sd=None,
            n=None,
            seeds="",
            lower=None,
            upper=None,
            unit=unit,
            device="cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
            commit=known["commit"] or "",
            versions=f"python {known['python']}, torch {known['versions']['torch']}",
            date=time.strftime("%Y-%m-%d"),
            published=None,
            published_spread=None,
            published_source="",
            note=NOTE,
        )


def _as_shown(words: list[str]) -> list[str]:
    """Without what is of this machine, and `--save`."""
    own = "--save", "data_dir=", "cache_dir="
    return [word for word in words if not word.startswith(own)]
