"""Epochs, batch size, learning rate and batch-norm mode of a task."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Any, Literal

from pydantic import Field

from cl_bench.base.bounds import Count, NonNegative, Part, Positive, Share
from cl_bench.core.types import Task

Epochs = Count | Annotated[list[Count], Field(min_length=1)]


@dataclass(frozen=True)
class Schedule:
    """How each task is trained, the same for every method.

    epochs=[200,100]       those of the first task, and of each later one; of a longer list, the
                           last number is that of all tasks after it
    batch_norm=frozen      weights and statistics of batch norm are not changed after the first task
    batch_norm=folded      after the first task it is folded into the layers before it, whose
                           weights and biases are trained on
    annealing=cosine       the learning rate falls to 0 within each task, along half a cosine
                           (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)
    annealing=exponential  it is multiplied by `decay` per epoch, from the start of each task
    annealing=milestones   it is multiplied by `decay` when each of `milestones` is reached, which
                           are parts of the task's epochs: [0.3,0.6,0.85]
    ramp                   it rises linearly in the first `ramp` epochs of each task, to its value
    clip                   a step's gradient is scaled down to this norm where it is larger
                           (Pascanu et al. 2013, arXiv:1211.5063), before weight decay
    patience               a task ends after this many epochs in a row that did not raise the
                           accuracy on `holdout`, a stratified share of its training images, which
                           is not trained on; the state after the best epoch is kept (Prechelt
                           1998, "Early stopping - but when?"). null: all epochs, and no image is
                           held out
    warm_up=head           before each task, the rows of the head for its new classes are fitted,
                           with all other parameters fixed (`fit_head`)
    fresh_optimizer=false  the optimizer's state (Adam's moments, momentum) goes on from task to
                           task, in place of an optimizer without state for each
    """

    epochs: Epochs
    batch_size: Count
    batch_norm: Literal["train", "frozen", "folded"]
    annealing: Literal["none", "cosine", "exponential", "milestones"]
    milestones: list[Part]
    warm_up: Literal["none", "head"]
    decay: Share
    ramp: NonNegative
    clip: Positive | None
    patience: Count | None
    holdout: Part
    fresh_optimizer: bool = True

    @classmethod
    def unused_options(cls, options: dict[str, Any]) -> set[str]:
        """Options of another annealing, and those that are off, such as `ramp` and `patience`."""
        used = {"exponential": {"decay"}, "milestones": {"decay", "milestones"}}
        found = {"decay", "milestones"} - used.get(options["annealing"], set())
        stopping = set() if options["patience"] else {"patience", "holdout"}
        found |= {"fresh_optimizer"} if options.get("fresh_optimizer", True) else set()
        return found | stopping | {key for key in ("ramp", "clip") if not options[key]}

    def epochs_of(self, task: Task) -> int:
        """The number of epochs of a task."""
        if isinstance(self.epochs, list):
            return self.epochs[min(task.id, len(self.epochs) - 1)]
        return self.epochs

    def steps_per_epoch(self, task: Task) -> int:
        """The number of batches of a task."""
        return task.batches_per_epoch(self.batch_size)

    def steps(self, task: Task) -> int:
        """The number of steps on a task: its batches in all epochs."""
        return self.epochs_of(task) * self.steps_per_epoch(task)

    def factor(self, step: int, task: Task) -> float:
        """The factor of the learning rate at step `step` (from 0) of a task."""
        done, ramp = step / self.steps(task), self.ramp * self.steps_per_epoch(task)
        rising = min(1.0, (step + 1) / ramp) if ramp else 1.0
        if self.annealing == "exponential":
            return rising * self.decay ** (self.epochs_of(task) * done)
        if self.annealing == "milestones":
            return rising * self.decay ** sum(done >= part for part in self.milestones)
        return rising * (1.0 if self.annealing == "none" else (1 + cos(pi * done)) / 2)
