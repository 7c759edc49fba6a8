"""Scenarios as masks: which classes compete for a sample of each task while task `now` is learned.

The names are those of van de Ven & Tolias 2019 (arXiv:1904.07734), with "data" for their
"domain". Each function takes `classes` (T, K), the classes of each task, and returns (T, K) bool.
"""

from __future__ import annotations

import torch
from torch import Tensor


def data_il(classes: Tensor, now: int) -> Tensor:
    """Data-incremental: all classes compete at all times; all tasks share one head."""
    return torch.ones_like(classes)


def task_il(classes: Tensor, now: int) -> Tensor:
    """Task-incremental: the classes of the sample's task compete; the task is known in tests."""
    return classes


def class_il(classes: Tensor, now: int, future: bool = False) -> Tensor:
    """Class-incremental: all classes of the tasks up to `now` compete, for samples of any task.

    With `future` those of later tasks do so from the start, as in the code of van de Ven et al.
    2022 and in Mammoth: they are never right, so that training lowers their logits.
    """
    return torch.ones_like(classes) if future else classes[: now + 1].any(0).expand_as(classes)
