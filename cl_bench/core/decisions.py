"""Decisions that a training step makes on the CPU: which samples are replayed, what is stored.

A buffer or a method draws them from its generator on the CPU, so that they are the same on every
device, and asks for them by `decide`. Usually the draw is made at once. Steps that are planned
ahead (`engine.steps`) make the draws of many steps first, and copy them to the device together.
Then the shapes must be those of every step (`shapes_are_fixed`), and what a draw returns must
depend on no result of the device. What the CPU counts for its draws (how full a buffer is) changes
within the draws alone: while a step runs, it may belong to a later step already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Generator, Tensor

from cl_bench.core.types import to_device_of

Draw = Callable[[], Tensor]  # -> indices, int64, on the CPU


class Decisions(Protocol):
    """Where the decisions of a step come from."""

    fixed: bool  # whether their shapes must be those of every step

    def of(self, draw: Draw, near: Tensor) -> Tensor:
        """What `draw` returns, on the device of `near`."""
        ...


class Made:
    """Decisions that are made when they are asked for."""

    fixed = False

    def of(self, draw: Draw, near: Tensor) -> Tensor:
        return to_device_of(draw(), near)


class Noted:
    """Decisions that are made when they are asked for, and noted: what a step asks for.

    rng  the generator that all draws of a step must come from, within `decide`
    """

    fixed = True

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.draws: list[Draw] = []
        self.shapes: list[torch.Size] = []
        self.refused: str | None = None  # why a step cannot be planned
        self.deciding = False  # now
        self._state = rng.get_state()

    def of(self, draw: Draw, near: Tensor) -> Tensor:
        self.deciding = True
        self.look()
        found = draw()
        self.deciding, self._state = False, self.rng.get_state()
        self.draws.append(draw)
        self.shapes.append(found.shape)
        return to_device_of(found, near)

    def look(self) -> None:
        """Refuse the step if something was drawn since the last decision."""
        if not self._state.equal(self.rng.get_state()):
            self.refused = "it draws from learner.rng outside of `decide` (core.decisions)"


class Planned:
    """Decisions of one step that were made before: cut from its row of a table.

    row     (W,) int64, on the device
    shapes  those of the step's decisions, in their order
    """

    fixed = True

    def __init__(self, row: Tensor, shapes: list[torch.Size]) -> None:
        parts = row.split([shape.numel() for shape in shapes])
        self._left = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)][::-1]

    def of(self, draw: Draw, near: Tensor) -> Tensor:
        return self._left.pop()


_now: Decisions = Made()


def decide(draw: Draw, near: Tensor) -> Tensor:
    """What `draw` returns for this step, on the device of `near`: indices, int64."""
    return _now.of(draw, near)


def shapes_are_fixed() -> bool:
    """Whether a draw must return indices of the same shape in every step."""
    return _now.fixed


def cannot_be_planned(reason: str) -> None:
    """Say that the decisions of this step cannot be made before the step, and why."""
    if isinstance(_now, Noted):
        _now.refused = reason


@contextmanager
def decisions_from(source: Decisions) -> Iterator[None]:
    """Take the decisions from `source` inside the block."""
    global _now
    before, _now = _now, source
    try:
        yield
    finally:
        _now = before
