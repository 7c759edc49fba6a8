"""The trials of a search: each point's runs, as processes of `python -m cl_bench.run`.

A run whose folder another process has locked is tried again until it is free. A run whose training
diverged makes its point a diverged one. Any other failure says nothing about the point, and stops
the search.
"""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from threading import Event, Lock
from types import FrameType
from typing import Any, NoReturn

from cl_bench.base.escape import visible
from cl_bench.base.exceptions import DIVERGED, StopRun, UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.nodes import targets
from cl_bench.results import source_code
from cl_bench.results.folder import LOCKED
from cl_bench.results.record import RunRecord, read_record
from cl_bench.results.source_code import Code
from cl_bench.results.terminal import percent
from cl_bench.tuning.search import Point, Search

POLL = 5.0  # seconds between two tries of a run that is locked
NOTHING_WRITTEN = "nothing was written, the same command continues the search"


@dataclass
class Trial:
    """One point, and what its runs gave."""

    point: Point
    accuracies: list[float] = field(default_factory=list)  # ACC of each seed
    seconds: float = 0.0  # of training, mean over the seeds
    error: str | None = None  # `diverged`, or None
    other_code: str = ""  # modules whose sources have changed since the runs were made

    @property
    def score(self) -> float:
        """The mean ACC over the seeds; minus infinity where training diverged."""
        return -math.inf if self.error or not self.accuracies else mean(self.accuracies)

    def row(self) -> dict[str, Any]:
        """The trial as a row of the table that is printed and kept as evidence."""
        several = len(self.accuracies) > 1
        spread = percent(stdev(self.accuracies)) if several else "-"
        acc = self.error or percent(mean(self.accuracies))
        row = {**self.point, "ACC": acc, "sd": spread, "train s": f"{self.seconds:.1f}"}
        return row | ({"made by other code": self.other_code} if self.other_code else {})


class Processes:
    """The running processes of a search; leaving the context, or SIGTERM, ends them all."""

    def __init__(self) -> None:
        self.lock, self.ended = Lock(), Event()
        self.running: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Processes:
        self.previous_handler = signal.signal(signal.SIGTERM, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        signal.signal(signal.SIGTERM, self.previous_handler)

    def run(self, overrides: list[str]) -> tuple[int, str, str]:
        """Run one process to its end; its exit code, standard output and standard error."""
        command = [sys.executable, "-m", "cl_bench.run", "figures=false", *overrides]
        pipe = subprocess.PIPE
        with self.lock:
            if self.ended.is_set():
                raise UserError("the search has ended")
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
            )
            self.running.add(process)
        out, err = process.communicate()
        self.running.discard(process)
        return process.returncode, out, err

    def wait(self) -> None:
        """Wait before a locked run is tried again; UserError where the search ends meanwhile."""
        if self.ended.wait(POLL):
            raise UserError("the search has ended")

    def stop(self) -> None:
        """End all runs: each writes a checkpoint, from which a repeated search continues."""
        with self.lock:
            self.ended.set()
            for process in [*self.running]:
                process.terminate()


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise StopRun(number)


def run_points(search: Search, report: Callable[[Trial], None]) -> list[Trial]:
    """The trials of all points of a grid or a random search, in the order of the points.

    `search.jobs` points are run at the same time; `report` is called with each trial as it ends.
    """
    code, pool = current_code(search), ThreadPoolExecutor(search.jobs)
    try:
        with Processes() as processes:
            points = search.points()
            futures = [pool.submit(run_trial, search, point, processes, code) for point in points]
            for future in as_completed(futures):
                report(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def current_code(search: Search) -> Code:
    """The code that runs of this search are made by now."""
    overrides = search.overrides_of(search.points()[0], search.seeds[0])
    return source_code.code_of(targets(check_config(composed(*overrides))))


def run_trial(search: Search, point: Point, processes: Processes, code: Code) -> Trial:
    """Run a point with each seed; a finished run is not repeated.

    The trial ends at the first seed with which training diverges. Raises UserError where a run
    fails for another reason.
    """
    trial, others = Trial(point), set()
    for seed in search.seeds:
        overrides = search.overrides_of(point, seed)
        record = _run(overrides, processes)
        if record is None:
            trial.error = DIVERGED
            return trial
        trial.accuracies.append(_acc(record, overrides))
        trial.seconds += sum(record.measured["train_seconds"]) / len(search.seeds)
        sources = record.code.get("files") or {}
        others |= {n for n, sha in code.files.items() if sources.get(n, sha) != sha}
        others |= {"of several codes"} if record.code.get("parts") else set()
    trial.other_code = ", ".join(sorted(others))
    return trial


def _run(overrides: list[str], processes: Processes) -> RunRecord | None:
    """The record of one run, once its folder is not locked; None where its training diverged."""
    announced = False
    while True:
        code, out, err = processes.run(overrides)
        if code == 0:
            return _record(out, overrides)
        error = _error_line(err)
        if code == 2 and error.endswith(LOCKED):
            if not announced:
                print(visible(f"{error}: waiting for it"), file=sys.stderr)
            announced = True
            processes.wait()
        elif code == 2 and error.startswith(f"training {DIVERGED} in task "):
            return None
        else:
            how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
            raise UserError(f"{_name(overrides)} failed ({how}): {error}; {NOTHING_WRITTEN}")


def _error_line(err: str) -> str:
    """The last line of standard error that begins with `error: `, or else the last line."""
    lines = err.strip().splitlines() or ["it wrote no error"]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else lines[-1]


def _record(output: str, overrides: list[str]) -> RunRecord:
    """The record in the folder that the last line of a run's output names."""
    last = (output.splitlines() or [""])[-1]
    try:
        return read_record(Path(last.removeprefix("files: ")) / "record.json")
    except (DamagedError, OSError) as error:
        raise UserError(f"{_name(overrides)} left no record: {error}; {NOTHING_WRITTEN}") from None


def _acc(record: RunRecord, overrides: list[str]) -> float:
    acc = record.metrics["ACC"]
    if acc is None:
        raise UserError(f"{_name(overrides)} measured no ACC; {NOTHING_WRITTEN}")
    return acc


def _name(overrides: list[str]) -> str:
    return f"the run {shlex.join(overrides)}"
