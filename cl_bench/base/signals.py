"""Signals that stop a run, and workers that end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cl_bench.base.exceptions import StopRun

POLL, GRACE = 1.0, 60.0  # seconds: between two looks at a parent, and from its end to ours
_watched: set[int] = set()  # parents that a thread of this process watches


class Stop:
    """SIGTERM, SIGUSR2 and Ctrl-C, noticed at once and obeyed at the next step.

    `deliver` hands the signal to whoever had it before: by default the run ends (StopRun), but a
    cluster's own handler (submitit's) requeues the job, or lets a SIGTERM pass.
    """

    signals = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

    def __init__(self) -> None:
        self.pending: int | None = None
        self.before: dict[int, Any] = {}
        self.held = False  # whether a second signal waits, too

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._notice) for s in self.signals}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.pending is not None and kind is None:  # it came after the last step
            self.deliver()

    def _notice(self, number: int, _: FrameType | None) -> None:
        if self.pending is not None and not self.held:  # asked twice: do not wait for the step
            raise StopRun(number)
        self.pending = number

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let a file be written whole: inside, no signal interrupts, however often it comes."""
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def deliver(self) -> None:
        """Call it after the checkpoint; it returns where the handler before lets the run go on."""
        assert self.pending is not None
        number, self.pending = self.pending, None
        handler = self.before[number]
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            raise StopRun(number)
        if callable(handler):
            handler(number, None)


def end_with(parent: int) -> None:
    """End this process soon after the process `parent`, which started it, has ended.

    A worker of a sweep would otherwise wait for more work for ever. Its run is asked to stop
    (SIGTERM), so that it writes a checkpoint; after GRACE seconds the process ends in any case.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
