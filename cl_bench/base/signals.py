"""Signals that stop a run, and worker processes that end with the process that started them."""

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

POLL, GRACE = 1.0, 60.0  # seconds: between checks of the parent; from its end to a forced exit
_watched: set[int] = set()  # parents that a thread of this process watches


class StopSignals:
    """Handles SIGTERM, SIGUSR2 and Ctrl-C: they set `pending`, and the run stops at the next step.

    After its checkpoint, the run calls `deliver`, which passes the signal to the handler that was
    set before. By default that raises StopRun. A handler of submitit requeues the job on a cluster,
    or ignores SIGTERM. A second signal stops the run at once.
    """

    signals = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

    def __init__(self) -> None:
        self.pending: int | None = None
        self.before: dict[int, Any] = {}
        self.held = False  # inside `holding`, where a second signal waits as well

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._notice) for s in self.signals}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.pending is not None and kind is None:  # the signal came after the last step
            self.deliver()

    def _notice(self, number: int, _: FrameType | None) -> None:
        # at the second signal, the step is not waited for
        if self.pending is not None and not self.held:
            raise StopRun(number)
        self.pending = number

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside the block no signal interrupts, so that a file is written to its end."""
        self.held = True
        try:
            yield
        finally:
            self.held = False

    def deliver(self) -> None:
        """Pass the pending signal on; returns only where the earlier handler lets the run go on."""
        assert self.pending is not None
        number, self.pending = self.pending, None
        handler = self.before[number]
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            raise StopRun(number)
        if callable(handler):
            handler(number, None)


def end_with_parent(parent: int) -> None:
    """Watch the process `parent`, which started this one, and end this process after it.

    A worker of a sweep would otherwise wait for more work forever. SIGTERM lets its run write a
    checkpoint; after GRACE seconds the process exits in any case.
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
