"""Steps that are planned: the tables of their batches, decisions and rates, and the step itself.

Each step reads its own row of the tables, at a counter on the device. On CUDA such a step is
captured as a graph (`core.graphs`). On a CPU it stays a call of the method, which shows that both
ways have the same results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_bench.core.decisions import PlannedDecisions, RecordedDecisions, decisions_from
from cl_bench.core.graphs import StepFunction
from cl_bench.core.types import to_device_of
from cl_bench.engine.session import Session
from cl_bench.engine.step_pattern import Pattern
from cl_bench.engine.step_state import Changed, places


class PlannedSteps:
    """Tables of up to `longest` steps of a pattern, on batches of `size` samples.

    observe  the method's step on the samples at indices (B,)
    tensors  whether the learning rate of a step is a tensor, from the table
    near     a tensor on the device of the run
    failure  why a step could not be captured, if so: then each planned step is a call
    """

    def __init__(
        self,
        session: Session,
        observe: Callable[[Tensor], Tensor],
        pattern: Pattern,
        longest: int,
        size: int,
        tensors: bool,
        near: Tensor,
    ) -> None:
        self.session, self.observe, self.pattern, self.tensors = session, observe, pattern, tensors
        self.at = near.new_zeros(1, dtype=torch.int64)  # the row of the next step
        self.batches = near.new_zeros(longest, size, dtype=torch.int64)
        width = sum(shape.numel() for shape in pattern.shapes)
        self.decisions = near.new_zeros(longest, width, dtype=torch.int64)
        self.factors = near.new_zeros(longest, dtype=torch.float32)
        self.failure: str | None = None
        self._places = places(session.method)
        self._taken = 0  # steps so far
        self._captured: StepFunction | None = None

    def is_valid(self) -> bool:
        """Whether all tensors lie where they lay when the pattern was found."""
        return places(self.session.method) == self._places

    def fill(self, batches: list[Tensor], factors: list[float]) -> tuple[int, list[Tensor] | None]:
        """Write the tables for steps on these batches, with these factors of the learning rate.

        Returns the number of planned steps, and the decisions of the step after them where these
        have other shapes; they are made already.
        """
        learner, rows, odd = self.session.learner, [], None
        with decisions_from(RecordedDecisions(learner.rng)):
            for _ in batches:
                found = [draw() for draw in self.pattern.draws]
                if [each.shape for each in found] != self.pattern.shapes:
                    odd = found
                    break
                empty = torch.empty(0, dtype=torch.int64)
                rows.append(torch.cat([empty, *(each.flatten() for each in found)]))
        if not rows:
            return 0, odd
        self.at.zero_()
        self.batches[: len(rows)] = torch.stack(batches[: len(rows)])
        self.decisions[: len(rows)] = to_device_of(torch.stack(rows), self.at)
        if self.tensors:
            table = torch.tensor(factors[: len(rows)])
            self.factors[: len(rows)] = to_device_of(table, self.at)
        else:
            learner.anneal(factors[0])
        return len(rows), odd

    def step(self) -> Tensor:
        """Take the next step."""
        learner = self.session.learner
        graphs = learner.machine.graphs
        self._taken += 1
        if graphs is None or self.failure is not None:
            return self._call()
        if self._taken == 1:
            return graphs.warm_up(self._call)
        if self._captured is None:
            gradients = learner.sample_gradients
            try:
                self._captured = graphs.capture(self._call)
            except RuntimeError as error:  # nothing has been computed
                self.failure = f"a graph cannot hold its step: {error}".splitlines()[0]
            learner.sample_gradients = gradients
            if self._captured is None:
                return self._call()
        learner.sample_gradients += self.pattern.gradients
        return self._captured()

    def _call(self) -> Tensor:
        """The step as a call of the method, from its row of the tables."""
        pattern = self.pattern
        row, batch = (table.index_select(0, self.at)[0] for table in (self.decisions, self.batches))
        if self.tensors:
            self.session.learner.anneal(self.factors.index_select(0, self.at)[0])
        self.at.add_(1)
        with decisions_from(PlannedDecisions.of_row(row, pattern.shapes)):
            return in_place(pattern.renewed, lambda: self.observe(batch))


def in_place(renewed: list[Changed], step: Callable[[], Tensor]) -> Tensor:
    """Take a step; what it puts into new tensors is copied into those that were there before.

    renewed  the attributes that have another tensor after the step. They have the old one again,
             also where the step fails
    """
    before = [getattr(*place) for place in renewed]
    try:
        loss = step()
        # all at first: an attribute may have another's tensor of before
        values = [getattr(*place).clone() for place in renewed]
        for old, value in zip(before, values, strict=True):
            old.copy_(value)
    finally:
        for (owner, name), old in zip(renewed, before, strict=True):
            setattr(owner, name, old)
    return loss
