"""The training steps of a task: one after the other, or planned ahead and run as CUDA graphs.

With runtime.graphs, the first steps of a task are watched (`step_pattern`). Where they have a
pattern, the decisions of up to `LONGEST` steps are made together on the CPU, in the order in which
single steps would make them, and copied to the device as one table; so are the batches and the
learning rates. Each step then reads its own row of the tables, at a counter on the device. On CUDA
such a step is captured as a graph (`core.graphs`). On a CPU it stays a call of the method, which
shows that both ways have the same results. A plan ends before anything that looks at the run: a
logged loss, a probe, a test, the short batch that ends an epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from cl_bench.core.decisions import Noted, Planned, decisions_from
from cl_bench.core.graphs import Step
from cl_bench.core.types import Task, to_device_of
from cl_bench.engine.session import Session
from cl_bench.engine.step_pattern import Pattern, watched

LONGEST = 64  # steps of a plan; a run can be stopped between two plans
REFUSALS = 4  # watched steps of a task that show no pattern, before it is let be


class Steps:
    """Iterate over it for the samples of each batch, and `take` the step on them."""

    def __init__(self, session: Session, task: Task) -> None:
        self.session, self.task, self.schedule = session, task, session.schedule
        epochs, start = self.schedule.epochs_of(task), session.progress.step
        self._batches = task.indices(self.schedule.batch_size, session.order, epochs, start)
        self._ahead: deque[Tensor] = deque()
        varying = self.schedule.annealing != "none" or bool(self.schedule.ramp)
        self.planned = session.learner.machine.planned
        self._rate_is_tensor = self.planned and varying
        self.forget()

    def forget(self) -> None:
        """Watch the steps that follow anew: something has changed, such as the classes."""
        self._pattern: Pattern | None = None
        self._plan: _Plan | None = None
        self._first = True  # in its first step a method may prepare for a task
        self._refusals = 0
        self._left = 0  # steps of the plan

    @property
    def settled(self) -> bool:
        """Whether no decision is made already for a step that is still to come."""
        return not self._left

    def __iter__(self) -> Iterator[Tensor]:
        """The indices of each batch in the task, from the step on that the run has reached."""
        while self._peek(1):
            yield self._ahead.popleft()

    def take(self, batch: Tensor) -> Tensor:
        """Take the step on the samples at these indices; returns the loss, on the device."""
        if self._left:
            return self._planned_step()
        if not self.planned or len(batch) != self.schedule.batch_size:
            return self._single(batch)
        if self._plan is not None:
            self._make_plan(batch)
            return self._planned_step()
        if self._first or self._refusals == REFUSALS:
            self._first = False
            return self._single(batch)
        return self._watch(batch)

    def _single(self, batch: Tensor) -> Tensor:
        """A step by itself."""
        self._anneal(self.schedule.factor(self.session.progress.step, self.task))
        return self._observe(batch)

    def _anneal(self, factor: float) -> None:
        """Set the learning rate; a tensor with plans whose steps have different ones."""
        if self._rate_is_tensor:
            self.session.learner.anneal(torch.full((), factor, device=self.task.y.device))
        else:
            self.session.learner.anneal(factor)

    def _observe(self, batch: Tensor) -> Tensor:
        return self.session.method.observe(self.session.learner.arriving(self.task.batch(batch)))

    def _watch(self, batch: Tensor) -> Tensor:
        """A step by itself, which is watched; after two of one pattern, steps are planned."""
        loss, found = watched(self.session.method, lambda: self._single(batch))
        if isinstance(found, str):
            self.session.unplanned = found
            self._refusals, self._pattern = self._refusals + 1, None
            return loss
        if self._pattern is not None and self._pattern.equals(found):
            self._plan = _Plan(self, found)
            self.session.unplanned = None
        self._pattern = found
        return loss

    def _make_plan(self, batch: Tensor) -> None:
        """Decide for the step on this batch, and for as many after it as nothing interrupts."""
        assert self._plan is not None
        progress, count = self.session.progress, min(LONGEST, self._uninterrupted())
        self._peek(count - 1)
        batches = [batch, *(self._ahead[i] for i in range(count - 1))]
        steps = range(progress.step, progress.step + count)
        self._plan.fill(batches, [self.schedule.factor(step, self.task) for step in steps])
        self._left = count

    def _planned_step(self) -> Tensor:
        assert self._plan is not None
        self._left -= 1
        self.session.planned += 1
        return self._plan.step()

    def _uninterrupted(self) -> int:
        """The number of whole batches from the present one on before something looks at the run."""
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


class _Plan:
    """The tables of the steps that are planned, and the step that reads its row of them."""

    def __init__(self, steps: Steps, pattern: Pattern) -> None:
        self.steps, self.pattern = steps, pattern
        near, size = steps.task.y, steps.schedule.batch_size
        self.at = near.new_zeros(1, dtype=torch.int64)
        self.batches = near.new_zeros(LONGEST, size, dtype=torch.int64)
        width = sum(shape.numel() for shape in pattern.shapes)
        self.decisions = near.new_zeros(LONGEST, width, dtype=torch.int64)
        self.factors = near.new_zeros(LONGEST, dtype=torch.float32)
        self.taken = 0  # steps so far
        self.replay: Step | None = None  # a step that is captured

    def fill(self, batches: list[Tensor], factors: list[float]) -> None:
        """Write the tables for the next steps, from their batches and learning rates."""
        count, learner = len(batches), self.steps.session.learner
        with decisions_from(Noted(learner.rng)):
            rows = [self._decided() for _ in range(count)]
        self.at.zero_()
        self.batches[:count] = torch.stack(batches)
        self.decisions[:count] = to_device_of(torch.stack(rows), self.at)
        if self.steps._rate_is_tensor:
            self.factors[:count] = to_device_of(torch.tensor(factors), self.at)
        else:
            learner.anneal(factors[0])

    def _decided(self) -> Tensor:
        """(W,): all decisions of a step."""
        found = [draw() for draw in self.pattern.draws]
        shapes = [each.shape for each in found]
        assert shapes == self.pattern.shapes, f"decisions of shapes {self.pattern.shapes}: {shapes}"
        return torch.cat([torch.empty(0, dtype=torch.int64), *(each.flatten() for each in found)])

    def step(self) -> Tensor:
        """Take the next step."""
        learner = self.steps.session.learner
        graphs = learner.machine.graphs
        self.taken += 1
        if graphs is None:
            return self._by_call()
        if self.taken == 1:
            return graphs.warm_up(self._by_call)
        if self.replay is None:
            gradients = learner.sample_gradients
            self.replay = graphs.capture(self._by_call)
            learner.sample_gradients = gradients
        learner.sample_gradients += self.pattern.gradients
        return self.replay()

    def _by_call(self) -> Tensor:
        """The step as a call of the method, from its row of the tables."""
        steps, pattern = self.steps, self.pattern
        row, batch = (table.index_select(0, self.at)[0] for table in (self.decisions, self.batches))
        if steps._rate_is_tensor:
            steps.session.learner.anneal(self.factors.index_select(0, self.at)[0])
        self.at.add_(1)
        olds = [getattr(*place) for place in pattern.renewed]
        with decisions_from(Planned(row, pattern.shapes)):
            loss = steps._observe(batch)
        news = [getattr(*place) for place in pattern.renewed]
        # one attribute may have another's tensor of before
        news = [new.clone() if any(new is old for old in olds) else new for new in news]
        for (owner, name), old, new in zip(pattern.renewed, olds, news, strict=True):
            old.copy_(new)
            setattr(owner, name, old)
        return loss
