"""The protocol, the same for every method: for each task begin, observe, end, test."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, isfinite, pi
from typing import Any, Literal, Protocol

from torch import Generator, Tensor

from cl_bench.base.bounds import Count, Share
from cl_bench.base.exceptions import diverged
from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task
from cl_bench.engine.evaluation import Evaluation, accuracies
from cl_bench.engine.head_warmup import fit_head, new_classes
from cl_bench.methods.base import Method
from cl_bench.results.metrics import AccuracyMatrix


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions each task is trained.

    batch_norm=frozen  statistics and weights of batch norm stay as the first task left them
    annealing=cosine   the learning rate falls to 0 within each task (Loshchilov & Hutter 2017,
                       arXiv:1608.03983, without restarts); exponential: by `decay` an epoch
    warm_up=head       the head's rows of a task's new classes are fitted first, alone (`fit_head`)
    """

    epochs: Count
    batch_size: Count
    batch_norm: Literal["train", "frozen"]
    annealing: Literal["none", "cosine", "exponential"]
    warm_up: Literal["none", "head"]
    decay: Share

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """Options that make no difference where the others are as they are."""
        return set() if options["annealing"] == "exponential" else {"decay"}

    def steps(self, task: Task) -> int:
        """The number of batches of a task."""
        return self.epochs * -(-len(task) // self.batch_size)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at a task's step `step` (from 0) of `steps`."""
        if self.annealing == "exponential":
            return self.decay ** (self.epochs * step / steps)
        return 1.0 if self.annealing == "none" else (1 + cos(pi * step / steps)) / 2


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


class Probe(Protocol):
    """What is watched beside the accuracy; draws and keeps nothing."""

    every: int | None  # steps between two looks while a task is learned; None: one look after it

    def __call__(self, learner: Learner, stream: Stream, task: Task) -> dict[str, float]: ...


class Host(Protocol):
    """What a run needs of the program around it."""

    every: int  # steps between two rows of the training loss

    def seconds(self) -> float: ...
    def log(self, row: dict[str, Any]) -> None: ...
    def advance(self, steps: int) -> None: ...
    def save(self) -> None: ...
    def due(self) -> bool: ...
    def stopping(self) -> bool: ...
    def stop(self) -> None: ...


def run(
    method: Method,
    stream: Stream,
    order: Generator,
    schedule: Schedule,
    evaluation: Evaluation,
    progress: Progress,
    host: Host,
    probe: Probe | None = None,
) -> None:
    """Run what is left of the stream; `progress` is kept up to date and holds the outcome."""
    now = stream.tasks[max(progress.done - 1, 0)]
    method.learner.reveal(stream.live(now.id if progress.done else 0), now.t.unique(), stream.ever)
    if not progress.done and not progress.step:
        measure(method, stream, evaluation, progress, host, -1)
    within, after = (probe, None) if probe is not None and probe.every else (None, probe)
    for task in stream.tasks[progress.done :]:
        learn(method, stream, task, order, schedule, progress, host, within)
        measure(method, stream, evaluation, progress, host, task.id)
        if after is not None:
            _watch(after, method, stream, task, progress, host)
        progress.done, progress.step, progress.order = progress.done + 1, 0, None
        host.save()
        if host.stopping() and progress.done < len(stream.tasks):
            host.stop()


def learn(
    method: Method,
    stream: Stream,
    task: Task,
    order: Generator,
    schedule: Schedule,
    progress: Progress,
    host: Host,
    probe: Probe | None = None,
) -> None:
    """Train on one task, from its beginning or from the step that the checkpoint holds."""
    before = progress.train_seconds.pop() if progress.order is not None else 0.0
    started = host.seconds()
    _begin(method, stream, task, order, schedule, progress)
    last = schedule.steps(task)
    for batch in task.batches(schedule.batch_size, order, schedule.epochs, progress.step):
        if probe is not None and progress.step % (probe.every or last) == 0:
            started += _watch(probe, method, stream, task, progress, host)
        method.learner.anneal(schedule.factor(progress.step, last))
        loss = method.observe(batch)
        progress.step += 1
        progress.steps += 1
        host.advance(1)
        if progress.steps % host.every == 0 or progress.step == last:
            _log_loss(loss, task, progress, host)
        if host.stopping() or host.due():
            progress.train_seconds.append(before + host.seconds() - started)
            started += _save(host)
            progress.train_seconds.pop()
    if probe is not None:
        started += _watch(probe, method, stream, task, progress, host)
    method.end_task(task)
    progress.train_seconds.append(before + host.seconds() - started)


def _begin(
    method: Method,
    stream: Stream,
    task: Task,
    order: Generator,
    schedule: Schedule,
    progress: Progress,
) -> None:
    """What comes before a task's first step, or before the next one of a run that comes back."""
    learner, now = method.learner, (stream.live(task.id), task.t.unique(), stream.ever)
    learner.task = task
    frozen = schedule.batch_norm == "frozen" and progress.done > 0
    if progress.order is not None:
        order.set_state(progress.order)
        learner.reveal(*now)
        learner.train(frozen)
        return
    progress.order = order.get_state()
    learner.begin_task(*now)
    learner.train(frozen)
    if schedule.warm_up == "head":
        fit_head(learner, task, new_classes(stream, task))
    method.begin_task(task)


def _save(host: Host) -> float:
    """A checkpoint within a task, and the end where one is asked for; its seconds."""
    before = host.seconds()
    host.save()
    if host.stopping():
        host.stop()
    return host.seconds() - before


def _watch(
    probe: Probe, method: Method, stream: Stream, task: Task, progress: Progress, host: Host
) -> float:
    """One look, reported; returns its seconds, which are no training."""
    before, counted = host.seconds(), method.learner.evaluated
    found = probe(method.learner, stream, task)
    method.learner.evaluated = counted
    host.log({"event": "probe", "task": task.id, "step": progress.steps} | found)
    return host.seconds() - before


def measure(
    method: Method,
    stream: Stream,
    evaluation: Evaluation,
    progress: Progress,
    host: Host,
    row: int,
) -> None:
    """Fill one row of the accuracy matrix and report it; -1 is before training."""
    started = host.seconds()
    columns = evaluation.columns(row, stream)
    competing = (method.learner.live | ~stream.classes).all(1).tolist()
    columns = [c for c in columns if competing[c]]
    found = accuracies(method, [stream.tests[c] for c in columns], evaluation.batch_size)
    progress.matrix.fill(row, columns, found)
    progress.eval_seconds.append(host.seconds() - started)
    if row >= 0:
        so_far = progress.matrix.until(row).summary()
        host.log(
            {
                "event": "task",
                "task": row,
                "accuracy": dict(zip(columns, found, strict=True)),
                "metrics": so_far,
                "method": method.facts(),
            }
        )


def _log_loss(loss: Tensor, task: Task, progress: Progress, host: Host) -> None:
    value = loss.item()
    if not isfinite(value):
        raise diverged(f"the loss is {value} at step {progress.step}", task.id)
    host.log({"event": "step", "step": progress.steps, "task": task.id, "loss": value})
