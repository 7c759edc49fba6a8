"""The host of a run in its folder: rows, checkpoints, the progress bar, and stopping by signals."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from cl_bench.base.signals import StopSignals
from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.resume import Start
from cl_bench.engine.session import Host, Progress
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, Journal
from cl_bench.results.tracking import Sink

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a notebook without ipywidgets gets no bar
    from tqdm.auto import tqdm

NEWS_SECONDS = 30.0  # without a progress bar: between two printed results of tasks


class RunHost(Host):
    """Writes the rows and checkpoints of a run into its folder, and stops the run by a signal.

    metrics.jsonl begins with the rows of `start`; later rows of an interrupted attempt are removed.
    """

    def __init__(
        self,
        folder: Folder,
        machine: Runtime,
        method: Method,
        progress: Progress,
        sink: Sink,
        stop: StopSignals,
        log_every: int,
        save_every: float,
        start: Start,
    ) -> None:
        super().__init__(machine.seconds, log_every)
        self.folder, self.machine, self.method, self.progress = folder, machine, method, progress
        self.sink, self.signals = sink, stop
        self.save_every, self.start = save_every, start
        # of the last checkpoint, the last printed result of a task, and the last printed line
        self.last_save = self.last_result = self.last_line = time.monotonic()
        self.journal = Journal(folder.metrics, start.rows)
        sink.replay(self.journal.rows())  # a killed run may not have sent them all
        self.bar = tqdm(disable=True)

    @contextmanager
    def progress_bar(self, total: int, title: str) -> Iterator[None]:
        """Show a bar over `total` steps on a terminal, and close the journal at the end."""
        done = self.progress.steps
        if done:
            at = f"step {self.progress.step} of task {self.progress.done}"
            print(f"{self.folder.path}: continues at {at}", file=sys.stderr)
        self.bar = tqdm(total=total, initial=done, desc=title, leave=False, disable=None)
        with closing(self.journal.file), self.bar:
            yield

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, and send it to the sink."""
        self.journal.write(row)
        self.sink.log(row)
        if row["event"] == "task":
            own = row["accuracy"].get(row["task"])
            tested = "" if own is None else f", {100 * own:.1f} % on its own test images"
            if self._show(f"task {row['task']} learned{tested}", self.last_result):
                self.last_result = self.last_line

    def doing(self, what: str) -> None:
        """Show what begins now on the bar, or as a line."""
        self._show(what, self.last_line)

    def _show(self, news: str, since: float) -> bool:
        """Show news on the bar. Without a bar, print a line if `since` is NEWS_SECONDS ago.

        Returns whether a line was printed.
        """
        self.bar.set_postfix_str(news)
        due = self.bar.disable and time.monotonic() - since > NEWS_SECONDS
        if due:
            print(f"{self.folder.path}: {news}", file=sys.stderr)
            self.last_line = time.monotonic()
        return due

    def keep(self, row: int, predictions: dict[str, Tensor]) -> None:
        """Write the predictions to predictions/task_<row>.npz."""
        from cl_bench.results.predictions import write  # imports pandas, which is slow

        write(self.folder.path, row, {name: v.numpy() for name, v in predictions.items()})

    def advance(self, steps: int) -> None:
        """Move the progress bar."""
        self.bar.update(steps)

    def skip(self, steps: int) -> None:
        """Shorten the progress bar."""
        if not self.bar.disable:
            self.bar.total -= steps
            self.bar.refresh()

    def save(self) -> None:
        """Write a checkpoint with everything that the rest of the run depends on."""
        state = {
            "identity": self.start.identity,
            "codes": [*self.start.earlier, asdict(self.start.code)],
            "devices": self.start.devices,
            "progress": self.progress.state_dict(),
            "generators": self.machine.state(),
            "journal": self.journal.position(),
            **checkpoint.state_of(self.method),
        }
        with self.signals.holding():
            checkpoint.save(state, self.folder.checkpoint)
        self.last_save = time.monotonic()

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is older than `save_every` seconds."""
        return time.monotonic() - self.last_save > self.save_every

    def stop_requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.signals.pending is not None

    def stop(self) -> None:
        """Hand the signal to the handler before ours, which ends the run, or lets it continue."""
        self.folder.set_status("stopped")
        self.signals.deliver()
        self.folder.set_status("running")
