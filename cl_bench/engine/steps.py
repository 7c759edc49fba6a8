"""The training steps of a task: one after the other, or planned ahead and run as CUDA graphs.

With runtime.graphs, the first steps of a task are watched (`step_pattern`). Where they have a
pattern, the decisions of up to `LONGEST` steps are made together on the CPU, in the order in which
single steps would make them, and copied to the device as one table; so are the batches and the
learning rates (`planned_steps`). A plan ends before anything else happens in the run: a logged
loss, a probe, a test, the short batch that ends an epoch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from cl_bench.core.decisions import PlannedDecisions, decisions_from
from cl_bench.core.types import Task
from cl_bench.engine.planned_steps import PlannedSteps, in_place
from cl_bench.engine.session import Session
from cl_bench.engine.step_pattern import Pattern, watched
from cl_bench.engine.step_state import MADE

SHORTEST, LONGEST = 8, 64  # steps of the first plan of a task, and of a later one at most
SECONDS = 0.5  # that a plan takes, more or less: a run is stopped between two plans
AS_A_NUMBER = "its learning rate changes, and an earlier step has read it as a number"
REFUSALS = 4  # watched steps of a task without a pattern, after which no more are watched


class Steps:
    """Iterate over it for the samples of each batch, and `take` the step on them."""

    def __init__(self, session: Session, task: Task) -> None:
        self.session, self.task, self.schedule = session, task, session.schedule
        epochs, start = self.schedule.epochs_of(task), session.progress.step
        self._batches = task.indices(self.schedule.batch_size, session.order, epochs, start)
        self._ahead: deque[Tensor] = deque()
        self.varying = self.schedule.annealing != "none" or bool(self.schedule.ramp)
        self.start_over()
        self._prepares = not start  # in the first step of a task a method may prepare for it
        # the length of a plan, when the last one began, and how many steps it had
        self._longest, self._began, self._planned_before = SHORTEST, time.monotonic(), 0
        if session.learner.machine.planned and not self.planned:
            session.progress.unplanned[task.id] = AS_A_NUMBER

    def start_over(self) -> None:
        """Watch the steps that follow anew: something has changed, such as the classes."""
        self._pattern: Pattern | None = None
        self._plan: PlannedSteps | None = None
        self._odd: list[Tensor] | None = None  # decisions of other shapes, of the step after a plan
        self._prepares, self._refusals = True, 0
        self._left = 0  # steps of the plan

    @property
    def settled(self) -> bool:
        """Whether no decision is made already for a step that is still to come."""
        return not self._left and self._odd is None

    def __iter__(self) -> Iterator[Tensor]:
        """The indices of each batch in the task, from the step on that the run has reached."""
        while self._peek(1):
            yield self._ahead.popleft()

    def take(self, batch: Tensor) -> Tensor:
        """Take the step on the samples at these indices; returns the loss, on the device."""
        whole = len(batch) == self.schedule.batch_size
        if self.settled and whole and self._plan is not None:
            self._make_plan(batch)
        if self._left:
            return self._planned_step()
        if self._odd is not None:
            return self._odd_step(batch)
        if not self.planned or not whole or self._prepares or self._refusals == REFUSALS:
            self._prepares = self._prepares and not whole
            return self._single(batch)
        return self._watch(batch)

    def _single(self, batch: Tensor) -> Tensor:
        """A step by itself; where steps are planned, it leaves tensors where they lie."""
        self._anneal(self.schedule.factor(self.session.progress.step, self.task))
        if self._plan is None:
            return self._observe(batch)
        return in_place(self._plan.pattern.renewed, lambda: self._observe(batch))

    def _observe(self, batch: Tensor) -> Tensor:
        """The method's step on the samples at these indices."""
        return self.session.method.observe(self.session.learner.arriving(self.task.batch(batch)))

    @property
    def planned(self) -> bool:
        """Whether steps are planned if they have a pattern."""
        as_numbers = self.varying and self.session.progress.rates_are_numbers
        return self.session.learner.machine.planned and not as_numbers

    @property
    def rates_are_tensors(self) -> bool:
        """Whether steps get their learning rate as a tensor, so that a plan has different ones."""
        return self.planned and self.varying

    def _anneal(self, factor: float) -> None:
        if self.rates_are_tensors:
            self.session.learner.anneal(torch.full((), factor, device=self.task.y.device))
        else:
            self.session.learner.anneal(factor)

    def _watch(self, batch: Tensor) -> Tensor:
        """A step by itself, which is watched; after two of one pattern, steps are planned."""
        session, reasons = self.session, self.session.progress.unplanned
        loss, found = watched(session.method, lambda: self._single(batch))
        if isinstance(found, str):
            reasons[self.task.id] = found
            self._refusals, self._pattern = self._refusals + 1, None
            # it may read the tensor; in this run, rates are numbers from here on
            if self.varying and not found.endswith(MADE):
                session.progress.rates_are_numbers = True
            return loss
        if self._pattern is not None and self._pattern.equals(found):
            size, tensors = self.schedule.batch_size, self.rates_are_tensors
            parts = found, LONGEST, size, tensors, self.task.y
            self._plan = PlannedSteps(session, self._observe, *parts)
            reasons.pop(self.task.id, None)
        elif self._pattern is not None:
            reasons[self.task.id] = "its decisions have other shapes in each step"
        self._pattern = found
        return loss

    def _make_plan(self, batch: Tensor) -> None:
        """Decide for the step on this batch, and for as many after it as nothing interrupts."""
        assert self._plan is not None
        if not self._plan.is_valid():
            self.start_over()
            return
        progress, count = self.session.progress, min(self._plan_length(), self._uninterrupted())
        self._peek(count - 1)
        batches = [batch, *(self._ahead[i] for i in range(count - 1))]
        steps = range(progress.step, progress.step + count)
        factors = [self.schedule.factor(step, self.task) for step in steps]
        self._left, self._odd = self._plan.fill(batches, factors)
        self._planned_before = self._left

    def _planned_step(self) -> Tensor:
        assert self._plan is not None
        self._left -= 1
        self.session.progress.planned += 1
        loss = self._plan.step()
        if self._plan.failure is not None:
            self.session.progress.unplanned[self.task.id] = self._plan.failure
        return loss

    def _odd_step(self, batch: Tensor) -> Tensor:
        """The step whose decisions have other shapes than those before it."""
        assert self._odd is not None
        decisions = PlannedDecisions([each.to(self.task.y.device) for each in self._odd])
        with decisions_from(decisions):
            loss = self._single(batch)
        self.start_over()
        return loss

    def _plan_length(self) -> int:
        """As many steps as take `SECONDS`, by the time that the last plan took."""
        now = time.monotonic()
        if self._planned_before:
            each = (now - self._began) / self._planned_before
            self._longest = max(1, min(LONGEST, int(SECONDS / max(each, 1e-9))))
        self._began = now
        return self._longest

    def _uninterrupted(self) -> int:
        """The number of whole batches from the present one on until something else happens."""
        session, size = self.session, self.schedule.batch_size
        progress, every = session.progress, session.evaluation.every
        at = progress.step % self.schedule.steps_per_epoch(self.task)
        ends = [self.task.whole_batches(size, at), session.host.log_every]
        ends[1] -= progress.steps % session.host.log_every
        if session.probe is not None and session.probe.every:
            ends.append(session.probe.every - progress.step % session.probe.every)
        if every is not None:
            ends.append(-(-(every - progress.images % every) // size))
        return min(ends)

    def _peek(self, count: int) -> bool:
        """Whether the next `count` batches are there; they are drawn if needed."""
        while len(self._ahead) < count:
            try:
                self._ahead.append(next(self._batches))
            except StopIteration:
                return False
        return True
