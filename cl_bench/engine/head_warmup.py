"""Fits the head of a new task before the rest of the network is trained (schedule.warm_up=head).

It is the warm-up step of LwF (Li & Hoiem 2016, arXiv:1606.09282, section 3), and linear probing
before fine-tuning (Kumar et al. 2022, arXiv:2202.10054). It comes before `Method.begin_task`, so
SI's path integral begins after it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench.core.learner import Learner
from cl_bench.core.types import Stream, Task

MAX_STEPS = 200  # of L-BFGS, which stops earlier where it has converged


def new_classes(stream: Stream, task: Task) -> Tensor:
    """(K,) bool: the classes of this task that no task before it had."""
    past = [before.id for before in stream.tasks if before.id < task.id]
    return stream.classes[task.t.unique()].any(0) & ~stream.classes[past].any(0)


def fit_head(learner: Learner, task: Task, new: Tensor) -> None:
    """Fit the rows of the head for the classes `new` (K,) bool, with all else fixed, in place.

    Minimises the mean loss + |W|^2 / 2N over the rows W of the new classes and their biases, for
    the N images of the task without augmentation. The problem is convex and solved by L-BFGS. Only
    the new classes compete: against fixed rows of other classes, which no image of the task has, a
    cross-entropy has no minimum. Batch norm is in the mode of training, so that the head is fitted
    to the features that it will get.
    """
    if not bool(new.any()):
        return
    head: Any = learner.head
    z = _features(learner, task)
    live = learner.heads.live[task.t] & new
    weight, bias, rows = head.weight.detach(), head.bias.detach(), new.nonzero().squeeze(1)
    w, b = (v[rows].clone().requires_grad_() for v in (weight, bias))
    solver = torch.optim.LBFGS([w, b], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

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
    """(N, d): the inputs of the head in the present mode; no running statistic is changed."""
    saved = [(buffer, buffer.clone()) for buffer in learner.net.buffers()]
    found = torch.cat([learner.features(batch) for batch in task.chunks(256)])
    for buffer, before in saved:
        buffer.copy_(before)
    return found.to(learner.flat.theta.dtype)
