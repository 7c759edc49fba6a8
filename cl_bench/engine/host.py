"""The program around a run: its rows, checkpoints, progress bar, and requests to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from cl_bench.base.signals import StopSignals
from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.resume import Start
from cl_bench.engine.session import Host, Progress
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, Journal
from cl_bench.results.tracking import Sink

QUIET = 30.0  # seconds between two lines of news where there is no progress bar


class RunHost(Host):
    """The host of a run in its folder; the journal begins with the rows of `start`."""

    def __init__(
        self,
        folder: Folder,
        machine: Runtime,
        method: Method,
        progress: Progress,
        sink: Sink,
        stop: StopSignals,
        every: int,
        save_every: float,
        start: Start,
    ) -> None:
        super().__init__(machine.seconds, every)
        self.folder, self.machine, self.method, self.progress = folder, machine, method, progress
        self.sink, self.stop_request = sink, stop
        self.save_every, self.start = save_every, start
        self.last_save = self.last_news = time.monotonic()
        self.journal = Journal(folder.metrics, start.rows)
        sink.replay(self.journal.rows())  # a mirror of a run that was killed may lack some
        self.bar = tqdm(disable=True)

    @contextmanager
    def shown(self, total: int, title: str) -> Iterator[None]:
        """With a progress bar, on a terminal only; the journal is closed at the end."""
        done = self.progress.steps
        if done:
            at = f"step {self.progress.step} of task {self.progress.done}"
            print(f"{self.folder.path}: continues at {at}", file=sys.stderr)
        self.bar = tqdm(total=total, initial=done, desc=title, leave=False, disable=None)
        with closing(self.journal.file), self.bar:
            yield

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the journal, and to wandb's mirror of it."""
        self.journal.write(row)
        self.sink.log(row)
        if row["event"] == "task":
            own = row["accuracy"][row["task"]]
            self._show(f"task {row['task']} learned, {100 * own:.1f} % on its own test images")

    def _show(self, news: str) -> None:
        """On the bar; where there is none, a line, but not within QUIET seconds of another one."""
        self.bar.set_postfix_str(news)
        if self.bar.disable and time.monotonic() - self.last_news > QUIET:
            print(f"{self.folder.path}: {news}", file=sys.stderr)
            self.last_news = time.monotonic()

    def advance(self, steps: int) -> None:
        """Move the progress bar."""
        self.bar.update(steps)

    def save(self) -> None:
        """Write the checkpoint: everything that the rest of the run depends on, in one file."""
        state = {
            "identity": self.start.identity,
            "codes": [*self.start.earlier, asdict(self.start.code)],
            "devices": self.start.devices,
            "progress": self.progress.state_dict(),
            "generators": self.machine.state(),
            "journal": self.journal.position(),
            **checkpoint.state_of(self.method),
        }
        with self.stop_request.holding():
            checkpoint.save(state, self.folder.checkpoint)
        self.last_save = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is older than `save_every` seconds."""
        return time.monotonic() - self.last_save > self.save_every

    def stopping(self) -> bool:
        """Whether a signal asks the run to stop."""
        return self.stop_request.pending is not None

    def stop(self) -> None:
        """Stop, by the signal's handler; it returns where that handler lets the run go on."""
        self.folder.mark("stopped")
        self.stop_request.deliver()
        self.folder.mark("running")
