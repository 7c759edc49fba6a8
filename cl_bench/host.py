"""What stands around a running experiment: rows, checkpoints, progress, the wish to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from cl_bench import checkpoint
from cl_bench.experiment import Progress
from cl_bench.methods.base import Method
from cl_bench.metrics import AccuracyMatrix
from cl_bench.record import Folder, Journal
from cl_bench.runtime import Runtime, Stop
from cl_bench.tracking import Sink
from cl_bench.types import UserError

QUIET = 30.0  # seconds between two lines


class Host:
    """The `experiment.Host` of a real run; continues from the folder's checkpoint, if any."""

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
        identity: dict[str, str],
    ) -> None:
        self.identity = identity
        self.folder, self.machine, self.method, self.progress = folder, machine, method, progress
        self.sink, self.wish, self.every = sink, stop, every
        self.save_every = save_every
        self.saved = self.told = time.monotonic()
        self.seconds = machine.seconds
        self.journal = Journal(folder.metrics, self._resume())
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
            "identity": self.identity,
            "progress": done,
            "generators": self.machine.state(),
            "journal": self.journal.size(),
            **checkpoint.state_of(self.method),
        }
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

    def _resume(self) -> int:
        """Put the last checkpoint back; returns how many bytes of the journal it vouches for."""
        saved = checkpoint.load(self.folder.checkpoint, self.machine.device)
        if saved is None:
            return 0
        for name, value in self.identity.items():
            before = saved["identity"].get(name)
            if before != value:
                raise UserError(
                    f"{self.folder.checkpoint}: was written with {name} {before}, "
                    f"now it is {value}; go back to that, or remove the folder"
                )
        for name, value in saved["progress"].items():
            setattr(self.progress, name, value)
        matrix = AccuracyMatrix(0)
        matrix.values, matrix.initial = (part.cpu() for part in saved["progress"]["matrix"])
        self.progress.matrix = matrix
        if self.progress.order is not None:
            self.progress.order = self.progress.order.cpu()
        try:
            checkpoint.restore(self.method, saved)
        except UserError as error:
            raise UserError(f"{self.folder.checkpoint}: {error}, or remove the folder") from None
        self.machine.restore(saved["generators"])
        return saved["journal"]
