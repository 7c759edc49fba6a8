"""Epochs, batch size, learning-rate decay and batch-norm mode of a task."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

from cl_bench.base.bounds import Count, Share
from cl_bench.core.types import Task


@dataclass(frozen=True)
class Schedule:
    """How each task is trained, whatever the method.

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
