"""Epochs, batch size, learning-rate decay and batch-norm mode of a task."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

from cl_bench.base.bounds import Count, Share
from cl_bench.core.types import Task


@dataclass(frozen=True)
class Schedule:
    """How each task is trained, the same for every method.

    batch_norm=frozen      weights and statistics of batch norm are not changed after the first task
    batch_norm=folded      after the first task it is folded into the layers before it, whose
                           weights and biases are trained on
    annealing=cosine       the learning rate falls to 0 within each task, along half a cosine
                           (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)
    annealing=exponential  it is multiplied by `decay` per epoch, from the start of each task
    warm_up=head           before each task, the rows of the head for its new classes are fitted,
                           with all other parameters fixed (`fit_head`)
    """

    epochs: Count
    batch_size: Count
    batch_norm: Literal["train", "frozen", "folded"]
    annealing: Literal["none", "cosine", "exponential"]
    warm_up: Literal["none", "head"]
    decay: Share

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """`decay`, unless annealing=exponential."""
        return set() if options["annealing"] == "exponential" else {"decay"}

    def steps(self, task: Task) -> int:
        """The number of steps on a task: its batches in all epochs."""
        return self.epochs * -(-len(task) // self.batch_size)

    def factor(self, step: int, steps: int) -> float:
        """The factor of the learning rate at step `step` (from 0) of the `steps` on a task."""
        if self.annealing == "exponential":
            return self.decay ** (self.epochs * step / steps)
        return 1.0 if self.annealing == "none" else (1 + cos(pi * step / steps)) / 2
