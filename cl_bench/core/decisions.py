"""Decisions that a training step makes on the CPU: which samples are replayed, what is stored.

A buffer or a method draws them from its generator on the CPU, so that they are the same on every
device, and gets them by `decide`. Usually the draw is made at once. Steps that are planned ahead
(`engine.steps`) make the draws of many steps first, and copy them to the device together. Then the
shapes must be those of every step (`shapes_are_fixed`), and what a draw returns must depend on no
result of the device. What the CPU counts for its draws (how full a buffer is) changes within the
draws alone: while a step runs, it may belong to a later step already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from cl_bench.core.types import Batch, to_device_of

Draw = Callable[[], Tensor]  # -> indices, int64, on the CPU
MANY = 2**31  # draws from 0 to MANY - 1 stand for uniform numbers
NUMBER_OF_SAMPLES = {Tensor.__len__, Tensor.size, Tensor.dim, Tensor.shape.__get__}  # type: ignore[attr-defined]


class Decisions(Protocol):
    """Where the decisions of a step come from."""

    fixed: bool  # whether their shapes must be those of every step

    def get(self, draw: Draw, near: Tensor) -> Tensor:
        """What `draw` returns, on the device of the tensor `near`."""
        ...


class ImmediateDecisions:
    """Decisions that are made when a step needs them."""

    fixed = False

    def get(self, draw: Draw, near: Tensor) -> Tensor:
        return to_device_of(_indices(draw), near)


class RecordedDecisions:
    """Decisions that are made when a step needs them, and recorded: which ones a step makes.

    rng     the generator that all draws of a step must come from
    counts  what changes within draws alone, such as how full a buffer is
    """

    fixed = True

    def __init__(self, rng: Generator, counts: Callable[[], Any] = lambda: None) -> None:
        self.rng, self.counts = rng, counts
        self.draws: list[Draw] = []
        self.shapes: list[torch.Size] = []
        self.refusal: str | None = None  # the first reason why the step cannot be planned
        self.deciding = False  # now
        self._before = rng.get_state(), counts()

    def get(self, draw: Draw, near: Tensor) -> Tensor:
        self.deciding = True
        self.check_rest()
        indices = _indices(draw)
        self.draws.append(draw)
        self.shapes.append(indices.shape)
        there = to_device_of(indices, near)
        self._before, self.deciding = (self.rng.get_state(), self.counts()), False
        return there

    def check_rest(self) -> None:
        """Refuse the step if something was drawn or counted since the last decision."""
        state, counts = self._before
        if not state.equal(self.rng.get_state()):
            self.refuse("it draws from learner.rng outside of `decide` (core.decisions)")
        if counts != self.counts():
            self.refuse("its memory changes outside of its decisions (core.decisions)")

    def refuse(self, reason: str) -> None:
        """Keep the first reason."""
        self.refusal = self.refusal or reason


class PlannedDecisions:
    """Decisions of one step that were made before it.

    indices  one tensor for each decision, in their order, on the device
    """

    fixed = True

    def __init__(self, indices: list[Tensor]) -> None:
        self._left = indices[::-1]

    @classmethod
    def of_row(cls, row: Tensor, shapes: list[torch.Size]) -> PlannedDecisions:
        """Cut a row (W,) of a table into indices of these shapes."""
        parts = row.split([shape.numel() for shape in shapes])
        return cls([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    def get(self, draw: Draw, near: Tensor) -> Tensor:
        return self._left.pop()


def _indices(draw: Draw) -> Tensor:
    found = draw()
    if found.dtype != torch.int64:
        raise TypeError(f"a decision must be indices, int64; it is {found.dtype} (core.decisions)")
    return found


_now: Decisions = ImmediateDecisions()


def decide(draw: Draw, near: Tensor) -> Tensor:
    """The indices (int64) that `draw` returns for this step, on the device of the tensor `near`.

    Raises TypeError where they are of another kind.
    """
    return _now.get(draw, near)


def decide_uniform(count: int, rng: Generator, near: Tensor) -> Tensor:
    """(count,): uniform numbers in [0, 1) for this step, on the device of `near`.

    They are in float64, or in float32 where the device has no such numbers (mps).
    """
    kind = torch.float32 if near.device.type == "mps" else torch.float64
    return decide(lambda: torch.randint(MANY, (count,), generator=rng), near).to(kind) / MANY


def shapes_are_fixed() -> bool:
    """Whether a draw must return indices of the same shape in every step."""
    return _now.fixed


def cannot_be_planned(reason: str) -> None:
    """Say that the decisions of this step cannot be made before the step, and why."""
    if isinstance(_now, RecordedDecisions):
        _now.refuse(reason)


def sizes_of(batch: Batch) -> Batch:
    """The batch for a decision that may know how many samples it has, and nothing else of it.

    A decision that reads more is made as usual; its step is not planned.
    """
    if not isinstance(_now, RecordedDecisions):
        return batch
    hidden: Any = (None if field is None else field.as_subclass(_Unread) for field in batch)
    return Batch(*hidden)


class _Unread(Tensor):
    """A tensor of which a planned decision must not read more than its size."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in NUMBER_OF_SAMPLES:
            cannot_be_planned("its memory reads the samples before it chooses among them")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@contextmanager
def decisions_from(source: Decisions) -> Iterator[None]:
    """Take the decisions from `source` inside the block."""
    global _now
    before, _now = _now, source
    try:
        yield
    finally:
        _now = before
