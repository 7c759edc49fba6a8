"""What the pages of all sweeps share: a Hydra callback that reads the runs and writes the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.config.errors import describe
from cl_bench.report.configs import format_value
from cl_bench.report.runs import Run, finished_runs, left_out
from cl_bench.results.page import Page
from cl_bench.results.record import value_or_none
from cl_bench.results.records import read_all
from cl_bench.results.sweeps import FAILURE, PAGE, note_failure


class SweepPage(Callback):
    """A page made of all finished runs below output_dir.

    `variant`: the keys of the config whose values name a row or a curve.
    """

    def __init__(self, title: str, variant: list[str]) -> None:
        self.title, self.variant = title, variant

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the page and print it; nothing where no run is finished.

        Where no page can be made or written, the reason is noted, so that the sweep lists it beside
        its failed jobs (`Failures`) and ends with exit code 2. Hydra itself only warns of an error.
        Where the reason cannot be noted either, it is printed, and the sweep ends at once.
        """
        folder, place = files.absolute(config.output_dir), Path(config.hydra.sweep.dir) / PAGE
        try:
            records = read_all(folder)
            for line in left_out(records):
                print(f"left out: {line}", file=sys.stderr)
            if runs := finished_runs(records):
                print(self.page(runs).write(folder) + visible(f"files: {folder.resolve()}"))
            (place / FAILURE).unlink(missing_ok=True)  # of an earlier call
        except Exception as error:
            name, reason = "the page of the sweep", describe(error)
            try:
                note_failure(place, name, reason)
            except OSError:
                print(f"error: {name}: {reason}", file=sys.stderr)
                sys.exit(2)

    def page(self, runs: list[Run]) -> Page:
        """The page of these runs; UserError where they do not make one."""
        raise NotImplementedError

    def label(self, run: Run) -> str:
        """The run's values of the `variant` keys, as far as it has them."""
        values = [config_value(run, key) for key in self.variant]
        return " ".join(value for value in values if value is not None)


def config_value(run: Run, key: str) -> str | None:
    """A value of a run's config as a text, of a `_target_` the last part; None: it has none."""
    value = value_or_none(run.record["config"], key)
    if value is None:
        return None
    text = format_value(value)
    return text.rpartition(".")[2] if key.endswith("_target_") else text


def require_one_config(runs: list[Run], name: str) -> None:
    """Raise UserError where the runs of a row are of several configs."""
    if len({run.hash for run in runs}) > 1:
        first, *others = (run.config for run in runs)
        places = sorted({str(run.folder.parent) for run in runs})
        keys = {k for other in others for k in {*first, *other} if first.get(k) != other.get(k)}
        shown = ", ".join(sorted(keys - {"seed"})[:5])
        raise UserError(
            f"output_dir: {name} was run there with other values of {shown or 'other keys'}, too; "
            f"choose another output_dir, or move all but one of {', '.join(places)} out of it"
        )
