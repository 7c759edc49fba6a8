"""The head of a new task before the rest of the network moves.

LwF's warm-up (Li & Hoiem 2016, arXiv:1606.09282, section 3); linear probing before fine-tuning
(Kumar et al. 2022, arXiv:2202.10054). What SI counts begins after it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task

STEPS = 200  # of L-BFGS at most; it stops where the loss does


def new_classes(stream: Stream, task: Task) -> Tensor:
    """(K,) bool: the classes of this task that no task before it had."""
    past = [before.id for before in stream.tasks if before.id < task.id]
    return stream.classes[task.t.unique()].any(0) & ~stream.classes[past].any(0)


def fit_head(learner: Learner, task: Task, new: Tensor) -> None:
    """Put the head's rows of the classes `new` (K,) bool where the task's loss over them is lowest.

    min over these rows, all else as it is, of the mean loss + |W|^2 / 2N for N images: convex, by
    L-BFGS, without augmentation, on what the head will read when training starts: where batch norm
    trains, on batches' own statistics. The other classes do not compete: against rows that stay, a
    cross-entropy on images of new classes alone has no minimum.
    """
    if not bool(new.any()):
        return
    head: Any = learner.net.head
    z = _features(learner, task)
    live = learner.heads.live[task.t] & new
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
    """(N, d): what the head reads in the present mode; batch norm's running statistics stay."""
    kept = [(buffer, buffer.clone()) for buffer in learner.net.buffers()]
    found = torch.cat([learner.features(batch) for batch in task.chunks(256)])
    for buffer, before in kept:
        buffer.copy_(before)
    return found.to(learner.flat.theta.dtype)
