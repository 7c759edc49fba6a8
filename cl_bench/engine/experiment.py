"""The training loop, the same for every method: begin a task, observe its batches, end it, test."""

from __future__ import annotations

from itertools import takewhile
from math import isfinite
from statistics import mean

import torch
from torch import Tensor

from cl_bench.base.exceptions import diverged
from cl_bench.core.types import Task
from cl_bench.engine import early_stopping
from cl_bench.engine.budget import require_state_within
from cl_bench.engine.checkpoint import bytes_of
from cl_bench.engine.evaluation import (
    accuracies_among,
    accuracy_on_seen,
    classes_if_task_known,
    predictions,
)
from cl_bench.engine.head_warmup import fit_head, new_classes
from cl_bench.engine.session import Session
from cl_bench.engine.steps import Steps


def run(session: Session) -> None:
    """Train and test on all tasks that are left; the results are in `session.progress`."""
    stream, progress, host, probe = session.stream, session.progress, session.host, session.probe
    last = stream.tasks[max(progress.done - 1, 0)]  # learned last; the first before training
    live = stream.live(last.id if progress.done else 0)
    session.learner.reveal(live, last.t.unique(), stream.live_at_end)
    if not progress.done and not progress.step:
        measure(session, -1)
    for task in stream.tasks[progress.done :]:
        learn(session, task)
        measure(session, task.id)
        if probe is not None and not probe.every:
            _probe(session, task)
        progress.done, progress.step, progress.order = progress.done + 1, 0, None
        host.save()
        if host.stop_requested() and progress.done < len(stream.tasks):
            host.stop()


def learn(session: Session, task: Task) -> None:
    """Train on one task, from its first step or from that of the checkpoint."""
    progress, schedule, host = session.progress, session.schedule, session.host
    every = session.probe.every if session.probe is not None else None
    before = progress.train_seconds.pop() if progress.order is not None else 0.0
    started = host.seconds()
    host.doing(f"training on task {task.id}")
    prepare_task(session, task)
    last = schedule.steps(task)
    starts, steps = task.part_starts(schedule.batch_size), Steps(session, task)
    for batch in takewhile(lambda _: not early_stopping.ended(session), steps):
        if starts.get(progress.step):
            started += _begin_part(session, task, starts[progress.step])
            steps.start_over()
        if every and progress.step % every == 0:
            started += _probe(session, task)
        loss = steps.take(batch)
        progress.step += 1
        progress.steps += 1
        started += _test_along(session, task, len(batch))
        started += early_stopping.validate(session, task)
        host.advance(1)
        if progress.steps % host.log_every == 0 or progress.step == last:
            _log_loss(session, loss, task)
        if steps.settled and (host.stop_requested() or host.checkpoint_due()):
            progress.train_seconds.append(before + host.seconds() - started)
            started += _save(session)
            progress.train_seconds.pop()
    steps.start_over()  # and drop its graphs
    early_stopping.finish(session, task)
    if every:
        started += _probe(session, task)
    if schedule.batch_norm == "folded" and not progress.done:
        session.learner.fold_batch_norm(task)
    host.doing(f"task {task.id} trained; estimating what the method keeps of it")
    _end_task(session, task)
    progress.train_seconds.append(before + host.seconds() - started)


def _end_task(session: Session, task: Task) -> None:
    """Tell the method that the task has ended, after the images that were held out for it."""
    if session.method.uses_held_out:
        session.method.validate(session.stream.held_out[session.progress.done])
    session.method.end_task(task)
    session.learner.keep_equal()


def prepare_task(session: Session, task: Task) -> None:
    """Set learner and method to the task, before its first step or the next one after a resume.

    At its beginning, the state of the order generator is noted, the head may be fitted, and the
    method's `begin_task` is called. After a resume the generator is set to the noted state, so that
    `Task.indices` can skip the batches that were seen, and `begin_task` is not called again.
    """
    learner, stream, progress = session.learner, session.stream, session.progress
    classes = _classes_at(session, task, progress.step)
    learner.task, learner.clip = task, session.schedule.clip
    kept = progress.done > 0 and session.schedule.batch_norm != "train"
    mode = {"frozen": kept, "train_biases": session.schedule.batch_norm == "folded"}
    if progress.order is not None:
        session.order.set_state(progress.order)
        learner.reveal(*classes)
        learner.train(**mode)
        return
    progress.order = session.order.get_state()
    learner.begin_task(*classes, session.schedule.fresh_optimizer)
    learner.train(**mode)
    if session.schedule.warm_up == "head":
        fit_head(learner, task, new_classes(stream, task))
    session.method.begin_task(task)
    learner.keep_equal()


