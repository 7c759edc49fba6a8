"""The runs of a search: each in a process of its own, and what counts as evidence of them.

A run that another process is at is waited for. Training that diverged says that the point is bad.
Any other failure says nothing of the point: it stops the search.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from types import FrameType
from typing import NoReturn

from cl_bench.base.escape import visible
from cl_bench.base.exceptions import DIVERGED, StopRun, UserError
from cl_bench.base.files import DamagedError
from cl_bench.config.check import check_config
from cl_bench.config.compose import composed
from cl_bench.config.nodes import targets
from cl_bench.results import source_code
from cl_bench.results.folder import BUSY
from cl_bench.results.record import RunRecord, load
from cl_bench.results.source_code import Code
from cl_bench.tuning.search import Point, Search, Trial

POLL = 5.0  # seconds between two tries of a run that another process is at
NOTHING = "nothing was written, the same command goes on from here"


class Processes:
    """Starts runs, and stops those that are left when the search ends early, by a signal too."""

    def __init__(self) -> None:
        self.lock, self.ended = Lock(), Event()
        self.running: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Processes:
        self.before = signal.signal(signal.SIGTERM, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        signal.signal(signal.SIGTERM, self.before)

    def answer(self, overrides: list[str]) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of one run."""
        command = [sys.executable, "-m", "cl_bench.run", *overrides]
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
        """Wait until a run that another process is at is tried again."""
        if self.ended.wait(POLL):
            raise UserError("the search has ended")

    def stop(self) -> None:
        """End all runs: each writes a checkpoint and continues when the search is repeated."""
        with self.lock:
            self.ended.set()
            for process in [*self.running]:
                process.terminate()


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise StopRun(number)


def enumerated(search: Search, tell: Callable[[Trial], None]) -> list[Trial]:
    """The trials of all points, in their order; `jobs` run at once, and `tell` gets each result."""
    code, pool = code_now(search), ThreadPoolExecutor(search.jobs)
    try:
        with Processes() as processes:
            points = search.points()
            futures = [pool.submit(tried, search, point, processes, code) for point in points]
            for future in as_completed(futures):
                tell(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def code_now(search: Search) -> Code:
    """The sources that the search's runs are made of now."""
    plain = check_config(composed(*search.command(search.points()[0], search.seeds[0])))
    return source_code.code_of(targets(plain))


def tried(search: Search, point: Point, processes: Processes, code: Code) -> Trial:
    """The runs of one point; runs that are done answer at once.

    A point whose training diverges with one seed is skipped. UserError where a run fails for
    another reason.
    """
    trial, others = Trial(point), set()
    for seed in search.seeds:
        found = _run(search.command(point, seed), processes)
        if found is None:
            trial.error = DIVERGED
            return trial
        trial.accuracies.append(_acc(found, search.command(point, seed)))
        trial.seconds += sum(found.measured["train_seconds"]) / len(search.seeds)
        theirs = found.code.get("files") or {}
        others |= {n for n, sha in code.files.items() if theirs.get(n, sha) != sha}
        others |= {"of several codes"} if found.code.get("parts") else set()
    trial.other_code = ", ".join(sorted(others))
    return trial


def _run(overrides: list[str], processes: Processes) -> RunRecord | None:
    """The record of one run, once no other process is at it; None: its training diverged."""
    announced = False
    while True:
        code, out, err = processes.answer(overrides)
        if code == 0:
            return _record(out, overrides)
        error = _error(err)
        if code == 2 and error.endswith(BUSY):
            if not announced:
                print(visible(f"{error}: waiting for it"), file=sys.stderr)
            announced = True
            processes.wait()
        elif code == 2 and error.startswith(f"training {DIVERGED} in task "):
            return None
        else:
            how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
            raise UserError(f"{_what(overrides)} failed ({how}): {error}; {NOTHING}")


def _error(err: str) -> str:
    """The line in which a run says why it failed, or the last one that it wrote."""
    lines = err.strip().splitlines() or ["it wrote no error"]
    own = [line for line in lines if line.startswith("error: ")]
    return own[-1].removeprefix("error: ") if own else lines[-1]


def _record(output: str, overrides: list[str]) -> RunRecord:
    """The record that a run's last line leads to."""
    last = (output.splitlines() or [""])[-1]
    try:
        return load(Path(last.removeprefix("files: ")) / "record.json")
    except (DamagedError, OSError) as error:
        raise UserError(f"{_what(overrides)} left no record: {error}; {NOTHING}") from None


def _acc(found: RunRecord, overrides: list[str]) -> float:
    acc = found.metrics["ACC"]
    if acc is None:
        raise UserError(f"{_what(overrides)} measured no ACC; {NOTHING}")
    return acc


def _what(overrides: list[str]) -> str:
    return f"the run {shlex.join(overrides)}"
