"""A run in progress: its parts, how far it is, and the services of the program around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from statistics import mean
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
    """How far a run is, and what it measured so far."""

    matrix: AccuracyMatrix
    done: int = 0  # finished tasks
    step: int = 0  # steps within the current task
    steps: int = 0  # steps of all tasks
    images: int = 0  # training images in the batches of all steps
    order: Tensor | None = None  # state of the order generator at the start of the current task
    train_seconds: list[float] = field(default_factory=list)  # of each task
    eval_seconds: list[float] = field(default_factory=list)  # before training, and of each task
    validated: list[float] = field(default_factory=list)  # accuracies after this task's epochs
    best: dict[str, Any] | None = None  # the state after the best of these epochs
    best_epochs: list[int] = field(default_factory=list)  # of each task, with schedule.patience
    # with evaluation.every: images so far, and the accuracy on the classes seen so far
    along: list[tuple[int, float]] = field(default_factory=list)
    along_whole: bool = True  # false: a run that this one goes on from was not tested so
    known_task: float | None = None  # ACC_task, after the last task of a class-incremental run
    rates_are_numbers: bool = False  # with runtime.graphs: not tensors, also where they change
    planned: int = 0  # steps that were planned ahead (runtime.graphs)
    unplanned: dict[int, str] = field(default_factory=dict)  # why none of a task was

    @classmethod
    def start(cls, stream: Stream) -> Progress:
        """The progress of a run that has not begun."""
        return cls(AccuracyMatrix(len(stream.tests), [len(test) for test in stream.tests]))

    def summary(self) -> dict[str, float]:
        """All metrics: those of the matrix, and ACC_task and AUC where they were measured."""
        found = self.metrics_until(len(self.matrix.values) - 1)
        if self.along and self.along_whole:
            found["AUC"] = mean(accuracy for _, accuracy in self.along)
        return found

    def metrics_until(self, task: int) -> dict[str, float]:
        """The metrics of the matrix as it stood after `task`, and after the last one ACC_task."""
        found = self.matrix.until(task).summary()
        if task == len(self.matrix.values) - 1 and self.known_task is not None:
            found["ACC_task"] = self.known_task
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**state, "matrix": (self.matrix.values, self.matrix.initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; UserError where its numbers do not fit the stream."""
        matrix, tasks = self.matrix, len(self.matrix.values)
        values, initial = (part.cpu() for part in state["matrix"])
        fits = values.shape == (tasks, tasks) and initial.shape == (tasks,)
        counts = state["done"], state["step"], state["steps"], state["images"]
        if not fits or not 0 <= state["done"] <= tasks or min(counts) < 0:
            raise UserError(f"has an impossible progress ({state['done']} of {tasks} tasks done)")
        for f in fields(self):
            setattr(self, f.name, state.get(f.name, getattr(self, f.name)))
        matrix.values, matrix.initial = values, initial
        self.matrix = matrix
        self.order = None if self.order is None else self.order.cpu()


class Probe(Protocol):
    """A measurement besides the accuracy, which draws no random number and changes nothing."""

    every: int | None  # steps between two measurements; None: one measurement after each task

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]: ...


class Host:
    """What the training loop needs of the program around it: clock, rows, checkpoints, stopping.

    This base class writes nothing and never stops a run, as in a benchmark. `host.RunHost` writes
    into the folder of a run.
    """

    def __init__(self, seconds: Callable[[], float] = perf_counter, log_every: int = 100) -> None:
        self.seconds = seconds  # the clock
        self.log_every = log_every  # steps between two rows of the training loss

    def log(self, row: dict[str, Any]) -> None:
        """Write a row: the loss of a step, the accuracies after a task, or a measurement."""

    def keep(self, row: int, predictions: dict[str, Tensor]) -> None:
        """Write the predictions for test images after task `row`."""

    def doing(self, what: str) -> None:
        """Note what begins now: training on a task, what follows its last step, or tests."""

    def advance(self, steps: int) -> None:
        """Note that `steps` more steps are done."""

    def skip(self, steps: int) -> None:
        """Note that `steps` steps of a task that ended early will not be done."""

    def save(self) -> None:
        """Write a checkpoint."""

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint within the task should be written now."""
        return False

    def stop_requested(self) -> bool:
        """Whether the run should stop."""
        return False

    def stop(self) -> None:
        """Stop the run, whose checkpoint is written."""


@dataclass
class Session:
    """Everything that the training loop works with."""

    method: Method
    stream: Stream
    schedule: Schedule
    evaluation: Evaluation
    order: Generator  # on the CPU, draws the order of a task's samples
    progress: Progress
    host: Host
    probe: Probe | None = None
    budget_mib: float | None = None  # of what the method keeps besides the network

    @property
    def learner(self) -> Learner:
        return self.method.learner

    def measured(self) -> dict[str, Any]:
        """Seconds, for the record; with runtime.graphs also what was planned, and why not all."""
        progress = self.progress
        found = {"train_seconds": progress.train_seconds, "eval_seconds": progress.eval_seconds}
        if not self.learner.machine.planned:
            return found
        reasons = {str(task): reason for task, reason in progress.unplanned.items()}
        return {**found, "planned_steps": progress.planned, "unplanned": reasons}