def _classes_at(session: Session, task: Task, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `Learner.reveal` takes, for the step after `step` steps of a task.

    Where the stream hides its boundaries, the classes of the parts that have begun compete.
    """
    stream = session.stream
    now = _now(session, task, step)
    tasks = torch.arange(now + 1, device=task.t.device) if task.parts else task.t.unique()
    return stream.live(now), tasks, stream.live_at_end


def _now(session: Session, task: Task, step: int) -> int:
    """The id of the task that the last of `step` batches was of, or the first one belongs to."""
    starts = task.part_starts(session.schedule.batch_size)
    return max((n for at, n in starts.items() if at < max(step, 1)), default=task.id)


def _begin_part(session: Session, task: Task, part: int) -> float:
    """Test after the part before, and let the classes of `part` compete; returns the seconds.

    Neither the method nor the optimizer is told that a part ends.
    """
    before = session.host.seconds()
    measure(session, part - 1)
    session.learner.reveal(*_classes_at(session, task, session.progress.step + 1))
    return session.host.seconds() - before


def _test_along(session: Session, task: Task, images: int) -> float:
    """Count the images of a step; test where evaluation.every says so. Returns the seconds."""
    progress, every, host = session.progress, session.evaluation.every, session.host
    due = every is not None and (progress.images + images) // every > progress.images // every
    progress.images += images
    if not due:
        return 0.0
    before, now = host.seconds(), _now(session, task, progress.step)
    found = accuracy_on_seen(session.method, session.stream, now, session.evaluation.batch_size)
    progress.along.append((progress.images, found))
    host.log({"event": "along", "task": now, "images": progress.images, "accuracy": found})
    return host.seconds() - before


def measure(session: Session, row: int) -> None:
    """Test after task `row`, and fill that row of the accuracy matrix; -1 is before training.

    A task is tested only if all of its classes compete already. ACC_task of a class-incremental run
    comes from the last row's tests.
    """
    stream, progress, host = session.stream, session.progress, session.host
    started = host.seconds()
    competing = (session.learner.heads.live | ~stream.classes).all(1).tolist()
    columns = [c for c in session.evaluation.columns(row, stream) if competing[c]]
    tests = [stream.tests[c] for c in columns]
    if tests:
        host.doing(f"tests after task {row}" if row >= 0 else "tests before training")
    size = session.evaluation.batch_size
    last = row == len(stream.tests) - 1  # all tasks are tested after it
    known = classes_if_task_known(session.method, stream) if last else None
    masks = [None] if known is None else [None, known]
    found, *if_known = accuracies_among(session.method, tests, size, masks)
    progress.matrix.fill(row, columns, found)
    if if_known:
        progress.known_task = mean(if_known[0])
    progress.eval_seconds.append(host.seconds() - started)
    if row >= 0 and session.evaluation.keeps_predictions(row, len(stream.tests)) and tests:
        host.keep(row, predictions(session.method, tests, size))
    if row >= 0:
        state = session.method.state_dict()
        host.log(
            {
                "event": "task",
                "task": row,
                "accuracy": dict(zip(columns, found, strict=True)),
                "metrics": progress.metrics_until(row),
                "method": session.method.capacity(),
                "state_bytes": bytes_of(state),
            }
        )
        require_state_within(session.budget_mib, state, f"after task {row}")


def _save(session: Session) -> float:
    """Write a checkpoint within a task, and stop where that is requested; returns the seconds."""
    host = session.host
    before = host.seconds()
    host.save()
    if host.stop_requested():
        host.stop()
    return host.seconds() - before


def _probe(session: Session, task: Task) -> float:
    """Measure by the probe and log it; returns the seconds, which do not count as training."""
    learner, host = session.learner, session.host
    assert session.probe is not None
    before, gradients = host.seconds(), learner.sample_gradients
    found = session.probe(learner, session.stream, task)
    learner.sample_gradients = gradients  # those of the probe do not count
    host.log({"event": "probe", "task": task.id, "step": session.progress.steps} | found)
    return host.seconds() - before


def _log_loss(session: Session, loss: Tensor, task: Task) -> None:
    if not isinstance(loss, Tensor):
        method = type(session.method).__name__
        raise TypeError(f"{method}.observe must return the loss, a tensor; it returned {loss!r}")
    value, progress = loss.item(), session.progress
    if not isfinite(value):
        raise diverged(f"the loss is {value} at step {progress.step}", task.id)
    row = {"event": "step", "step": progress.steps, "task": task.id, "loss": value}
    session.host.log(row)
