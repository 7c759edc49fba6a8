"""The head of a new task before the rest of the network moves.

LwF's warm-up (Li & Hoiem 2016, arXiv:1606.09282, section 3); linear probing before fine-tuning
(Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.learner import Learner
from cl_bench.types import Stream, Task

STEPS = 200  # of L-BFGS at most; it stops where the loss does


def new_classes(stream: Stream, task: Task) -> Tensor:
    """(K,) bool: those that compete in this task and did not in any before."""
    before = torch.zeros_like(stream.classes[0])
    for past in range(task.id):
        before |= stream.live(past)[past]
    return stream.live(task.id)[task.t.unique()].any(0) & ~before


def fit_head(learner: Learner, task: Task, new: Tensor) -> None:
    """Put the head's rows of the classes `new` (K,) bool where the task's loss is lowest.

    min over these rows, all else as it is, of the mean loss + |W|^2 / 2N for N images: convex, by
    L-BFGS on the features, in evaluation mode and without augmentation.
    """
    if not bool(new.any()):
        return
    head: Any = learner.net.head
    z = _features(learner, task)
    live = learner.live[task.t] if learner.masked else None
    weight, bias, rows = head.weight.detach(), head.bias.detach(), new.nonzero().squeeze(1)
    w, b = (v[rows].clone().requires_grad_() for v in (weight, bias))
    solver = torch.optim.LBFGS([w, b], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = F.linear(z, weight.index_copy(0, rows, w), bias.index_copy(0, rows, b))
        value = learner.criterion(logits, task.y, live).mean() + w.square().sum() / (2 * len(task))
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        weight[rows], bias[rows] = w, b


def _features(learner: Learner, task: Task) -> Tensor:
    """(N, d): what the head reads."""
    with learner.evaluating(full_precision=True):
        return torch.cat([learner.features(batch) for batch in task.chunks(256)])
