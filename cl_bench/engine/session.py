"""What stands around a running experiment: rows, checkpoints, progress, the wish to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from typing import Any

from tqdm import tqdm

from cl_bench.core.runtime import Runtime
from cl_bench.engine import checkpoint
from cl_bench.engine.experiment import Progress
from cl_bench.engine.resume import Start
from cl_bench.engine.signals import Stop
from cl_bench.methods.base import Method
from cl_bench.results.folder import Folder, Journal
from cl_bench.results.tracking import Sink

QUIET = 30.0  # seconds between two lines


class Host:
    """The `experiment.Host` of a real run; continues from what `start` has found."""

    def __init__(
        self,
        folder: Folder,
        machine: Runtime,
        method: Method,
        progress: Progress,
        sink: Sink,
        stop: Stop,
        every: int,
        save_every: float,
        start: Start,
    ) -> None:
        self.folder, self.machine, self.method, self.progress = folder, machine, method, progress
        self.sink, self.wish, self.every = sink, stop, every
        self.save_every, self.start = save_every, start
        self.saved = self.told = time.monotonic()
        self.seconds = machine.seconds
        start.restore(method, progress, machine)
        self.journal = Journal(folder.metrics, start.rows)
        sink.replay(self.journal.rows())  # a mirror that was killed may lack them
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
        self.journal.write(row)
        self.sink.log(row)
        if row["event"] == "task":
            own = row["accuracy"][row["task"]]
            self._tell(f"task {row['task']} learned, {100 * own:.1f} % on its own test images")

    def _tell(self, news: str) -> None:
        """On the bar; where there is none, a line, but none in the first half minute after one."""
        self.bar.set_postfix_str(news)
        if self.bar.disable and time.monotonic() - self.told > QUIET:
            print(f"{self.folder.path}: {news}", file=sys.stderr)
            self.told = time.monotonic()

    def advance(self, steps: int) -> None:
        self.bar.update(steps)

    def save(self) -> None:
        """Everything that the rest of the run depends on, in one file."""
        done = {f.name: getattr(self.progress, f.name) for f in fields(Progress)}
        done["matrix"] = (self.progress.matrix.values, self.progress.matrix.initial)
        state = {
            "identity": self.start.identity,
            "codes": [asdict(self.start.code), *self.start.earlier],
            "progress": done,
            "generators": self.machine.state(),
            "journal": self.journal.position(),
            **checkpoint.state_of(self.method),
        }
        with self.wish.holding():
            checkpoint.save(state, self.folder.checkpoint)
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is older than `save_every` seconds."""
        return time.monotonic() - self.saved > self.save_every

    def stopping(self) -> bool:
        return self.wish.pending is not None

    def stop(self) -> None:
        self.folder.mark("stopped")
        self.wish.deliver()
        self.folder.mark("running")  # whoever had the signal before lets the run go on
