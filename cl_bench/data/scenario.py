"""A scenario is a mask: which classes compete for a sample of task t while task `now` is learned.

Names as in van de Ven & Tolias 2019 (arXiv:1904.07734), `data` for their domain-incremental.
"""

from __future__ import annotations

import torch
from torch import Tensor


def data_il(classes: Tensor, now: int) -> Tensor:
    """(T, K): every class, always: one head for all tasks."""
    return torch.ones_like(classes)


def task_il(classes: Tensor, now: int) -> Tensor:
    """(T, K): the task's own classes: its identity is given at test time."""
    return classes


def class_il(classes: Tensor, now: int) -> Tensor:
    """(T, K): every class seen so far, whatever the task."""
    return classes[: now + 1].any(0).expand_as(classes)
