"""A run in progress: what it is made of, how far it is, and what the program around it offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import Any, Protocol

from torch import Generator, Tensor

from cl_bench.base.exceptions import UserError
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task
from cl_bench.engine.evaluation import Evaluation
from cl_bench.engine.schedule import Schedule
from cl_bench.methods.base import Method
from cl_bench.results.metrics import AccuracyMatrix


@dataclass
class Progress:
    """How far a run has come: with the method's state, all that a checkpoint needs."""

    matrix: AccuracyMatrix
    done: int = 0  # tasks that are over
    step: int = 0  # steps within the current task
    steps: int = 0  # steps in all
    order: Tensor | None = None  # the order generator's state when the current task began
    train_seconds: list[float] = field(default_factory=list)
    eval_seconds: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, stream: Stream) -> Progress:
        """Nothing done yet."""
        return cls(AccuracyMatrix(len(stream.tests)))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**state, "matrix": (self.matrix.values, self.matrix.initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as far as `state` says; UserError where that cannot be."""
        tasks = len(self.matrix.values)
        values, initial = (part.cpu() for part in state["matrix"])
        fits = values.shape == (tasks, tasks) and initial.shape == (tasks,)
        counts = state["done"], state["step"], state["steps"]
        if not fits or not 0 <= state["done"] <= tasks or min(counts) < 0:
            raise UserError(f"its progress ({state['done']} of {tasks} tasks done) cannot be")
        for f in fields(self):
            setattr(self, f.name, state[f.name])
        self.matrix = AccuracyMatrix(0)
        self.matrix.values, self.matrix.initial = values, initial
        self.order = None if self.order is None else self.order.cpu()


class Probe(Protocol):
    """A measurement beside the accuracy; it draws nothing and changes nothing."""

    every: int | None  # steps between two of them while a task is learned; None: one after it

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]: ...


class Host:
    """The program around a run: a clock, rows, checkpoints, requests to stop.

    This one keeps nothing and never stops a run: for a benchmark, or a run that leaves no folder.
    `host.RunHost` is that of a run in its folder.
    """

    def __init__(self, seconds: Callable[[], float] = perf_counter, every: int = 100) -> None:
        self.seconds = seconds
        self.every = every  # steps between two rows of the training loss

    def log(self, row: dict[str, Any]) -> None:
        """Keep a row: of a step's loss, of a task's accuracies, of a probe."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""

    def save(self) -> None:
        """Write a checkpoint."""

    def due(self) -> bool:
        """Whether it is time for a checkpoint within a task."""
        return False

    def stopping(self) -> bool:
        """Whether the run is asked to stop."""
        return False

    def stop(self) -> None:
        """Stop the run, after its checkpoint."""


@dataclass
class Session:
    """All that the training loop works with."""

    method: Method
    stream: Stream
    schedule: Schedule
    evaluation: Evaluation
    order: Generator  # CPU: the order of a task's samples
    progress: Progress
    host: Host
    probe: Probe | None = None

    @property
    def learner(self) -> Learner:
        return self.method.learner
