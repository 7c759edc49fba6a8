"""Ends a task early where its validation accuracy no longer rises (`schedule.patience`).

After each epoch the images of the task that `schedule.holdout` keeps from training are tested. The
task ends after `patience` epochs in a row that were not better than the best one so far. Network,
optimizer and method go back to the state after the best epoch. Seconds and gradients of the later
epochs count all the same, since they were spent.
"""

from __future__ import annotations

from copy import deepcopy

from cl_bench.core.types import Task
from cl_bench.engine import checkpoint
from cl_bench.engine.evaluation import accuracies
from cl_bench.engine.session import Session


def ended(session: Session) -> bool:
    """Whether the task has ended: `patience` epochs were not better than the best one before."""
    patience, found = session.schedule.patience, session.progress.validated
    return patience is not None and bool(found) and len(found) - _best(found) >= patience


def validate(session: Session, task: Task) -> float:
    """Test the held-out images after an epoch, and keep the state of the best one; the seconds."""
    progress, host = session.progress, session.host
    if session.schedule.patience is None or progress.step % session.schedule.steps_per_epoch(task):
        return 0.0
    before = host.seconds()
    held_out = session.stream.held_out[progress.done]
    found = accuracies(session.method, [held_out], session.evaluation.batch_size)[0]
    progress.validated.append(found)
    epoch = len(progress.validated)
    if _best(progress.validated) == epoch:
        progress.best = deepcopy(checkpoint.state_of(session.method))
    host.log({"event": "validation", "task": task.id, "epoch": epoch, "accuracy": found})
    return host.seconds() - before


def finish(session: Session, task: Task) -> None:
    """Go back to the best epoch of a task whose epochs are over, and note its number."""
    progress, schedule = session.progress, session.schedule
    if schedule.patience is None:
        return
    session.host.skip(schedule.steps(task) - progress.step)
    best = _best(progress.validated)
    if best < len(progress.validated):
        spent = session.learner.sample_gradients
        assert progress.best is not None
        checkpoint.restore(session.method, progress.best)
        session.learner.sample_gradients = spent
    progress.best_epochs.append(best)
    progress.validated, progress.best = [], None


def _best(found: list[float]) -> int:
    """The number, from 1, of the first epoch with the highest accuracy."""
    return 1 + found.index(max(found))
